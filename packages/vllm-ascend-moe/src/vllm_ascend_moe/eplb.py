# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`init_eplb_config`: the one place from which a layer gets its maps.

Every map is derived from one placement, which is read from a map file or generated. Importing this module
loads neither vLLM nor torch_npu.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from expert_maps import ExpertMapsError, FormatError, Placement, PlacementError, generate_placement
from expert_maps.formats import inspect_map
from expert_maps.formats.mapfile import RanksUnsaidError
from expert_maps.layered import refuse_layered
from expert_maps.validation import as_count, as_index
from vllm_ascend_moe._log import logger

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from expert_maps import LayoutName

_MISSING = object()


class EplbConfigError(ExpertMapsError):
    """The settings contradict each other or the map file; the message says what to change."""


@dataclass(frozen=True, eq=False)
class EplbMaps:
    """What one MoE layer on one rank needs; all tensors are int32 on the CPU.

    Attributes:
        expert_map: [E], logical expert → local slot on this rank, −1 where absent; None without expert
            parallelism.
        log2phy: [E], logical expert → the one physical expert that this rank sends to; None without
            expert parallelism or without EPLB.
        num_redundant_experts: P − E of this layer, over all ranks.
        global_expert_map: [R, E], `expert_map` of every rank; None without expert parallelism.
    """

    expert_map: torch.Tensor | None
    log2phy: torch.Tensor | None
    num_redundant_experts: int
    global_expert_map: torch.Tensor | None


@dataclass(frozen=True)
class _EplbConfig:
    expert_map_path: str | None
    dynamic_eplb: bool
    num_redundant_experts: int
    expert_map_record_path: str | None

    @property
    def is_on(self) -> bool:
        """Dynamic EPLB and recording need log2phy; a map file is asked for by its path."""
        return self.dynamic_eplb or self.expert_map_record_path is not None


@dataclass(frozen=True)
class _MoEConfig:
    num_experts: int
    ep_size: int
    ep_rank: int
    tp_size: int
    tp_rank: int | None


def init_eplb_config(
    eplb_config: object,
    layer_id: int,
    moe_config: object,
    *,
    layout: LayoutName = "ring",
    is_draft: bool = False,
) -> EplbMaps:
    """Derive one MoE layer's maps: placement → expert map → log2phy.

    | settings | placement | redundancy | log2phy |
    |---|---|---|---|
    | ``ep_size`` 1 | none: the maps are None | 0 | None |
    | a map file | the file's row ``layer_id`` | the file's | yes |
    | a map file, ``layer_id`` = its number of layers (draft layer), or ``is_draft`` | ``layout`` | the file's | yes |
    | dynamic EPLB or recording | ``layout`` | as configured | yes |
    | none of these | ``linear``, as vLLM's | 0 | None |

    Of an expert's n copies a rank sends to copy ``ep_rank % n``; where ``moe_config.tp_size`` is above 1,
    to ``(tp_rank + ep_rank // tp_size + expert) % n``.

    Args:
        eplb_config: an object (or mapping) with ``expert_map_path`` (str or path), ``dynamic_eplb``
            (bool), ``num_redundant_experts`` (int, over all ranks) and ``expert_map_record_path``; an
            absent attribute, or None for all of it, means None, False, 0 and None.
        layer_id: index of the MoE layer, dense layers not counted; draft (MTP) layers follow.
        moe_config: an object (or mapping) with ``num_experts`` (E, logical, required where there is
            expert parallelism), ``ep_size`` (1), ``ep_rank`` (0), ``tp_size`` (1) and ``tp_rank``
            (``ep_rank % tp_size``); in brackets what an absent attribute means.
        layout: where experts and copies stand without a file: ``ring``, or another by name.
        is_draft: whether the layer is a draft model's, for which a map file has no rows, whatever its index.

    Returns:
        The maps.

    Raises:
        EplbConfigError: a setting has the wrong type or value, or contradicts the map file.
        FormatError: the map file is absent, unreadable or of another schema.
        PlacementError: the map file's slots are no valid placement; every violation is listed.
        LayoutError: the redundancy does not divide by the ranks; the nearest that do are named.
    """
    eplb = _read_eplb_config(eplb_config)
    layer = as_count("layer_id", layer_id, 0, error=EplbConfigError)
    ep_size = as_count("ep_size", _get(moe_config, "ep_size", 1), 1, error=EplbConfigError)
    if ep_size == 1:
        if eplb.expert_map_path is not None or eplb.is_on:
            logger.warning("ep_size is 1: there is no expert parallelism, so EPLB settings are ignored")
        return EplbMaps(None, None, 0, None)
    moe = _read_moe_config(moe_config, ep_size)
    if eplb.expert_map_path is not None:
        placement, row = _from_file(
            eplb.expert_map_path, eplb.num_redundant_experts, None if is_draft else layer, moe, layout
        )
    else:
        redundant = eplb.num_redundant_experts if eplb.is_on else 0
        name = layout if eplb.is_on else "linear"
        placement, row = _default_placement(name, moe.num_experts, ep_size, redundant), 0
    log2phy = None
    if eplb.is_on or eplb.expert_map_path is not None:
        log2phy = placement.log2phy(row, moe.ep_rank, tp_size=moe.tp_size, tp_rank=moe.tp_rank)
    global_expert_map = placement.global_expert_map(row)
    return EplbMaps(
        expert_map=_tensor(global_expert_map[moe.ep_rank]),
        log2phy=None if log2phy is None else _tensor(log2phy),
        num_redundant_experts=placement.num_redundant_experts,
        global_expert_map=_tensor(global_expert_map),
    )


