# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Outputs against their reference: what differs is named with its first coordinate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

# Rows that are compared at a time: a float64 copy of everything would not fit beside the largest outputs.
_CHUNK_ENTRIES = 1 << 23


class DiffersError(AssertionError):
    """An output is not what the reference says; the message says where first."""


def require_like(name: str, found: torch.Tensor, wanted: torch.Tensor, *, dtype: bool = True) -> None:
    """Require the shape, and unless told otherwise the dtype, of an output.

    Raises:
        DiffersError: another shape or dtype.
    """
    if found.shape != wanted.shape or (dtype and found.dtype != wanted.dtype):
        text = f"{name} is {found.dtype} {list(found.shape)}; expected {wanted.dtype} {list(wanted.shape)}"
        raise DiffersError(text)


def require_equal(name: str, found: torch.Tensor, wanted: torch.Tensor, *, dtype: bool = True) -> None:
    """Require an output exactly; `dtype=False` lets integers be of another width.

    Raises:
        DiffersError: an entry, the shape or the dtype differs.
    """
    require_like(name, found, wanted, dtype=dtype)
    if torch.equal(found, wanted.to(found.dtype)):
        return
    where = (found != wanted.to(found.dtype)).nonzero()[0].tolist()
    text = f"{name}{where} is {found[tuple(where)].item()}; expected {wanted[tuple(where)].item()}"
    raise DiffersError(text)


def require_close(
    name: str, found: torch.Tensor, wanted: torch.Tensor, *, relative: float, absolute: float = 0.0
) -> None:
    """Require an output of floats within |wanted| · relative + absolute; NaN is never close.

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
    if not found.numel():
        return
    rows = max(1, _CHUNK_ENTRIES // max(1, found[0].numel()))
    for start in range(0, len(found), rows):
        mine, theirs = found[start : start + rows].float(), wanted[start : start + rows].float()
        wrong = ~((mine - theirs).abs() <= theirs.abs().mul_(relative).add_(absolute))
        if wrong.any():
            where = wrong.nonzero()[0].tolist()
            shown = [start + where[0], *where[1:]]
            text = f"{name}{shown} is {mine[tuple(where)].item():.6g}; expected {theirs[tuple(where)].item():.6g}"
            raise DiffersError(text)


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
