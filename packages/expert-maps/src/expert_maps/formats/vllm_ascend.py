# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""vllm-ascend's expert map, a JSON file.

```json
{"moe_layer_count": 1, "layer_list": [{"layer_id": 0, "device_count": 2, "device_list": [
  {"device_id": 0, "device_expert": [7, 2, 0, 3, 5]}, {"device_id": 1, "device_expert": [6, 1, 4, 7, 2]}]}]}
```

``device_expert[s]`` is the logical expert in local slot s of that rank. vllm-ascend reads layers and
devices by position and ignores ``layer_id``, ``device_id`` and ``device_count``; a file in which these
contradict the positions means something else than it does, so it is refused here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias, cast

from expert_maps import limits
from expert_maps._input import count_rank_lists, flatten_rank_lists
from expert_maps.errors import FormatError
from expert_maps.formats.checks import is_int, show, warn_of_unknown
from expert_maps.formats.contradictions import contradiction
from expert_maps.formats.mapfile import Asked, MapFile, counts_text
from expert_maps.layered import refuse_layered

if TYPE_CHECKING:
    import os

    from expert_maps.formats.contents import Content
    from expert_maps.layered import AnyPlacement
    from expert_maps.placement import Placement

KEYS = ("moe_layer_count", "layer_list")

RankLists: TypeAlias = list[list[list[int]]]


def dumps(placement: AnyPlacement, extra: str = "") -> str:
    """Return the placement as JSON text, a line per rank, so that two files can be compared by eye.

    Args:
        placement: what is written.
        extra: more of the object, as JSON text like ``"key": value``; vllm-ascend ignores keys that it does not know.
    """
    layers = []
    for layer in range(placement.num_layers):
        devices = ",\n".join(
            f'    {{"device_id": {rank}, "device_expert": '
            f"{json.dumps(placement.local_experts(layer, rank).tolist())}}}"
            for rank in range(placement.ep_size)
        )
        layers.append(
            f'  {{"layer_id": {layer}, "device_count": {placement.ep_size}, "device_list": [\n{devices}\n  ]}}'
        )
    text = f'{{"moe_layer_count": {placement.num_layers}, "layer_list": [\n' + ",\n".join(layers)
    return f"{text}\n]" + (f",\n{extra}" if extra else "") + "}\n"


def check_output_name(path: str | os.PathLike[str]) -> None:
    """Refuse a name that vllm-ascend would refuse.

    Raises:
        FormatError: the name does not end in ``.json``.
    """
    from pathlib import Path

    if not Path(path).name.endswith(".json"):
        msg = f"output file is {str(path)!r}; expected a name that ends in .json: vllm-ascend reads no other"
        raise FormatError(msg)


def parse(
    document: object,
    *,
    num_logical_experts: int | None = None,
    allow_uneven: bool = False,
    allow_duplicates: bool = False,
) -> Placement:
    """Turn a parsed JSON document into a placement.

    Args:
        document: the file's content.
        num_logical_experts: E; if None, one more than the largest id in the file.
        allow_uneven: as in `Placement`.
        allow_duplicates: as in `Placement`.

    Raises:
        FormatError: a key is missing, of the wrong type, or contradicts a position or count.
        PlacementError: the slots are no valid placement.
    """
    asked = Asked(
        num_logical_experts=num_logical_experts, allow_uneven=allow_uneven, allow_duplicates=allow_duplicates
    )
    return refuse_layered(rank_lists(document, asked).arrange(asked, num_logical_experts))


def parse_file(content: Content, asked: Asked) -> MapFile:
    """Read an expert map, also one whose layers have other slots.

    Raises:
        FormatError: as `parse`; or it has other ranks or layers than asked.
        PlacementError: the slots are no valid placement.
    """
    found = rank_lists(content.value, asked)
    asked.check_ranks(len(found.layers[0]))
    placement = found.arrange(asked, asked.num_logical_experts)
    return MapFile(
        placement,
        "vllm-ascend",
        f"vllm-ascend expert map, {counts_text(placement)}",
        warn_of_unknown(cast("dict[str, object]", content.value), KEYS),
        layers=asked.name_rows(len(found.layers), found.absolute),
        num_hidden_layers=asked.num_hidden_layers,
    )


@dataclass(frozen=True)
class RankListsFound:
    """What stands in a map.

    Attributes:
        layers: the experts of each layer and rank; as many ranks in every layer.
        ids: the id of each layer.
        are_ranks_alike: whether every layer names as many ranks; if not, empty ones are added.
    """

    layers: RankLists
    ids: tuple[int, ...]
    are_ranks_alike: bool = True

    @property
    def absolute(self) -> tuple[int, ...] | None:
        """The ids, where they can only be numbers of the model's layers; ids from 0 on count the rows."""
        counts_rows = self.ids == tuple(range(len(self.ids)))
        ascends = all(before < after for before, after in pairwise(self.ids))
        return self.ids if ascends and not counts_rows else None

    def arrange(self, asked: Asked, num_logical_experts: int | None) -> AnyPlacement:
        """Make a placement of them; see `Asked.arrange`."""
        # Ranks that were added would be named again, as ranks without slots.
        said = asked if self.are_ranks_alike else replace(asked, allow_uneven=True)
        return said.arrange(
            flatten_rank_lists(self.layers), count_rank_lists(self.layers), num_logical_experts
        )


