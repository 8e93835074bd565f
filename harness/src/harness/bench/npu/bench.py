# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What is timed: each op at each shape, all that do it checked first, then timed in turns in one process."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from harness.bench.npu.checking import DiffersError
from harness.bench.npu.inputs import Case, cases_of, fits, variants_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from harness.bench.npu.devices import Device, Kind
    from harness.bench.npu.inputs import Family, Implementation, Outputs, Run, Tensors, Variant

# A fixed piece of torch's own work that takes its turn too: by it, runs of other days are compared.
YARDSTICK = "yardstick"
_YARDSTICK_BYTES = (1 << 14, 1 << 25)
_YARDSTICK_SIDES = (32, 512)


@dataclass(frozen=True)
class Point:
    """An op at a shape, timed in one way.

    Attributes:
        family: the op.
        case: the shape.
        variant: how it is timed.
    """

    family: Family
    case: Case
    variant: Variant

    @property
    def name(self) -> str:
        """The name of the benchmark: op / model / phase / tokens / variant."""
        return f"{self.case.name}/{self.variant}"

    def describe(self) -> dict[str, object]:
        """Return what a record says of it."""
        return {
            "op": self.family.op,
            "model": self.case.model.name,
            "phase": self.case.phase,
            "tokens": self.case.tokens,
            "variant": self.variant,
            "bytes_moved": self.family.bytes_moved(self.case),
            "flops": self.family.flops(self.case),
        }


def points_of(families: Iterable[Family], kind: Kind) -> list[Point]:
    """Return all points that a device is asked for, case by case."""
    return [
        Point(family, case, variant)
        for family in families
        for case in cases_of(family)
        if fits(family, case, kind)
        for variant in variants_of(family, case, kind)
    ]


def left_out(families: Iterable[Family], kind: Kind) -> list[str]:
    """Return a line for each case that is too large for a device."""
    return [
        f"{case.name}: {family.bytes_moved(case) / 1e6:.0f} MB moved, {family.flops(case) / 1e9:.0f} GFLOP"
        for family in families
        for case in cases_of(family)
        if not fits(family, case, kind)
    ]


@dataclass(frozen=True)
class Pace:
    """How long a point is timed.

    Attributes:
        budget_s: seconds to spend on its rounds, all implementations together.
        least_rounds: rounds, however long they take: of six the extremes hold the median in 97 % of cases.
        most_rounds: rounds, however short they are.
        batch_s: seconds between two readings of the clock where calls are pipelined.
        most_calls: calls between them.
        warm_s: what takes longer is not called once more before it is timed.
    """

    budget_s: float = 0.5
    least_rounds: int = 6
    most_rounds: int = 100
    batch_s: float = 0.005
    most_calls: int = 100
    warm_s: float = 0.005

    def rounds(self, seconds: float) -> int:
        """Return how often to go round where a round takes so long."""
        return max(self.least_rounds, min(self.most_rounds, math.ceil(self.budget_s / max(seconds, 1e-9))))

    def calls(self, seconds: float) -> int:
        """Return how many calls to pipeline, two at least."""
        return max(2, min(self.most_calls, math.ceil(self.batch_s / max(seconds, 1e-9))))


@dataclass
class Ready:
    """A case on a device: what may be timed, and what may not.

    Attributes:
        runs: implementation → what is timed; each has given the right outputs.
        faults: implementation → what is wrong with it.
        tensors: the inputs, on the device.
        digests: of the inputs' content, before anything ran.
    """

    runs: dict[Implementation, Run] = field(default_factory=dict)
    faults: dict[Implementation, str] = field(default_factory=dict)
    tensors: Tensors = field(default_factory=dict)
    digests: Mapping[str, int] = field(default_factory=dict)


class Bench:
    """Makes inputs once a case, checks each implementation once, and times them in turns."""

    def __init__(self, device: Device, pace: Pace | None = None) -> None:
        """Time on a device."""
        self.device = device
        self.pace = pace or Pace()
        self._case: Case | None = None
        self._ready = Ready()

    def ready(self, family: Family, case: Case) -> Ready:
        """Return what may be timed of a case; cases should follow one another, as the last one's inputs are kept."""
        if case != self._case:
            # The last case's are let go first: two of the largest do not fit.
            self._case, self._ready = None, Ready()
            self._ready = self._check_all(family, case)
            self._case = case
        return self._ready

    def _check_all(self, family: Family, case: Case) -> Ready:
        inputs = family.make(case)
        wanted = family.reference(case, inputs)
        tensors = {name: tensor.to(self.device.kind) for name, tensor in inputs.items()}
        ready = Ready(tensors=tensors, digests=digests(tensors))
        for implementation in family.implementations(self.device.kind):
            try:
                ready.runs[implementation] = self._check(
                    family, case, implementation, (inputs, wanted, ready)
                )
            except Exception as error:  # noqa: BLE001 - an implementation may fail in any way, the others go on
                text = "" if isinstance(error, DiffersError) else f"{type(error).__name__}: "
                ready.faults[implementation] = text + (str(error).splitlines() or [""])[0]
                if digests(tensors) != ready.digests:
                    # What it wrote must not be the next one's input.
                    ready.tensors = tensors = {
                        name: value.to(self.device.kind) for name, value in family.make(case).items()
                    }
        return ready

    def _check(
        self, family: Family, case: Case, implementation: Implementation, made: tuple[Tensors, Outputs, Ready]
    ) -> Run:
        """Check a run of its own, so that counters which the timed one adds to start at zero."""
        inputs, wanted, ready = made
        family.check(case, inputs, implementation.outputs(case, ready.tensors), wanted)
        require_unwritten(ready)
        return implementation.prepare(case, ready.tensors)

    def time(self, point: Point, benchmark: Any) -> dict[str, object]:  # noqa: ANN401 - pytest-benchmark's fixture
        """Time a point by pytest-benchmark: what serves is its benchmark, all others take their turns in its setup.

        Args:
            point: all of whose implementations are right.
            benchmark: the fixture, not used yet.

        Returns:
            What goes beside the fixture's own figures: who served, and seconds a call of each other, by round.

        Raises:
            DiffersError: an input was written to while it was timed.
        """
        ready = self.ready(point.family, point.case)
        turns = Turns(self.device, point, ready.runs, self.pace)
        rounds = turns.estimate()
        benchmark.pedantic(turns.served, setup=turns.others, rounds=rounds, warmup_rounds=1)
        require_unwritten(ready)
        return turns.report()


