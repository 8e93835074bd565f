# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""No module of the repository needs one that needs it: imports within functions and for types count too, and C's."""

from __future__ import annotations

import ast
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    "packages/expert-maps/src",
    "packages/vllm-ascend-moe/src",
    "harness/src",
    "harness/emulated_npu",
    "packages/expert-maps/tests",
    "packages/vllm-ascend-moe/tests",
    "packages/vllm-ascend-moe/tests_vllm",
    "harness/meta_tests",
)
Graph = dict[str, set[str]]


def modules(folder: Path) -> dict[str, Path]:
    found = {}
    for path in folder.rglob("*.py"):
        parts = path.relative_to(folder).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, package: str, known: set[str]) -> set[str]:
    """Return the modules that a file imports, wherever it does; the package around a module is not one that it needs."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: 1 - node.level or None] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name for name in names if name in known} or {base}
    return found & known


def python_graph(folder: Path) -> Graph:
    paths = modules(folder)
    return {
        name: imported(path, name if path.name == "__init__.py" else name.rpartition(".")[0], set(paths))
        - {name}
        for name, path in paths.items()
    }


def c_graph(folder: Path) -> Graph:
    """Return which C file includes which; the header of a part is that part."""
    graph: Graph = {}
    for path in [*folder.glob("*.c"), *folder.glob("*.h")]:
        included = re.findall(r'^#include "([^"]+)"', path.read_text(encoding="utf-8"), re.MULTILINE)
        graph[path.name] = set(included)
    return graph


def circle(graph: Graph) -> list[str]:
    """Return a circle; empty where there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


@pytest.mark.parametrize("folder", SOURCES)
def test_no_modules_need_each_other(folder: str) -> None:
    graph = python_graph(ROOT / folder)
    assert graph
    assert circle(graph) == []


def test_no_c_files_need_each_other() -> None:
    graph = c_graph(ROOT / "packages/expert-maps/native")
    assert graph["plan.c"]
    assert circle(graph) == []


@pytest.mark.parametrize(
    "line",
    [
        "import made.one",
        "from made import one",
        "from . import one",
        "from .one import x",
        "def f():\n    from made.one import x",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from made.one import x",
    ],
)
def test_every_kind_of_import_is_seen(line: str, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    for name, text in (("__init__", ""), ("one", "from made import two\n"), ("two", line)):
        (tmp_path / "made" / f"{name}.py").write_text(text, encoding="utf-8")
    assert set(circle(python_graph(tmp_path))) == {"made.one", "made.two"}


def test_the_core_needs_neither_vllm_nor_what_serves() -> None:
    for path in (ROOT / "packages/vllm-ascend-moe/src/vllm_ascend_moe/core").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                # Its own word of its version is a file that imports nothing.
                if name.startswith("vllm.version"):
                    continue
                assert name.split(".")[0] not in {"vllm", "torch_npu", "vllm_ascend"}, f"{path.name}: {name}"
                outer = {"backends", "hooks", "frontend", "npu_ops", "report"}
                assert not (name.startswith("vllm_ascend_moe.") and name.split(".")[1] in outer), path.name
