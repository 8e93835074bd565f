# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Who looks after the server meanwhile: compares its slots, has the record written, and counts its plans."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from harness.accuracy.server import ServerError
from harness.chaos.background import Background

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.accuracy.server import Server
    from harness.chaos.outcome import Outcome

# Between two looks; requests wait for each.
_LOOK_SECONDS = 5.0
_MOST_PROBLEMS = 10
# So many plans are waited for on a machine that is busy with something else, so much longer at most.
_FEWEST_PLANS, _MOST_OVERTIME_SECONDS = 40, 300.0


class Operator(Background):
    """Begins the chaos, and looks from time to time while a `with` block runs."""

    def __init__(self, server: Server, seed: int, found: Outcome) -> None:
        """Begin the chaos.

        Args:
            server: has just started.
            seed: of the faults.
            found: what is seen is added to it.

        Raises:
            ServerError: it does not answer.
        """
        self._server, self._found = server, found
        # Of a server that the plugin itself has just checked.
        self._experts = [dict(layer) for layer in slots_of(self._call("expert_maps_report", checksums=True))]
        self._call("begin_chaos", seed=seed)
        super().__init__("operator")

    def is_over(self, seconds: float, wanted: float) -> bool:
        """Say whether enough was asked.

        Args:
            seconds: since it began.
            wanted: that it should take.
        """
        plans = sum(self._found.faults[kind] for kind in ("none", "stirred", "raises", "rubbish"))
        # Whoever cannot look any more has nothing to wait for.
        is_enough = plans >= _FEWEST_PLANS or not self._thread.is_alive()
        return seconds >= wanted and (is_enough or seconds >= wanted + _MOST_OVERTIME_SECONDS)

    def look(self) -> None:
        """Compare every slot with the expert that the tables name, and the ranks with each other; count the plans.

        Raises:
            ServerError: the server does not answer.
        """
        reports = self._call("expert_maps_report", checksums=True)
        self._found.looks += 1
        faults = [f"look {self._found.looks}: {fault}" for fault in slot_faults(reports, self._experts)]
        # What is wrong once stays wrong.
        if len(self._found.problems) < _MOST_PROBLEMS:
            self._found.problems += faults
        counts = [Counter(one) for one in self._call("tell_chaos")]
        late = sum(one.pop("late", 0) for one in counts)
        if any(one != counts[0] for one in counts):
            self._found.problems.append(f"ranks count different plans: {[dict(one) for one in counts]}")
        self._found.faults = counts[0] + Counter({"late": late})

    def _run(self) -> None:
        while not self._ends.wait(_LOOK_SECONDS):
            try:
                self.look()
                # In another thread of the worker's, while steps go on.
                self._call("expert_maps_record", action="dump", wait=False)
            except (ServerError, LookupError, TypeError) as error:
                self._found.problems.append(f"a look failed: {type(error).__name__}: {error}")
                return

    def _call(self, method: str, **arguments: object) -> list[dict[str, Any]]:
        """Call a method of every worker's."""
        answer = self._server.post("/collective_rpc", {"method": method, "kwargs": arguments})
        found: list[dict[str, Any]] = answer["results"]
        return found


def slots_of(reports: Sequence[Mapping[str, Any]]) -> list[list[tuple[int, str]]]:
    """Return of every layer what each physical slot should hold, and the checksum of what it does hold.

    Args:
        reports: of all ranks, `vllm_ascend_moe.report.WorkerReport.expert_maps_report`.
    """
    ordered = sorted(reports, key=lambda report: int(report["ep_rank"]))
    return [
        list(zip(row, [one for report in ordered for one in report["slot_checksums"][layer]], strict=True))
        for layer, row in enumerate(ordered[0]["physical_to_logical"])
    ]


def slot_faults(reports: Sequence[Mapping[str, Any]], experts: Sequence[Mapping[int, str]]) -> list[str]:
    """Say where ranks differ, or slots hold something else than the tables name.

    Args:
        reports: of all ranks.
        experts: of every layer each expert's checksum.
    """
    digests = [str(report["digest"])[:12] for report in reports]
    if len(set(digests)) != 1:
        return [f"ranks have different placements: {', '.join(digests)}"]
    return [
        f"slot {slot} of layer {layer} does not hold expert {expert}, which the tables name"
        for layer, slots in enumerate(slots_of(reports))
        for slot, (expert, held) in enumerate(slots)
        if experts[layer].get(expert) != held
    ][:3]


__all__ = ["Operator", "slot_faults", "slots_of"]
