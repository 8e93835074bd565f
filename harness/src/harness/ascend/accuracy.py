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

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.ascend.stage import Staged

# A configuration whose arms vllm-ascend takes.
MODEL = "tiny-moe-ascend"


def words(arguments: Sequence[str]) -> list[str]:
    """Return the command, with the configuration for vllm-ascend where none is named."""
    named = any(word == "--model" or word.startswith("--model=") for word in arguments)
    model = [] if named else ["--model", MODEL]
    return [sys.executable, "-m", "harness.accuracy", "run", *model, *arguments]


def environment(staged: Staged, chip: str) -> dict[str, str]:
    """Return the variables under which it is run, without those of vLLM's that it would leave out.

    Args:
        staged: the release.
        chip: A2 or A3.
    """
    return {**os.environ, **staged.environment(chip, triton=False)}


def run(staged: Staged, chip: str, arguments: Sequence[str]) -> int:
    """Run it to its end and return its exit code.

    Args:
        staged: the release.
        chip: A2 or A3.
        arguments: of `accuracy run`.
    """
    variables: Mapping[str, str] = environment(staged, chip)
    return subprocess.run(words(arguments), env=variables, check=False).returncode  # noqa: S603 - this interpreter
