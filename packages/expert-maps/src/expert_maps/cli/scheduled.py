# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What `diff --schedule` tells of the way from one map to another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from expert_maps.cli.output import as_size, note
from expert_maps.migration import Schedule, schedule
from expert_maps.simulation.settings import Costs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expert_maps._layers import LayerNames
    from expert_maps.placement import Placement


@dataclass(frozen=True)
class Way:
    """A schedule with what it takes.

    Attributes:
        schedule: the schedule.
        expert_bytes: of an expert; None where nobody said it.
        bandwidth: GB/s of a rank.
    """

    schedule: Schedule
    expert_bytes: int | None
    bandwidth: float

    @classmethod
    def of(
        cls,
        old: Placement,
        new: Placement,
        nodes: int | None,
        expert_bytes: int | None,
        bandwidth: float | None,
    ) -> Way:
        """Make a schedule; a bandwidth that is taken because none was said is named.

        Raises:
            ExpertMapsError: the nodes do not divide the ranks, or no network has such a bandwidth.
        """
        usual = Costs()
        price = Costs(
            usual.expert_bytes if expert_bytes is None else expert_bytes,
            usual.bandwidth if bandwidth is None else bandwidth,
        )
        if bandwidth is None and expert_bytes is not None:
            note(f"--bandwidth {usual.bandwidth:g} GB/s taken; give your network's")
        return cls(schedule(old, new, num_nodes=1 if nodes is None else nodes), expert_bytes, price.bandwidth)

    @property
    def seconds(self) -> float | None:
        """How long the rounds take; None without the bytes of an expert."""
        if self.expert_bytes is None:
            return None
        return self.schedule.seconds(self.expert_bytes, self.bandwidth)

    def lines(self) -> list[str]:
        """Return it in words."""
        if self.expert_bytes is None:
            return [self.schedule.summary(), "how long that takes is told with --expert-bytes or --model"]
        sent, crossing = (
            as_size(count * self.expert_bytes)
            for count in (self.schedule.num_transfers, int(self.schedule.between_nodes.sum()))
        )
        nodes = f", {crossing} between nodes" if self.schedule.num_nodes > 1 else ""
        took = (
            f"{sent} sent{nodes}: {self.seconds:.3g} s at {self.bandwidth:g} GB/s a rank; "
            f"room for one more expert on each rank, {as_size(self.expert_bytes)}"
        )
        return [self.schedule.summary(), took]

    def told(self, layers: Sequence[int]) -> dict[str, object]:
        """Return it for JSON, with the transfers and copies of some layers."""
        found = self.schedule
        columns = (
            found.round,
            found.layer,
            found.expert,
            *self._ends(found.source),
            *self._ends(found.target),
        )
        keys = ("round", "layer", "expert", "source_rank", "source_slot", "target_rank", "target_slot")
        rows = np.stack(columns, axis=1)[np.isin(found.layer, layers)]
        local = found.local[np.isin(found.local[:, 0], layers)]
        copies = np.stack(
            [local[:, 0], self._ends(local[:, 1])[0], *(self._ends(local[:, i])[1] for i in (1, 2))], axis=1
        )
        return {
            "rounds": found.num_rounds,
            "lower_bound": found.lower_bound,
            "num_nodes": found.num_nodes,
            "num_transfers": found.num_transfers,
            "between_nodes": int(found.between_nodes.sum()),
            "bytes": None if self.expert_bytes is None else found.bytes(self.expert_bytes),
            "spare_bytes_per_rank": self.expert_bytes,
            "bandwidth_gb_per_s": self.bandwidth,
            "seconds": self.seconds,
            "transfers": [dict(zip(keys, row, strict=True)) for row in rows.tolist()],
            "copies": [
                dict(zip(("layer", "ep_rank", "source_slot", "target_slot"), row, strict=True))
                for row in copies.tolist()
            ],
        }

    def _ends(self, slots: np.ndarray[tuple[int], np.dtype[np.int32]]) -> tuple[np.ndarray, np.ndarray]:
        """Return the ranks of slots, and their places on them."""
        before = self.schedule.before
        return before.slot_rank[slots], before.slot_index[slots]

    def print_rounds(self, layers: Sequence[int], names: LayerNames) -> None:
        """Print the transfers of some layers, round after round."""
        from expert_maps.cli.tables import print_table

        found = self.schedule
        shown = np.flatnonzero(np.isin(found.layer, layers)).tolist()
        (source, source_slot), (target, target_slot) = self._ends(found.source), self._ends(found.target)
        rows = [
            [
                str(found.round[i]),
                *names.cells(int(found.layer[i])),
                str(found.expert[i]),
                f"{source[i]}:{source_slot[i]}",
                f"{target[i]}:{target_slot[i]}",
            ]
            for i in shown
        ]
        if rows:
            columns = ["round", *names.columns, "expert", "from rank:slot", "to rank:slot"]
            print_table("transfers", columns, rows)