def rank_lists(document: object, asked: Asked) -> RankListsFound:
    """Return the experts of each layer and rank, and the layers' ids, from a parsed JSON document.

    Raises:
        FormatError: as `parse`.
    """
    layer_list = _get_list(document, "layer_list", "the file")
    count = _get_int(document, "moe_layer_count", "the file")
    if not 1 <= len(layer_list) <= limits.MAX_LAYERS:
        msg = f"layer_list has {len(layer_list)} layers; expected at least one MoE layer, at most {limits.MAX_LAYERS}"
        raise FormatError(msg)
    if count != len(layer_list):
        text = f"moe_layer_count is {count}, but layer_list has {len(layer_list)} layers"
        asked.contradict(contradiction(text, found=count, expected=len(layer_list)))
    layers: RankLists = []
    ids: list[int] = []
    previous = -1
    for index, entry in enumerate(layer_list):
        where = f"layer_list[{index}]"
        layer_id = _get_int(entry, "layer_id", where)
        # Absolute ids (dense layers counted) are fine, any other order than the rows' is not.
        if layer_id <= previous:
            text = (
                f"{where}: layer_id is {layer_id}; expected more than {previous}: "
                "rows are read by position, so ids must ascend"
            )
            asked.contradict(contradiction(text, layer=index, found=layer_id))
        previous = layer_id
        ids.append(layer_id)
        layers.append(_parse_layer(entry, index, asked))
    are_alike = _pad_ranks(layers, asked)
    if not all(map(any, layers)) and (asked.listing is None or not any(map(any, layers))):
        msg = "a layer has no experts on any device; expected at least one"
        raise FormatError(msg)
    return RankListsFound(layers, tuple(ids), are_alike)


def _pad_ranks(layers: RankLists, asked: Asked) -> bool:
    """Give every layer as many ranks, and say whether they had."""
    usual = len(layers[0])
    most = max(map(len, layers))
    for index, ranks in enumerate(layers):
        if len(ranks) != usual:
            text = f"layer_list[{index}] has {len(ranks)} devices; expected {usual}, as layer 0 has"
            asked.contradict(contradiction(text, layer=index, found=len(ranks), expected=usual))
    are_alike = all(len(ranks) == most for ranks in layers)
    if len(layers) * most > limits.MAX_SLOTS:
        msg = f"{len(layers)} layers of {most} devices; expected at most {limits.MAX_SLOTS} in all layers"
        raise FormatError(msg)
    for ranks in layers:
        ranks.extend([] for _ in range(most - len(ranks)))
    return are_alike


def _parse_layer(entry: object, index: int, asked: Asked) -> list[list[int]]:
    where = f"layer_list[{index}]"
    device_list = _get_list(entry, "device_list", where)
    count = _get_int(entry, "device_count", where)
    if count != len(device_list):
        text = f"{where}: device_count is {count}, but device_list has {len(device_list)} devices"
        asked.contradict(contradiction(text, layer=index, found=count, expected=len(device_list)))
    if not device_list:
        msg = f"{where}: device_list is empty; expected at least one device"
        raise FormatError(msg)
    ranks = []
    for rank, device in enumerate(device_list):
        place = f"{where}.device_list[{rank}]"
        device_id = _get_int(device, "device_id", place)
        if device_id != rank:
            text = f"{place}: device_id is {device_id}; expected {rank}: devices are read by position"
            asked.contradict(contradiction(text, layer=index, rank=rank, found=device_id, expected=rank))
        experts = _get_list(device, "device_expert", place)
        for slot, expert in enumerate(experts):
            if not is_int(expert):
                msg = f"{place}.device_expert[{slot}] is {show(expert)}; expected an integer expert id"
                raise FormatError(msg)
        ranks.append(cast("list[int]", experts))
    return ranks


def _get(document: object, key: str, where: str) -> object:
    if not isinstance(document, dict):
        msg = f"{where} is {show(document)}; expected an object with {key!r}"
        raise FormatError(msg)
    if key not in document:
        msg = f"{where} has no key {key!r}; expected a vllm-ascend expert map"
        raise FormatError(msg)
    value: object = document[key]
    return value


def _get_list(document: object, key: str, where: str) -> list[object]:
    value = _get(document, key, where)
    if not isinstance(value, list):
        msg = f"{where}: {key} is {show(value)}; expected a list"
        raise FormatError(msg)
    return value


def _get_int(document: object, key: str, where: str) -> int:
    value = _get(document, key, where)
    if not is_int(value):
        msg = f"{where}: {key} is {show(value)}; expected an integer"
        raise FormatError(msg)
    return cast("int", value)