def _from_file(
    path: str, num_redundant_experts: int, layer: int | None, moe: _MoEConfig, layout: str
) -> tuple[Placement, int]:
    """Return a placement and the row in it that is this layer's; None is a draft model's."""
    placement = read_expert_map(path, moe.num_experts, moe.ep_size, num_redundant_experts)
    if layer is not None and layer < placement.num_layers:
        return placement, layer
    if layer is not None and layer > placement.num_layers:
        msg = (
            f"layer_id is {layer}; expected at most {placement.num_layers}: {path} has "
            f"{placement.num_layers} layers, and the next one is the draft layer"
        )
        raise EplbConfigError(msg)
    return (
        _default_placement(layout, moe.num_experts, moe.ep_size, placement.num_redundant_experts),
        0,
    )


def read_expert_map(
    path: str,
    num_experts: int,
    ep_size: int,
    num_redundant_experts: int = 0,
    *,
    allow_duplicates: bool = False,
) -> Placement:
    """Read a map file and check that it is for this model on these ranks.

    Args:
        path: the file.
        num_experts: E, logical, that the model has.
        ep_size: R, that it runs on.
        num_redundant_experts: as configured beside the file; 0 for not configured.
        allow_duplicates: take an expert twice on a rank.

    Raises:
        EplbConfigError: the file is for other counts.
        FormatError: the file is absent, unreadable or of another schema.
        PlacementError: the file's slots are no valid placement; every violation is listed.
    """
    placement = _read_map_file(path, num_experts, allow_duplicates=allow_duplicates)
    for name, found, configured in (
        ("ranks", placement.ep_size, ep_size),
        ("experts", placement.num_logical_experts, num_experts),
    ):
        if found != configured:
            msg = f"{path} is a map for {found} {name}; expected {configured}, as the model runs with"
            raise EplbConfigError(msg)
    if num_redundant_experts not in {0, placement.num_redundant_experts}:
        msg = (
            f"num_redundant_experts is {num_redundant_experts}, but {path} has "
            f"{placement.num_redundant_experts}; leave it out, the map alone decides"
        )
        raise EplbConfigError(msg)
    return placement