class Turns:
    """All that does an op, timed one after another, round by round: what slows the machine slows all of them."""

    def __init__(self, device: Device, point: Point, runs: Mapping[Implementation, Run], pace: Pace) -> None:
        """Take turns on a device; `runs` has one that serves."""
        self._device, self._point, self._pace = device, point, pace
        self._runs = {one.name: run for one, run in runs.items()}
        self._abouts = {one.name: {"about": one.about, "is_peer": one.is_peer} for one in runs}
        self._serves = next(one.name for one in runs if one.serves)
        self._runs[YARDSTICK] = yardstick(point, device)
        self._calls, self._long, self._fixed = 1, False, 1
        self._seconds: dict[str, list[float]] = {name: [] for name in self._runs if name != self._serves}
        self._round = 0

    def estimate(self) -> int:
        """Call each once, which also warms up, and return how many rounds there is time for."""
        once = {}
        for name, run in self._runs.items():
            self._device.seconds(run)
            once[name] = self._device.seconds(run)
        if self._point.variant == "pipelined":
            self._calls = self._pace.calls(once[self._serves])
        self._long = max(once.values()) > self._pace.warm_s
        # As long as what serves: what else the machine does then interrupts both alike.
        self._fixed = max(1, round(self._calls * once[self._serves] / max(once[YARDSTICK], 1e-9)))
        once[YARDSTICK] *= self._fixed
        flush = self._device.seconds(self._device.flush) if self._point.variant == "cold" else 0.0
        a_call = sum(once.values()) * (self._calls if self._calls > 1 else 1 if self._long else 2)
        return self._pace.rounds(a_call + flush * len(once))

    def others(self) -> None:
        """Give each of the others its turn; whoever was first is last in the next round."""
        names = list(self._seconds)
        first = self._round % len(names)
        self._round += 1
        for name in names[first:] + names[:first]:
            run = self._runs[name]
            self._before(run)
            calls = self._fixed if name == YARDSTICK else self._calls
            self._seconds[name].append(self._device.seconds(run, calls) / calls)
        self._before(self._runs[self._serves])

    def served(self) -> None:
        """Run what serves, as often as the others."""
        run = self._runs[self._serves]
        for _ in range(self._calls):
            run()

    def _before(self, run: Run) -> None:
        if self._point.variant == "cold":
            self._device.flush()
        elif not self._long and self._calls == 1:
            run()

    def report(self) -> dict[str, object]:
        """Return who served and the others' seconds, without those of the round that warmed up."""
        seconds = {name: values[1:] for name, values in self._seconds.items()}
        return {
            "serves": self._serves,
            "calls": self._calls,
            "clock": self._device.clock_name,
            "implementations": self._abouts,
            YARDSTICK: seconds.pop(YARDSTICK),
            "turns": seconds,
        }


def yardstick(point: Point, device: Device) -> Callable[[], Outputs]:
    """Return what no change of ours or of vLLM's touches: a product where a point's op multiplies, a copy elsewhere."""
    described = point.family.flops(point.case), point.family.bytes_moved(point.case)
    if described[0]:
        side = min(max(round((described[0] / 64) ** (1 / 3)), _YARDSTICK_SIDES[0]), _YARDSTICK_SIDES[1])
        one = torch.ones(side, side, dtype=point.case.dtype, device=device.kind)
        other = torch.empty_like(one)
        return lambda: (torch.mm(one, one, out=other),)
    size = min(max(described[1] // 2, _YARDSTICK_BYTES[0]), _YARDSTICK_BYTES[1])
    source = torch.zeros(size // 4, dtype=torch.int32, device=device.kind)
    target = torch.empty_like(source)
    return lambda: (target.copy_(source),)


def digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Return a checksum of each tensor's content, whoever wrote it and by whatever means."""
    found = {}
    for name, tensor in tensors.items():
        # The storage as it lies: a view of a gigabyte need not be copied into its order.
        flat = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())
        found[name] = zlib.crc32(flat.cpu().numpy().data)
    return found


def require_unwritten(ready: Ready) -> None:
    """Require that the inputs hold what they held at first.

    Raises:
        DiffersError: one does not.
    """
    now = digests(ready.tensors)
    if changed := [name for name, digest in ready.digests.items() if now[name] != digest]:
        msg = f"it wrote to its input {', '.join(changed)}"
        raise DiffersError(msg)
