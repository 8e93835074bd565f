# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The project's own map file, JSON: vllm-ascend's expert map with an object of facts beside it.

vllm-ascend reads ``moe_layer_count``, ``layer_list``, ``device_list`` and ``device_expert`` by position and looks at no
other key (`eplb_utils.py` of 0.18 to 0.30), so it reads these files as they are. The object ``expert_maps`` adds what a
bare map cannot say: the model, counts, the layers' absolute numbers, how the map was made, and two digests, of the slots and of
the object itself, by which a file that was changed by hand is noticed. `schema` describes it. Version 1 had the first only.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from importlib import resources
from typing import TYPE_CHECKING, Any, cast

from expert_maps import limits
from expert_maps._layers import as_layers, layers_text
from expert_maps.errors import FormatError
from expert_maps.files import write_text
from expert_maps.formats import vllm_ascend
from expert_maps.formats.checks import as_int, show, warn_of_unknown
from expert_maps.formats.contradictions import contradiction
from expert_maps.formats.mapfile import MapFile, counts_text
from expert_maps.placement import as_evaluated

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from expert_maps.formats.contents import Content
    from expert_maps.formats.mapfile import Asked
    from expert_maps.formats.vllm_ascend import RankListsFound
    from expert_maps.layered import AnyPlacement
    from expert_maps.placement import HasPlacement

OBJECT = "expert_maps"
FACTS_DIGEST = "facts_digest"
VERSION = 2
_TEXT = 1000
_ENTRIES = 32


def schema(version: int = VERSION) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of the file, of the version that is written or an earlier one."""
    text = resources.files("expert_maps").joinpath(f"schemas/expert-map-{version}.json").read_text("utf-8")
    return cast("dict[str, Any]", json.loads(text))


def dumps(
    placement: AnyPlacement,
    *,
    model: str | None = None,
    layers: Sequence[int] | None = None,
    num_hidden_layers: int | None = None,
    num_shared_experts: int = 0,
    provenance: Mapping[str, str] | None = None,
) -> str:
    """Return a placement as the text of the project's own file; arguments as `write_placement`."""
    facts: dict[str, object] = {"version": VERSION}
    if model is not None:
        facts["model"] = _text("model", model)
    facts |= {
        "num_layers": placement.num_layers,
        "num_logical_experts": placement.num_logical_experts,
        "ep_size": placement.ep_size,
        "slots_per_rank": placement.slots_per_rank.tolist(),
        "digest": placement.digest,
    }
    if layers is not None:
        facts["layers"] = _layers(layers, placement.num_layers, num_hidden_layers)
    if num_hidden_layers is not None:
        facts["num_hidden_layers"] = num_hidden_layers
    if num_shared_experts:
        facts["num_shared_experts"] = as_int(
            num_shared_experts, "num_shared_experts", 0, placement.num_logical_experts - 1
        )
    facts["provenance"] = _provenance({"tool": _tool()} | dict(provenance or {}))
    facts[FACTS_DIGEST] = facts_digest(facts)
    return vllm_ascend.dumps(placement, f'"{OBJECT}": {json.dumps(facts)}')


def write_placement(
    placement: AnyPlacement | HasPlacement,
    path: str | os.PathLike[str],
    *,
    model: str | None = None,
    layers: Sequence[int] | None = None,
    num_hidden_layers: int | None = None,
    num_shared_experts: int = 0,
    provenance: Mapping[str, str] | None = None,
) -> None:
    """Write a map that vllm-ascend reads and that says of itself what it is; whole or not at all.

    Args:
        placement: what is written, or a result that has it.
        path: its name ends in ``.json``.
        model: the model's name.
        layers: the absolute index of each MoE layer among all layers of the model.
        num_hidden_layers: all layers of the model, dense ones too.
        num_shared_experts: how many of the experts, the last, are shared ones that are mixed in.
        provenance: how the map was made, words by name: ``command``, ``policy``, ``layout``, ``load``, ``date`` …;
            ``tool`` is added. No date is added, so that the same command writes the same file.

    Raises:
        FormatError: the name does not end in ``.json`` (vllm-ascend takes no other), the facts contradict the placement,
            or the file cannot be written.
    """
    vllm_ascend.check_output_name(path)
    text = dumps(
        as_evaluated(placement)[0],
        model=model,
        layers=layers,
        num_hidden_layers=num_hidden_layers,
        num_shared_experts=num_shared_experts,
        provenance=provenance,
    )
    write_text(path, text)


def parse_file(content: Content, asked: Asked) -> MapFile:
    """Read a file of the project's own; counts and digests must be those of its slots and facts.

    Raises:
        FormatError: malformed, of a later version, or changed since it was written.
        PlacementError: the slots are no valid placement.
    """
    facts = content.mapping().get(OBJECT)
    if not isinstance(facts, dict):
        msg = f"{OBJECT} is {show(facts)}; expected an object"
        raise FormatError(msg)
    version = as_int(facts.get("version"), f"{OBJECT}.version", 1)
    if version > VERSION:
        msg = f"{OBJECT}.version is {version}; this release reads 1 to {VERSION}: update expert-maps, or remove the object"
        raise FormatError(msg)
    found = vllm_ascend.rank_lists(content.value, asked)
    experts = as_int(facts.get("num_logical_experts"), f"{OBJECT}.num_logical_experts", 1, limits.MAX_EXPERTS)
    asked.check_ranks(len(found.layers[0]))
    placement = found.arrange(
        asked, experts if asked.num_logical_experts is None else asked.num_logical_experts
    )
    described = _describe(facts, found, placement, asked)
    described = replace(described, warnings=warn_of_unknown(content.mapping(), (*vllm_ascend.KEYS, OBJECT)))
    if not asked.ignore_digest:
        _check(facts, placement, version, asked)
    return described


