# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The map file that is served: read once, and checked to be for this model on these ranks."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from expert_maps import FormatError, Placement, PlacementError
from expert_maps.formats import inspect_map
from expert_maps.formats.mapfile import RanksUnsaidError
from expert_maps.layered import refuse_layered
from vllm_ascend_moe._eplb_config import EplbConfigError


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
