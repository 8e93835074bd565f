# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Memory and descriptors of a server's processes, sampled from /proc while it serves; and whether they grow.

A process's memory is what it has for itself, anonymous and shared: files that are mapped come and go with what else runs on
the machine. Whether it grows is told by Theil and Sen's slope, the median over all pairs of samples, which a single jump does
not move.
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from harness.chaos.background import Background

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_SECONDS = 1.0
_ENDING_SECONDS, _POLL_SECONDS = 15.0, 0.1
_KIB_PER_MIB = 1024
# Over the time that was watched.
MOST_MIB, MOST_DESCRIPTORS = 8.0, 4.0
# For its first minutes a server takes memory for each size of a step that it meets: what is watched for less than these
# seconds may grow by that.
SHORT_SECONDS, MOST_SHORT_MIB = 600.0, 256.0
# Below this there is no slope.
_FEWEST = 10


@dataclass
class Samples:
    """Of one process.

    Attributes:
        name: its command's.
        seconds: since the first sample of any, one by one.
        mib: memory then.
        descriptors: that are open then.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    mib: list[float] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Growth:
    """How one process went, after warm-up.

    Attributes:
        name: its command's.
        seconds: that it was watched.
        mib: memory at the end, the median of the last tenth.
        mib_grown: the slope times the seconds.
        descriptors: open at the end, likewise.
        descriptors_grown: likewise.
        samples: how many.
    """

    name: str
    seconds: float
    mib: float
    mib_grown: float
    descriptors: float
    descriptors_grown: float
    samples: int

    def problems(self) -> list[str]:
        """Say what grew by more than noise."""
        found = []
        most_mib = MOST_MIB if self.seconds >= SHORT_SECONDS else MOST_SHORT_MIB
        for what, grown, most in (
            ("MiB", self.mib_grown, most_mib),
            ("descriptors", self.descriptors_grown, MOST_DESCRIPTORS),
        ):
            if not grown <= most:
                found.append(
                    f"{self.name} grew by {grown:.1f} {what} in {self.seconds:.0f} s; expected {most:g} at most"
                )
        return found


def growth(samples: Samples, warm_up: float) -> Growth | None:
    """Fit a line through a process's samples; None where they are too few.

    Args:
        samples: of the process.
        warm_up: seconds that are left out.
    """
    seconds, mib, descriptors = (
        np.array(part, dtype=np.float64) for part in (samples.seconds, samples.mib, samples.descriptors)
    )
    kept = seconds >= warm_up
    if kept.sum() < _FEWEST:
        return None
    watched = float(np.ptp(seconds[kept]))
    last = max(1, int(kept.sum()) // 10)
    return Growth(
        samples.name,
        watched,
        float(np.median(mib[-last:])),
        _slope(seconds[kept], mib[kept]) * watched,
        float(np.median(descriptors[-last:])),
        _slope(seconds[kept], descriptors[kept]) * watched,
        int(kept.sum()),
    )


def _slope(seconds: Sequence[float] | np.ndarray, values: np.ndarray) -> float:
    return float(stats.theilslopes(values, seconds).slope)


def below(process: int) -> list[int]:
    """Return a process and all that it has started, by /proc; those that end meanwhile are left out."""
    found = [process]
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in (task / "children").read_text(encoding="ascii").split():
                found += below(int(child))
    return found


def name_of(process: int) -> str:
    """Return what a process calls itself, or which module it runs; vLLM names its own by what they are."""
    words = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
    if "-m" in words[1:-1]:
        return words[words.index("-m") + 1][:60]
    return words[0].rpartition("/")[2][:60] or f"process {process}"


def _mib(process: int) -> float:
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    own = [int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:"))]
    return sum(own) / _KIB_PER_MIB


def still_there(processes: Iterable[int], seconds: float = _ENDING_SECONDS) -> list[int]:
    """Return those that run still, when they have had time to end.

    Args:
        processes: their numbers.
        seconds: that time.
    """
    deadline = time.monotonic() + seconds
    while (found := [one for one in processes if _runs(one)]) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return found


def _runs(process: int) -> bool:
    with contextlib.suppress(OSError):
        # After the name in brackets; a zombie does not run.
        status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        return status.rpartition(")")[2].split()[0] not in {"Z", "X"}
    return False


class Watch(Background):
    """Samples a process and all below it for the time of a `with` block.

    Attributes:
        samples: process id → its samples.
    """

    def __init__(self, process: int) -> None:
        """Watch from `__enter__` on.

        Args:
            process: the topmost.
        """
        self.samples: dict[int, Samples] = {}
        self._process = process
        self._begin = 0.0
        super().__init__("watch")

    def write(self, path: Path) -> None:
        """Write all samples as JSON, to be looked at where something has grown."""
        told = [{"process": process, **asdict(samples)} for process, samples in self.samples.items()]
        path.write_text(json.dumps(told) + "\n", encoding="utf-8")

    def _run(self) -> None:
        self._begin = time.monotonic()
        while not self._ends.wait(_SECONDS):
            for process in below(self._process):
                # It may end at any moment.
                with contextlib.suppress(OSError):
                    self._sample(process)

    def _sample(self, process: int) -> None:
        mib = _mib(process)
        descriptors = len(list(Path(f"/proc/{process}/fd").iterdir()))
        samples = self.samples.setdefault(process, Samples(name_of(process)))
        samples.seconds.append(time.monotonic() - self._begin)
        samples.mib.append(mib)
        samples.descriptors.append(descriptors)


__all__ = ["Growth", "Samples", "Watch", "below", "growth", "still_there"]
