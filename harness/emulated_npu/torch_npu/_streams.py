# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Streams and events: everything has happened when the call returns, so there is nothing to wait for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from typing_extensions import Self


class Stream:
    """A stream."""

    def __new__(cls, *_: object, **__: object) -> Self:
        """Make one; torch's base class would ask the device."""
        return object.__new__(cls)

    def __init__(self, device: object = None, priority: int = 0, **_: object) -> None:  # noqa: ARG002 - torch's signature
        """Be on the device 0: streams of all devices are the same one."""
        self.device = torch.device("npu", 0)
        self.npu_stream = self.cuda_stream = self.stream_id = 0

    def synchronize(self) -> None:
        """Wait for nothing."""

    def wait_stream(self, stream: Stream) -> None:
        """Wait for nothing."""

    def wait_event(self, event: Event) -> None:
        """Wait for nothing."""

    def record_event(self, event: Event | None = None) -> Event:
        """Return an event that has happened."""
        event = event or Event()
        event.record(self)
        return event

    def query(self) -> bool:
        """Return that all is done."""
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class Event:
    """An event: the time at which it was recorded."""

    def __init__(self, *_: object, **__: object) -> None:
        """Be recorded now."""
        self._at = time.perf_counter()

    def record(self, stream: Stream | None = None) -> None:  # noqa: ARG002 - torch's signature
        """Take the time."""
        self._at = time.perf_counter()

    def wait(self, stream: Stream | None = None) -> None:
        """Wait for nothing."""

    def reset(self, stream: Stream | None = None) -> None:
        """Do nothing."""

    def synchronize(self) -> None:
        """Wait for nothing."""

    def query(self) -> bool:
        """Return that it has happened."""
        return True

    def elapsed_time(self, other: Event) -> float:
        """Return the milliseconds from this one to the other."""
        return (other._at - self._at) * 1e3
