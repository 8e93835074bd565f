# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""One input under limits: read, refused as documented, or a finding."""

from __future__ import annotations

import contextlib
import resource
import signal
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from expert_maps import ExpertMapsError
from expert_maps.errors import PlacementError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from harness.fuzz.targets import Target

MOST_SECONDS = 1.0
MOST_BYTES = 2**30
# After so many seconds of waiting, such as for a pipe that nobody writes, or of computing.
_GIVEN_UP = 30.0
# Of a message: the longest list violations and layers, in lines.
_LONGEST_MESSAGE = 20_000
_PROJECT = ("expert_maps", "vllm_ascend_moe", "harness")


class _GivenUpError(BaseException):
    """An input that takes too long; not to be caught by what reads it."""


@dataclass(frozen=True)
class Finding:
    """What must not be.

    Attributes:
        target: the way in.
        kind: the same for all inputs that show the same fault.
        text: what there is to see.
        content: the input.
    """

    target: str
    kind: str
    text: str
    content: bytes


@dataclass(frozen=True)
class Judged:
    """How an input was taken.

    Attributes:
        is_read: whether it was read; else refused as documented.
        finding: what is wrong with that; None if nothing.
    """

    is_read: bool
    finding: Finding | None = None


def limit_memory() -> None:
    """Let this process take a GiB more than it has."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    taken = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (taken + MOST_BYTES, hard))


def prepare(target: Target) -> None:
    """Read what is valid, without limits: modules are imported at the first call."""
    for content in target.seeds:
        with contextlib.suppress(Exception):  # is a finding later
            target.run(content)


def judge(target: Target, content: bytes) -> Judged:
    """Read an input, and look at how that ends."""

    def found(kind: str, text: str) -> Judged:
        return Judged(is_read=False, finding=Finding(target.name, kind, text, content))

    start = time.process_time()
    is_read = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # of NumPy: a number that is none
            with _given_up():
                target.run(content)
        is_read = True
    except ExpertMapsError as error:
        message = error.summary if isinstance(error, PlacementError) else str(error)
        if not all(line.isprintable() for line in message.split("\n")) or len(message) > _LONGEST_MESSAGE:
            return found(f"message {type(error).__name__} {_place(error)}", repr(message)[:2000])
    except _GivenUpError as error:
        return found(f"no end {_place(error)}", traceback.format_exc()[-2000:])
    except Exception as error:  # noqa: BLE001 - what is looked for
        return found(f"{type(error).__name__} {_place(error)}", traceback.format_exc()[-2000:])
    seconds = time.process_time() - start
    if seconds > MOST_SECONDS:
        return found("slow", f"{seconds:.1f} s of a core; expected {MOST_SECONDS:g} at most")
    return Judged(is_read)


def _place(error: BaseException) -> str:
    """Name the innermost line of the project's own."""
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] in _PROJECT and not module.startswith("harness.fuzz"):
            place = f"{module}:{frame.f_code.co_name}:{line}"
    return place


class _given_up:  # noqa: N801 - a context manager, of few instructions
    def __enter__(self) -> None:
        signal.signal(signal.SIGALRM, _give_up)
        signal.setitimer(signal.ITIMER_REAL, _GIVEN_UP)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _give_up(_signal: int, _frame: FrameType | None) -> None:
    raise _GivenUpError


def each_kind(findings: Iterator[Finding]) -> dict[str, Finding]:
    """Return the shortest input of each fault."""
    shortest: dict[str, Finding] = {}
    for finding in findings:
        name = f"{finding.target} {finding.kind}"
        known = shortest.get(name)
        if known is None or len(finding.content) < len(known.content):
            shortest[name] = finding
    return shortest
