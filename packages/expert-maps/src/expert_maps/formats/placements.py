# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Reading a placement, whichever of the supported formats the file is in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expert_maps.errors import FormatError
from expert_maps.files import describe, read_json
from expert_maps.formats import golden, vllm_ascend

if TYPE_CHECKING:
    import os

    from expert_maps.placement import Placement


def read_placement(
    path: str | os.PathLike[str],
    *,
    num_logical_experts: int | None = None,
    allow_uneven: bool = False,
    allow_duplicates: bool = False,
) -> Placement:
    """Read a vllm-ascend expert map, or one of this project's golden maps.

    Args:
        path: the file; its content decides, not its name.
        num_logical_experts: E; if None, one more than the largest id in the file.
        allow_uneven: as in `Placement`.
        allow_duplicates: as in `Placement`.

    Raises:
        FormatError: absent, unreadable, or not of a known schema; the file is named.
        PlacementError: the slots are no valid placement; every violation is listed.
    """
    document = read_json(path)
    is_golden = isinstance(document, dict) and "physical_to_logical" in document
    try:
        return (golden if is_golden else vllm_ascend).parse(
            document,
            num_logical_experts=num_logical_experts,
            allow_uneven=allow_uneven,
            allow_duplicates=allow_duplicates,
        )
    except FormatError as error:
        msg = f"{describe(path)}: {error}"
        raise FormatError(msg) from error
