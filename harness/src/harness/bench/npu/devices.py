# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The device that is timed: what it is, how it is waited for, and how its cache is emptied."""

from __future__ import annotations

import importlib
import importlib.util
import platform
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

Kind = Literal["npu", "cuda", "cpu"]
KINDS: tuple[Kind, ...] = ("npu", "cuda", "cpu")

MIB = 1 << 20
# On an accelerator: larger than any last-level cache.
_ACCELERATOR_FLUSH = 512 * MIB
# A copy is timed from memory to memory: the buffers are this many times the last-level cache, or more.
_COPY_CACHES = 4
_LEAST_COPY = 128 * MIB


class NoDeviceError(RuntimeError):
    """The device that was asked for is not here."""


def _return_at_once() -> None:
    """Wait for nothing: a CPU is done when the call returns."""


@dataclass
class Device:
    """A device to time on.

    Attributes:
        kind: also the name of torch's device.
        name: as its maker says.
        synchronise: returns when all work that was started is done.
        clock: seconds.
        cache_bytes: the size of its last-level cache, as far as that is known.
    """

    kind: Kind
    name: str
    synchronise: Callable[[], None] = _return_at_once
    clock: Callable[[], float] = time.perf_counter
    cache_bytes: int = 32 * MIB
    _flushed: torch.Tensor | None = field(default=None, repr=False)

    @property
    def slug(self) -> str:
        """The name of its folder of records, such as `cpu-amd-epyc-7r13`."""
        return f"{self.kind}-{_slug(self.name)}"

    def timer(self) -> float:
        """Wait for the device, then read the clock: started work must not be taken for finished work."""
        self.synchronise()
        return self.clock()

    def flush(self) -> None:
        """Push everything else out of the caches, by writing to a buffer larger than they are."""
        if self._flushed is None:
            size = 2 * self.cache_bytes if self.kind == "cpu" else _ACCELERATOR_FLUSH
            self._flushed = torch.zeros(size // 4, dtype=torch.int32, device=self.kind)
        self._flushed.add_(1)

    @property
    def copy_bytes(self) -> int:
        """The size of a buffer by whose copy the bandwidth is measured."""
        if self.kind != "cpu":
            return _ACCELERATOR_FLUSH
        return max(_LEAST_COPY, _COPY_CACHES * self.cache_bytes)


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
            return Device("cpu", _processor(), cache_bytes=_last_level_cache())
        if backend is not None:
            return Device("npu" if name == "npu" else "cuda", backend.get_device_name(0), backend.synchronize)
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


def _processor() -> str:
    """Return the CPU's name; where that says no model (as on some virtual machines), its numbers too."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    fields = dict(re.findall(r"^([^\t\n:]+?)\s*:\s*(\S.*)$", text.partition("\n\n")[0], re.MULTILINE))
    name = fields.get("model name") or platform.processor() or platform.machine()
    if re.search(r"\d", name.partition(" @ ")[0]):
        return name
    for numbers in (("cpu family", "model"), ("CPU implementer", "CPU part")):
        if all(key in fields for key in numbers):
            return f"{name} {' '.join(f'{key} {fields[key]}' for key in numbers)}"
    return name


def _slug(name: str) -> str:
    """Return the name in lower case, words joined by dashes, without what all of a maker's names have."""
    text = re.sub(r"\((?:r|tm|c)\)", " ", name.lower().partition(" @ ")[0])
    text = re.sub(r"\b(?:processor|cpu|\d+-core)\b", " ", text)
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-") or "unknown"
