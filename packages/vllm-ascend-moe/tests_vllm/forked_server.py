# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""vLLM's OpenAI server, whose processes are forked: on a CPU each would import everything once more."""

from __future__ import annotations

import runpy
import sys

from vllm import envs


def fork_processes() -> None:
    """Let this process fork what vLLM would start anew on a CPU, whatever is set in the environment."""
    envs.environment_variables["VLLM_WORKER_MULTIPROC_METHOD"] = lambda: "fork"


def main(*arguments: str) -> None:
    """Serve."""
    fork_processes()
    module = "vllm.entrypoints.openai.api_server"
    # Imported already: the module is run once more under another name, as an interpreter's main program.
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
