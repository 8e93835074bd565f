# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("vllm_ascend_moe", {"torch", "torch_npu", "vllm"}),
        ("vllm_ascend_moe.eplb", {"torch_npu", "vllm"}),
    ],
)
def test_importing_loads_nothing_heavy(module: str, absent: set[str]) -> None:
    code = f"import sys, {module}; print(*sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert module in loaded
    assert not loaded & absent
