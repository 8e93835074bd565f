# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vllm_ascend_moe


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("vllm_ascend_moe", {"torch", "torch_npu", "vllm"}),
        ("vllm_ascend_moe.eplb", {"torch_npu", "vllm"}),
        ("vllm_ascend_moe.npu_ops", {"torch_npu", "vllm"}),
        ("vllm_ascend_moe.npu_ops.routing", {"torch_npu", "vllm"}),
        ("vllm_ascend_moe.npu_ops.experts", {"torch_npu", "vllm"}),
        ("vllm_ascend_moe.core.replicas", {"torch_npu", "vllm"}),
        ("vllm_ascend_moe.npu_ops.emulated", {"torch_npu", "vllm"}),
    ],
)
def test_importing_loads_nothing_heavy(module: str, absent: set[str]) -> None:
    code = f"import sys, {module}; print(*sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert module in loaded
    assert not loaded & absent


def test_no_file_imports_torch_npu() -> None:
    files = list(Path(vllm_ascend_moe.__file__).parent.rglob("*.py"))
    assert len(files) > 10
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "torch_npu" for name in names), path
