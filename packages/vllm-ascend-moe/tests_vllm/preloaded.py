# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What a process is made once that all servers of the tests are forked from: what each would do anew takes most of a start.

Imported last of all that is preloaded.
"""

from __future__ import annotations

import gc
import importlib
from typing import Any

from vllm.distributed.device_communicators import shm_broadcast
from vllm.platforms import current_platform

# What workers and engines import once they know their model.
_MODULES = (
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.attention.backends.cpu_attn",
    "vllm.model_executor.models.deepseek_v2",
    "vllm.model_executor.models.mixtral",
    "vllm.model_executor.models.qwen3_moe",
)
# How long a reader of vLLM's message queue sleeps at most; a message wakes it before.
_SLEEP_MS = 5


_spin_or_wait = shm_broadcast.SpinCondition.wait


def _wait(condition: Any, timeout_ms: int | None = None) -> None:  # noqa: ANN401 - vLLM's
    """Wait for a message without taking a core from the processes that compute: vLLM would spin for a second."""
    condition.busy_loop_s = 0
    _spin_or_wait(condition, _SLEEP_MS if timeout_ms is None else min(timeout_ms, _SLEEP_MS))


def _prepare() -> None:
    for name in _MODULES:
        importlib.import_module(name)
    shm_broadcast.SpinCondition.wait = _wait
    # Looks through all that was imported; in a fork there is nothing more to be found.
    current_platform.register_triton_kernel_overrides()
    type(current_platform).register_triton_kernel_overrides = lambda *_: None
    # Forks collect garbage often, and would look through all this each time; vLLM's also unfreeze.
    gc.collect()
    gc.freeze()
    gc.unfreeze = lambda: None


_prepare()
