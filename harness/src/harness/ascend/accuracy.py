# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`accuracy run` beside a staged release: its servers are vllm-ascend's, on an emulated NPU.

The harness starts its servers by its own interpreter, with what its own environment says. So it is run here in a process
that imports the release; nothing of it is changed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from harness.ascend import engine

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.ascend.stage import Staged

# Configurations whose arms vllm-ascend takes, by its runner.
MODELS = {1: "tiny-moe-ascend", 2: "tiny-moe-ascend-v2"}


def words(arguments: Sequence[str], runner: int) -> list[str]:
    """Return the command, with the configuration for vllm-ascend's runner where none is named."""
    named = any(word == "--model" or word.startswith("--model=") for word in arguments)
    model = [] if named else ["--model", MODELS[runner]]
    return [sys.executable, "-m", "harness.accuracy", "run", *model, *arguments]


def environment(staged: Staged, chip: str, runner: int) -> dict[str, str]:
    """Return the variables under which it is run, without those of vLLM's: its servers have them of the configuration alone.

    Args:
        staged: the release.
        chip: A2 or A3.
        runner: vllm-ascend's; 2 launches Triton kernels.
    """
    return {**os.environ, **staged.environment(chip, triton=runner == engine.V2)}


def run(staged: Staged, chip: str, arguments: Sequence[str], runner: int = 1) -> int:
    """Run it to its end and return its exit code.

    Args:
        staged: the release.
        chip: A2 or A3.
        arguments: of `accuracy run`.
        runner: vllm-ascend's, 1 or 2.
    """
    variables: Mapping[str, str] = environment(staged, chip, runner)
    return subprocess.run(words(arguments, runner), env=variables, check=False).returncode  # noqa: S603 - this interpreter
