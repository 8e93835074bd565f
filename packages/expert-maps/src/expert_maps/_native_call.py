# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Calls of the compiled library, during which Ctrl-C is heard."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# Layers times slots squared, below which a call ends within a moment; a thread takes a tenth of a millisecond.
_SHORT = 2**18


def call(function: Callable[..., int], *arguments: object, keep: Iterable[object], work: int) -> int:
    """Call a function of the library and return its status.

    Python tells the main thread of a signal only between its own steps, so a long call is made in a thread of its own, for
    which the main thread waits. Interrupted, the call goes on to its end by itself, and nobody reads what it writes.

    Args:
        function: of the library.
        arguments: its own.
        keep: arrays to which it has pointers: they must not go before it has ended.
        work: layers times slots squared.

    Raises:
        KeyboardInterrupt: Ctrl-C.
    """
    if work < _SHORT or threading.current_thread() is not threading.main_thread():
        return function(*arguments)
    found: list[int | BaseException] = []

    def run(_held: list[object]) -> None:  # by this frame, until the call has ended
        try:
            found.append(function(*arguments))
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            found.append(error)

    thread = threading.Thread(target=run, args=(list(keep),), name="expert-maps-planner", daemon=True)
    thread.start()
    thread.join()
    (status,) = found
    if isinstance(status, BaseException):
        raise status
    return status