def _read_map_file(path: str, num_experts: int, *, allow_duplicates: bool) -> Placement:
    """Read a map, once per content: every layer of a model asks for the same file."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        # Absent or unreachable: the reader says so in its own words.
        return read_served_map(path)
    absolute = os.fspath(Path(path).absolute())
    return _read_cached(
        absolute, path, num_experts, status.st_mtime_ns, status.st_size, allow_duplicates=allow_duplicates
    )


@functools.lru_cache(maxsize=4)
def _read_cached(
    _absolute: str, path: str, num_experts: int, _mtime_ns: int, _size: int, *, allow_duplicates: bool
) -> Placement:
    try:
        placement = read_served_map(path, allow_duplicates=allow_duplicates)
        if placement.num_logical_experts < num_experts:
            # The file alone cannot tell that its last experts are missing; the model can.
            placement = read_served_map(path, num_experts, allow_duplicates=allow_duplicates)
    except PlacementError as error:
        msg = f"{path}: {error}"
        raise _NamedPlacementError(msg, error) from error
    return placement


# Forms that say their ranks, and have a row for each MoE layer, in slot order.
_SERVED = ("expert-maps", "vllm-ascend", "golden")


def read_served_map(
    path: str | os.PathLike[str], num_experts: int | None = None, *, allow_duplicates: bool = False
) -> Placement:
    """Read a map in a form that vllm-ascend and this plugin take for the same.

    Raises:
        FormatError: it cannot be read, or is another system's, in which layers, ranks or slots may be meant otherwise.
        PlacementError: it is no valid placement.
    """
    what = "a map of another system, which does not say its ranks"
    found = None
    try:
        found = inspect_map(path, num_logical_experts=num_experts, allow_duplicates=allow_duplicates)
        what = f"a map in the form {found.form}"
    except RanksUnsaidError:
        pass
    if found is None or found.form not in _SERVED:
        msg = (
            f"{path} is {what}; expected {', '.join(_SERVED)}: write it in one of these forms first, by "
            f"`expert-maps convert {path} map.json --to expert-maps`"
        )
        raise FormatError(msg)
    return refuse_layered(found.placement)


class _NamedPlacementError(PlacementError):
    """A `PlacementError` whose message starts with the file."""

    def __init__(self, message: str, error: PlacementError) -> None:
        super().__init__(error.violations)
        self.args = (message,)


@functools.lru_cache(maxsize=8)
def _default_placement(layout: str, num_experts: int, ep_size: int, redundant: int) -> Placement:
    return generate_placement(
        layout, num_experts=num_experts, ep_size=ep_size, num_redundant_experts=redundant
    )


def _tensor(array: NDArray[np.int32]) -> torch.Tensor:
    return torch.from_numpy(array.copy())  # a placement's arrays are read-only, tensors are not


def _get(config: object, name: str, default: object) -> object:
    """Return an attribute (or a mapping's entry); absent or None means the default."""
    value = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
    return default if value is None else value


def _read_eplb_config(config: object) -> _EplbConfig:
    dynamic = _get(config, "dynamic_eplb", default=False)
    if not isinstance(dynamic, bool):
        msg = f"dynamic_eplb is {dynamic!r}; expected true or false"
        raise EplbConfigError(msg)
    return _EplbConfig(
        expert_map_path=_path(config, "expert_map_path"),
        dynamic_eplb=dynamic,
        num_redundant_experts=as_count(
            "num_redundant_experts", _get(config, "num_redundant_experts", 0), 0, error=EplbConfigError
        ),
        expert_map_record_path=_path(config, "expert_map_record_path"),
    )


def _path(config: object, name: str) -> str | None:
    value = _get(config, name, None)
    if value is None or isinstance(value, str):
        # An empty string is how an unset path arrives from JSON and from environment variables.
        return value or None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    msg = f"{name} is {value!r}; expected a path"
    raise EplbConfigError(msg)


def _read_moe_config(config: object, ep_size: int) -> _MoEConfig:
    experts = _get(config, "num_experts", _MISSING)
    if experts is _MISSING:
        msg = "num_experts is missing in moe_config; expected the number of logical experts"
        raise EplbConfigError(msg)
    tp_size = as_count("tp_size", _get(config, "tp_size", 1), 1, error=EplbConfigError)
    tp_rank = _get(config, "tp_rank", None)
    return _MoEConfig(
        num_experts=as_count("num_experts", experts, 1, error=EplbConfigError),
        ep_size=ep_size,
        ep_rank=as_index("ep_rank", _get(config, "ep_rank", 0), ep_size),
        tp_size=tp_size,
        tp_rank=None if tp_rank is None else as_index("tp_rank", tp_rank, tp_size),
    )


__all__ = ["EplbConfigError", "EplbMaps", "FormatError", "init_eplb_config", "read_expert_map"]
