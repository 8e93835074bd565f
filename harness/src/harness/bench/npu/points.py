# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What is timed, point by point, and the check that comes before any time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.bench.npu.cases import Case, Selection, cases_of, fits, fitting, variants_of
from harness.bench.npu.checking import DiffersError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import torch

    from harness.bench.npu.cases import Family, Implementation, Outputs, Run, Tensors, Variant
    from harness.bench.npu.devices import Device, Kind

# The copy is timed at either end of a run: a machine that became busy shows.
COPY_TIMES = ("start", "end")


@dataclass(frozen=True)
class Point:
    """One implementation of one case, timed in one way.

    Attributes:
        family: the op.
        case: the shape.
        implementation: who does it.
        variant: how it is timed.
    """

    family: Family
    case: Case
    implementation: Implementation
    variant: Variant

    @property
    def name(self) -> str:
        """The name of the benchmark: op / implementation / model / phase / tokens / variant."""
        model, phase, tokens = self.case.model.name, self.case.phase, self.case.tokens
        return f"{self.family.op}/{self.implementation.name}/{model}/{phase}/{tokens}/{self.variant}"

    def describe(self) -> dict[str, object]:
        """Return what a record says of it."""
        return {
            "op": self.family.op,
            "implementation": self.implementation.name,
            "about": self.implementation.about,
            "is_peer": self.implementation.is_peer,
            "model": self.case.model.name,
            "phase": self.case.phase,
            "tokens": self.case.tokens,
            "variant": self.variant,
            "bytes_moved": self.family.bytes_moved(self.case),
            "flops": self.family.flops(self.case),
        }


def points_of(families: Iterable[Family], selection: Selection, kind: Kind) -> list[Point]:
    """Return all points of a selection that a device is asked for, case by case."""
    return [
        Point(family, case, implementation, variant)
        for family in families
        for case in fitting(family, selection, kind)
        for implementation in family.implementations(kind)
        for variant in variants_of(family, case, kind)
        if selection.takes(op=case.op, model=case.model.name, tokens=case.tokens, variant=variant)
    ]


def left_out(families: Iterable[Family], selection: Selection, kind: Kind) -> list[str]:
    """Return a line for each case of a selection that is too large for a device."""
    return [
        f"{case.name}: {family.bytes_moved(case) / 1e6:.0f} MB moved, {family.flops(case) / 1e9:.0f} GFLOP"
        for family in families
        for case in cases_of(family, selection)
        if not fits(family, case, kind)
    ]


class Bench:
    """Makes inputs once a case, checks each implementation once, and hands out what may be timed."""

    def __init__(self, device: Device) -> None:
        """Time on a device."""
        self.device = device
        self._case: Case | None = None
        self._tensors: tuple[Tensors, Tensors] = ({}, {})
        self._wanted: Outputs = ()
        self._runs: dict[str, Run | Exception] = {}

    def ready(self, point: Point) -> Run:
        """Return what is timed, after it has given the right outputs.

        Args:
            point: points of one case should follow one another: its inputs are kept until the next case.

        Raises:
            DiffersError: the outputs are not the reference's; the message has the case and the coordinate.
            Exception: whatever the implementation raises.
        """
        if point.case != self._case:
            self._load(point.family, point.case)
        name = point.implementation.name
        if name not in self._runs:
            self._runs[name] = self._verify(point)
        found = self._runs[name]
        if isinstance(found, Exception):
            # Each test gets a traceback of its own: the old one's frames hold tensors.
            raise found.with_traceback(None)
        return found

    def _load(self, family: Family, case: Case) -> None:
        # The last case's are let go first: two of the largest do not fit.
        self._case, self._tensors, self._wanted, self._runs = None, ({}, {}), (), {}
        tensors = family.make(case)
        on_device = {name: tensor.to(self.device.kind) for name, tensor in tensors.items()}
        self._tensors = (tensors, on_device)
        self._wanted = family.reference(case, tensors)
        self._case = case

    def _verify(self, point: Point) -> Run | Exception:
        """Check a run of its own, so that counters which the timed one adds to start at zero."""
        tensors, on_device = self._tensors
        before = _fingerprints(on_device)
        try:
            outputs = point.implementation.prepare(point.case, on_device)()
            self.device.synchronise()
            found = tuple(output.cpu() for output in outputs)
            point.family.check(point.case, tensors, found, self._wanted)
            _require_unwritten(before, _fingerprints(on_device))
            return point.implementation.prepare(point.case, on_device)
        except DiffersError as error:
            return DiffersError(f"{point.case.name}, {point.implementation.name}: {error}")
        except Exception as error:  # noqa: BLE001 - an implementation may fail in any way, the others go on
            return error


def _fingerprints(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Return how often torch knows each tensor to have been written to."""
    return {name: tensor._version for name, tensor in tensors.items()}  # noqa: SLF001 - it has no public name


def _require_unwritten(before: Mapping[str, int], after: Mapping[str, int]) -> None:
    if changed := [name for name in before if after[name] != before[name]]:
        msg = f"it wrote to its input {', '.join(changed)}"
        raise DiffersError(msg)


@dataclass(frozen=True)
class Pace:
    """How long a point is timed.

    Attributes:
        budget_s: seconds to spend on its rounds.
        least_rounds: rounds, however long they take.
        most_rounds: rounds, however short they are.
        batch_s: seconds between two synchronisations where calls are pipelined.
        most_calls: calls between them.
    """

    budget_s: float = 0.15
    least_rounds: int = 5
    most_rounds: int = 100
    batch_s: float = 0.005
    most_calls: int = 100

    def rounds(self, seconds: float) -> int:
        """Return how often to time what takes so long; of what takes over a second three times say enough."""
        if seconds > 1:
            return min(self.least_rounds, 3)
        return max(self.least_rounds, min(self.most_rounds, math.ceil(self.budget_s / max(seconds, 1e-9))))

    def calls(self, seconds: float) -> int:
        """Return how many calls to pipeline, two at least."""
        return max(2, min(self.most_calls, math.ceil(self.batch_s / max(seconds, 1e-9))))


def once(device: Device, run: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    start = device.timer()
    run()
    return device.timer() - start
