# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The device that is timed: what it is, its clock, and how its cache is emptied."""

from __future__ import annotations

import importlib
import importlib.util
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from harness.record.provenance import processor

if TYPE_CHECKING:
    from collections.abc import Callable

Kind = Literal["npu", "cuda", "cpu"]
KINDS: tuple[Kind, ...] = ("npu", "cuda", "cpu")

MIB = 1 << 20
# On an accelerator: larger than any last-level cache.
_ACCELERATOR_FLUSH = 512 * MIB


class NoDeviceError(RuntimeError):
    """The device that was asked for is not here."""


class EventClock:
    """Seconds between two calls, by two events on the device's stream: what the host does meanwhile does not count.

    The first call waits for the device, so that work of before is not counted; the launch of the first kernel is.
    """

    def __init__(self, backend: Any) -> None:  # noqa: ANN401 - torch.cuda or torch.npu
        """Time on a backend's current stream."""
        self._backend = backend
        self._start: Any = None

    def __call__(self) -> float:
        """Return 0, then the seconds since, and so on."""
        event = self._backend.Event(enable_timing=True)
        if self._start is None:
            self._backend.synchronize()
            event.record()
            self._start = event
            return 0.0
        event.record()
        event.synchronize()
        start, self._start = self._start, None
        return float(start.elapsed_time(event)) / 1e3

    def restart(self) -> None:
        """Forget a first call whose second never came."""
        self._start = None


@dataclass
class Device:
    """A device to time on.

    Attributes:
        kind: also the name of torch's device.
        name: as its maker says.
        clock: called before and after what is timed; the difference is in seconds.
        cache_bytes: the size of its last-level cache, as far as that is known.
    """

    kind: Kind
    name: str
    clock: Callable[[], float] = time.process_time
    cache_bytes: int = 32 * MIB
    _flushed: torch.Tensor | None = field(default=None, repr=False)

    @property
    def clock_name(self) -> str:
        """What a record says of the clock."""
        if isinstance(self.clock, EventClock):
            return "events on the device"
        # One thread is pinned; what else a shared machine runs in between is nobody's time.
        return "the process' CPU time"

    def seconds(self, run: Callable[[], object], calls: int = 1) -> float:
        """Return the seconds of some calls."""
        if isinstance(self.clock, EventClock):
            self.clock.restart()
        start = self.clock()
        for _ in range(calls):
            run()
        return self.clock() - start

    @property
    def slug(self) -> str:
        """The name of its folder of records, such as `cpu-amd-epyc-7r13`."""
        return f"{self.kind}-{_slug(self.name)}"

    def flush(self) -> None:
        """Push everything else out of the caches, by writing to a buffer larger than they are."""
        if self._flushed is None:
            size = 2 * self.cache_bytes if self.kind == "cpu" else _ACCELERATOR_FLUSH
            self._flushed = torch.zeros(size // 4, dtype=torch.int32, device=self.kind)
        self._flushed.add_(1)


def detect(kind: str = "auto") -> Device:
    """Return the device to time: an NPU before a GPU before the CPU.

    Args:
        kind: "auto", or the one that it must be.

    Raises:
        NoDeviceError: it is not here, or there is no such kind.
    """
    if kind not in {"auto", *KINDS}:
        msg = f"device is {kind!r}; expected auto, {', '.join(KINDS)}"
        raise NoDeviceError(msg)
    for name in KINDS if kind == "auto" else (kind,):
        backend = _backend(name)
        if name == "cpu":
            return Device("cpu", processor(), cache_bytes=_last_level_cache())
        if backend is not None:
            return Device("npu" if name == "npu" else "cuda", backend.get_device_name(0), EventClock(backend))
    msg = f"device is {kind!r}, but torch finds none; expected one of the kinds that are here, or auto"
    raise NoDeviceError(msg)


def first_line(device: Device) -> str:
    """Say on what is timed, and with what it is compared; the first line that the benchmark prints."""
    where = f"{device.name} ({device.slug})"
    if device.kind == "npu":
        return f"NPU: timing torch_npu's ops beside the plain-torch twins on {where}"
    versions = "this project's implementations for a CPU and vLLM's"
    if device.kind == "cuda":
        versions = "this project's implementations for a GPU and vLLM's"
    return f"NO NPU HERE: nothing of torch_npu is timed; timing {versions} on {where}"


def _backend(name: str) -> Any | None:  # noqa: ANN401 - a module of torch's or torch_npu's
    """Return the module that drives an accelerator, None where there is none."""
    if name == "npu" and not hasattr(torch, "npu"):
        # torch loads torch_npu by itself unless it is told not to.
        try:
            importlib.import_module("torch_npu")
        except (ImportError, OSError, RuntimeError):
            return None
    backend = getattr(torch, name, None)
    return backend if backend is not None and backend.is_available() else None


def _last_level_cache() -> int:
    """Return the largest cache's bytes, as Linux lists them; 32 MiB where it does not."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        found = re.fullmatch(r"(\d+)([KM])", path.read_text(encoding="ascii").strip())
        if found:
            sizes.append(int(found[1]) * (1024 if found[2] == "K" else MIB))
    return max(sizes, default=32 * MIB)


def _slug(name: str) -> str:
    """Return the name in lower case, words joined by dashes, without what all of a maker's names have."""
    text = re.sub(r"\((?:r|tm|c)\)", " ", name.lower().partition(" @ ")[0])
    text = re.sub(r"\b(?:processor|cpu|\d+-core)\b", " ", text)
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-") or "unknown"
