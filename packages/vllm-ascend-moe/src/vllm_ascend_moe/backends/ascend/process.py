# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The processes that vllm-ascend's dynamic EPLB starts in a worker end with the worker, however that ends.

They are forked, so they hold the pipe by which vLLM learns that a worker has died, and its handler of signals; as
long as one of them lives the server waits.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from multiprocessing.managers import SyncManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

# Of Linux's prctl.
_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> None:
    """In a child: be killed when the parent ends, and stop at once when told to.

    Args:
        parent: the parent's process id; it may have ended already.
    """
    # A terminal's interrupt is for the worker, which ends its children.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def around_worker_process(original: Callable[..., Any], process: Any, *args: Any, **kwargs: Any) -> Any:
    """Hook: what vllm-ascend's EPLB process runs. A spawned one never comes here, and holds nothing."""
    end_with_parent(os.getppid())
    return original(process, *args, **kwargs)


def around_manager(original: Callable[..., Any], *args: Any, **kwargs: Any) -> SyncManager:  # noqa: ARG001 - replaced
    """Hook: make the process that holds what the worker and its EPLB process share."""
    manager = SyncManager(ctx=multiprocessing.get_context())
    manager.start(end_with_parent, (os.getpid(),))
    return manager


__all__ = ["around_manager", "around_worker_process", "end_with_parent"]
