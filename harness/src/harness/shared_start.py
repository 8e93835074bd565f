# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What vLLM's processes are forked from: done once, in front, is what each of them would do anew.

On a machine with few cores that is most of a start; and while some compute, the others sleep and do not spin. Nothing that
answers depends on it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

# How long a reader of vLLM's message queue sleeps at most; a message wakes it before.
_SLEEP_MS = 5


def share(modules: Iterable[str]) -> None:
    """Prepare this process for being forked.

    Args:
        modules: what the forks will import; what this vLLM does not have, or cannot import here, is left to them.
    """
    for name in modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with contextlib.suppress(ImportError, AttributeError):
        _let_readers_sleep()
    with contextlib.suppress(ImportError, AttributeError):
        _register_kernels_once()
    # Forks collect garbage often, and would look through all that was imported each time; vLLM's also unfreeze it.
    gc.collect()
    gc.freeze()
    gc.unfreeze = lambda: None


def _let_readers_sleep() -> None:
    """Let a reader wait for a message: vLLM's spins for a second, on a core that others compute on."""
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

    original = SpinCondition.wait

    def wait(condition: Any, timeout_ms: int | None = None) -> None:  # noqa: ANN401 - vLLM's
        condition.busy_loop_s = 0
        original(condition, _SLEEP_MS if timeout_ms is None else min(timeout_ms, _SLEEP_MS))

    SpinCondition.wait = wait


def _register_kernels_once() -> None:
    """Let vLLM look through all modules for kernels that a CPU replaces; in a fork there is nothing more to be found."""
    from vllm.platforms import current_platform

    kind = type(current_platform)
    # A platform answers None, with a warning, for what it does not have.
    if hasattr(kind, "register_triton_kernel_overrides"):
        current_platform.register_triton_kernel_overrides()
        kind.register_triton_kernel_overrides = lambda *_: None


__all__ = ["share"]
