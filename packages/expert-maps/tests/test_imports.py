# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys

import expert_maps


def test_importing_loads_neither_torch_nor_vllm_nor_the_command_line() -> None:
    code = "import sys, expert_maps; expert_maps.Placement; print(*sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "expert_maps.placement" in loaded
    assert not loaded & {"torch", "torch_npu", "vllm", "typer", "rich", "numba", "matplotlib"}


def test_every_public_name_exists() -> None:
    for name in expert_maps.__all__:
        assert hasattr(expert_maps, name)
