# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Outputs against their reference, by torch's own comparison: what differs is named with the place where it does most."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

# Entries that are compared at a time: copies of everything would not fit beside the largest outputs.
_CHUNK_ENTRIES = 1 << 23


class DiffersError(AssertionError):
    """An output is not what the reference says; the message says where."""


def require_like(name: str, found: torch.Tensor, wanted: torch.Tensor, *, dtype: bool = True) -> None:
    """Require the shape, and unless told otherwise the dtype, of an output.

    Raises:
        DiffersError: another shape or dtype.
    """
    if found.shape != wanted.shape or (dtype and found.dtype != wanted.dtype):
        text = f"{name} is {found.dtype} {list(found.shape)}; expected {wanted.dtype} {list(wanted.shape)}"
        raise DiffersError(text)


def require_equal(name: str, found: torch.Tensor, wanted: torch.Tensor, *, dtype: bool = True) -> None:
    """Require an output exactly; `dtype=False` lets integers be of another width. Raises as `require_close`."""
    require_like(name, found, wanted, dtype=dtype)
    require_close(name, found, wanted, relative=0.0)


def require_close(
    name: str, found: torch.Tensor, wanted: torch.Tensor, *, relative: float, absolute: float = 0.0
) -> None:
    """Require an output within |wanted| · relative + absolute; NaN is never close.

    Args:
        name: for the message.
        found: the output.
        wanted: of the same shape, of any dtype.
        relative: tolerance as a share of the wanted value.
        absolute: added to it.

    Raises:
        DiffersError: an entry or the shape differs.
    """
    require_like(name, found, wanted, dtype=False)
    rows = max(1, _CHUNK_ENTRIES * len(found) // max(1, found.numel()))
    for start in range(0, len(found), rows):
        try:
            torch.testing.assert_close(
                found[start : start + rows],
                wanted[start : start + rows],
                rtol=relative,
                atol=absolute,
                check_dtype=False,
                check_stride=False,
            )
        except AssertionError as error:
            text = f"{name}, from row {start} on: {' '.join(str(error).split())}"
            raise DiffersError(text) from error


def require_count(found: Sequence[torch.Tensor], names: Sequence[str]) -> None:
    """Require as many outputs as there are names.

    Raises:
        DiffersError: fewer or more.
    """
    if len(found) != len(names):
        text = f"{len(found)} outputs; expected {len(names)}: {', '.join(names)}"
        raise DiffersError(text)


def tolerance(dtype: torch.dtype) -> float:
    """Return the relative tolerance of a result that is rounded once or twice to a dtype."""
    return 4 * torch.finfo(dtype).eps if dtype != torch.float32 else 1e-4
