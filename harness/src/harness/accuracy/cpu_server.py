# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""vLLM's OpenAI server, as its CPU build starts it, with one difference: its processes are forked.

On a CPU vLLM starts engine and workers anew, whatever is set in the environment, and each imports everything once more:
several times what a small model needs for all the rest. Nothing that answers depends on it.

python -m harness.accuracy.cpu_server --model MODEL …
"""

from __future__ import annotations

import contextlib
import runpy

from harness.shared_start import share

_METHOD = "VLLM_WORKER_MULTIPROC_METHOD"
# What engine and workers import; the models are those that most is run with.
_MODULES = (
    "vllm.entrypoints.llm",
    "vllm.entrypoints.openai.api_server",
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.attention.backends.cpu_attn",
    "vllm.model_executor.models.deepseek_v2",
    "vllm.model_executor.models.qwen3_moe",
)


def fork_on_a_cpu() -> None:
    """Let this process fork what vLLM would start anew on a CPU; elsewhere, nothing."""
    # A vLLM that keeps its variables in another way starts them anew.
    with contextlib.suppress(ImportError, AttributeError):
        from vllm import envs
        from vllm.platforms import current_platform

        if current_platform.is_cpu():
            # What reads the environment is replaced, because vLLM writes its own choice into that.
            envs.environment_variables[_METHOD] = lambda: "fork"
            share(_MODULES)


if __name__ == "__main__":
    fork_on_a_cpu()
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
