# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What `plan` and `evaluate` print of activated slots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from expert_maps._layers import LayerNames
    from expert_maps.activation import Activation, Batch
    from expert_maps.layered import AnyPlacement
    from expert_maps.load import ExpertLoad


def activation_lines(found: Activation, before: AnyPlacement, trace: ExpertLoad) -> list[str]:
    """Return what a plan by activated slots is worth, beside the placement before it and the plan by tokens."""
    from expert_maps.activation import activated

    was = activated(before, trace, found.batch).max(axis=1)
    return [
        f"batch: {found.batch.describe()}",
        f"activated slots of the busiest rank, mean over layers: {was.mean():.3f} before, {found.busiest.mean():.3f} after, {found.by_tokens.mean():.3f} planned by tokens",
        f"gap to the proved lower bound, activated slots: {found.overall_gap:.3%}",
    ]


def activation_document(found: Activation) -> dict[str, object]:
    """Return what `--json` tells of it."""
    return {
        "objective": "activated",
        "batch": {"tokens": found.batch.tokens, "top_k": found.batch.top_k, "copies": found.batch.copies},
        "activated": found.busiest.tolist(),
        "activated_by_tokens": found.by_tokens.tolist(),
        "activated_lower_bound": found.lower_bound.tolist(),
        "activated_gap": found.gap.tolist(),
    }


@dataclass(frozen=True)
class Counts:
    """What a batch activates under a placement, if that was asked for.

    Attributes:
        batch: what a batch is; None where nobody asked.
        of_rank: float64 [L, R], expected activated slots.
    """

    batch: Batch | None = None
    of_rank: NDArray[np.float64] | None = None

    @property
    def document(self) -> dict[str, object]:
        """What `--json` tells of it."""
        return {} if self.of_rank is None else {"activated": self.of_rank.tolist()}

    def lines(self, names: LayerNames) -> list[str]:
        """Return what is printed of it."""
        if self.batch is None or self.of_rank is None:
            return []
        busiest = self.of_rank.max(axis=1)
        worst = int(busiest.argmax())
        return [
            f"batch: {self.batch.describe()}",
            f"activated slots of the busiest rank: mean over layers {busiest.mean():.3f}, most {busiest[worst]:.3f} in {names.one(worst)}; mean of all ranks {self.of_rank.mean():.3f}",
        ]
