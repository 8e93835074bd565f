# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What goes on beside a `with` block, on a thread of its own."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from types import TracebackType

    _Own = TypeVar("_Own", bound="Background")  # Python 3.10 has no Self


class Background:
    """Begins with a `with` block and is waited for at its end."""

    def __init__(self, name: str) -> None:
        """Name the thread."""
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self: _Own) -> _Own:  # noqa: PYI019 - as above
        """Begin."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        self._ends.set()
        self._thread.join()

    def _run(self) -> None:
        """Do what is to be done, until `_ends` is set."""
        raise NotImplementedError
