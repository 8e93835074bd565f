# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""vLLM's OpenAI server, whose processes are forked: on a CPU each would import everything once more."""

from __future__ import annotations

import runpy

from vllm import envs


def fork_processes() -> None:
    """Let this process fork what vLLM would start anew on a CPU, whatever is set in the environment."""
    envs.environment_variables["VLLM_WORKER_MULTIPROC_METHOD"] = lambda: "fork"


if __name__ == "__main__":
    fork_processes()
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
