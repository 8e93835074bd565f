# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""vLLM's OpenAI server, whose processes are forked: on a CPU each would import everything once more."""

from __future__ import annotations

import runpy

from vllm import envs

if __name__ == "__main__":
    # Over vLLM's own word for a CPU, which it writes into the environment.
    envs.environment_variables["VLLM_WORKER_MULTIPROC_METHOD"] = lambda: "fork"
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