def facts_digest(facts: Mapping[str, object]) -> str:
    """Return the SHA-256 in hex over what the object says, by which a change of it is noticed: layers and model too.

    Args:
        facts: the object; its own `facts_digest` does not count, nor does the order of keys.
    """
    said = {key: value for key, value in facts.items() if key != FACTS_DIGEST}
    text = json.dumps(said, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(b"expert-maps facts 1\n" + text.encode("ascii")).hexdigest()


def _check(facts: Mapping[str, object], placement: AnyPlacement, version: int, asked: Asked) -> None:
    """Compare what the object says of the slots with the slots, and what it says at all with its digest."""
    expected: dict[str, object] = {
        "num_layers": placement.num_layers,
        "ep_size": placement.ep_size,
        "slots_per_rank": placement.slots_per_rank.tolist(),
        "digest": placement.digest,
    }
    for key, of_slots in expected.items():
        found = facts.get(key)
        if found != of_slots or isinstance(found, bool):
            _contradict(key, found, of_slots, "but the slots have", asked)
    # The first version had none.
    if (version > 1 or FACTS_DIGEST in facts) and facts.get(FACTS_DIGEST) != facts_digest(facts):
        _contradict(FACTS_DIGEST, facts.get(FACTS_DIGEST), facts_digest(facts), f"but {OBJECT} has", asked)


def _contradict(key: str, found: object, expected: object, of_what: str, asked: Asked) -> None:
    text = f"{OBJECT}.{key} is {show(found)}, {of_what} {show(expected)}: the file was changed after it was written"
    hint = (
        "; if that was meant, `expert-maps convert IN OUT --to expert-maps --ignore-digest` writes it anew, or remove "
        f"{OBJECT!r} from it"
    )
    shown = [value if isinstance(value, (str, int)) else show(value) for value in (found, expected)]
    asked.contradict(contradiction(text, found=shown[0], expected=shown[1]), hint)


def _describe(
    facts: Mapping[str, object], found: RankListsFound, placement: AnyPlacement, asked: Asked
) -> MapFile:
    layers = _layers_of(facts, placement.num_layers, asked)
    if found.absolute not in {None, layers}:
        text = f"layer_id are {layers_text(found.absolute or ())}; expected 0 to {placement.num_layers - 1}, or {OBJECT}.layers"
        asked.contradict(contradiction(text))
    total, model = facts.get("num_hidden_layers"), facts.get("model")
    if total is not None:
        least = placement.num_layers if layers is None else layers[-1] + 1
        total = as_int(total, f"{OBJECT}.num_hidden_layers", 1)
        if total < least:
            text = f"{OBJECT}.num_hidden_layers is {total}; expected at least {least}, as its layers need"
            asked.contradict(contradiction(text, found=total, expected=f"at least {least}"))
            total = None
    shared = as_int(
        facts.get("num_shared_experts", 0),
        f"{OBJECT}.num_shared_experts",
        0,
        placement.num_logical_experts - 1,
    )
    provenance = facts.get("provenance", {})
    if not isinstance(provenance, dict):
        msg = f"{OBJECT}.provenance is {show(provenance)}; expected an object of words"
        raise FormatError(msg)
    return MapFile(
        placement,
        "expert-maps",
        f"expert-maps file, {counts_text(placement)}",
        layers=asked.name_rows(placement.num_layers, layers),
        num_hidden_layers=asked.num_hidden_layers or total,
        model=None if model is None else _text("model", model),
        num_shared_experts=shared,
        provenance=_provenance(provenance),
    )


def _layers_of(facts: Mapping[str, object], num_layers: int, asked: Asked) -> tuple[int, ...] | None:
    """Return the layers that the object says; none where they contradict the rows, which is taken down."""
    value = facts.get("layers")
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != num_layers:
        text = f"{OBJECT}.layers is {show(value)}; expected {num_layers} layer numbers"
        asked.contradict(contradiction(text, expected=f"{num_layers} layer numbers"))
        return None
    try:
        layers = as_layers(value)
    except FormatError as error:
        asked.contradict(contradiction(f"{OBJECT}.{error}"))
        return None
    return None if isinstance(layers, str) else layers


def _layers(layers: Sequence[int], num_layers: int, num_hidden_layers: int | None) -> list[int]:
    found = as_layers(layers)
    if isinstance(found, str) or len(found) != num_layers:
        msg = f"layers are {show(list(layers))}; expected {num_layers}, one for each row"
        raise FormatError(msg)
    if num_hidden_layers is not None and found[-1] >= num_hidden_layers:
        msg = f"layers end at {found[-1]}; expected less than num_hidden_layers, {num_hidden_layers}"
        raise FormatError(msg)
    return list(found)


def _provenance(entries: Mapping[str, object]) -> dict[str, str]:
    if len(entries) > _ENTRIES:
        msg = f"provenance has {len(entries)} entries; expected at most {_ENTRIES}"
        raise FormatError(msg)
    return {_text("a key of provenance", key): _text(f"provenance.{key}", entries[key]) for key in entries}


def _text(what: str, value: object) -> str:
    if not isinstance(value, str) or len(value) > _TEXT or not value.isprintable():
        msg = f"{what} is {show(value)}; expected text of at most {_TEXT} printable characters"
        raise FormatError(msg)
    return value


def _tool() -> str:
    from expert_maps._version import __version__

    return f"expert-maps {__version__}"


__all__ = [
    "FACTS_DIGEST",
    "OBJECT",
    "VERSION",
    "dumps",
    "facts_digest",
    "parse_file",
    "schema",
    "write_placement",
]
