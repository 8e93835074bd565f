# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What all ranks must agree on before they serve."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from expert_maps import ExpertMapsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.distributed import ProcessGroup


class DisagreementError(ExpertMapsError):
    """Ranks were given different placements or hold different weights; the ranks are named."""


def gather(value: object, group: ProcessGroup | None) -> list[object]:
    """Return every rank's value, in the order of the group's ranks; without a group this rank's alone."""
    if group is None:
        return [value]
    values: list[object] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(values, value, group=group)
    return values


def require_agreement(
    what: str, value: str | None, detail: str, group: ProcessGroup | None, error: str | None = None
) -> None:
    """Compare a value over ranks; every rank raises the same error, so that none is left waiting.

    Args:
        what: its name, for the message.
        value: this rank's.
        detail: where this rank has it from.
        group: of processes on the CPU.
        error: what kept this rank from having one; then all ranks stop.

    Raises:
        DisagreementError: a rank has an error or another value.
    """
    entries = gather((value, detail, error), group)
    failed = [f"rank {rank}: {entry[2]}" for rank, entry in enumerate(entries) if entry[2] is not None]  # type: ignore[index]
    if failed:
        raise DisagreementError("; ".join(failed))
    by_value: dict[tuple[str, str], list[int]] = {}
    for rank, entry in enumerate(entries):
        by_value.setdefault((str(entry[0]), entry[1]), []).append(rank)  # type: ignore[index]
    if len({value for value, _ in by_value}) > 1:
        parts = [f"{_ranks(ranks)} {shown[:12]} ({origin})" for (shown, origin), ranks in by_value.items()]
        msg = f"ranks have different {what}: {'; '.join(parts)}; expected the same on every rank"
        raise DisagreementError(msg)


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
