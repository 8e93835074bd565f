# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Files stay short enough to be read, and functions too; what is longer stands here by name, and does not grow."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_LINES = 300
# Of a function without its docstring, which says each argument's shape and unit.
MOST_LINES_OF_FUNCTION = 50
SUFFIXES = (".py", ".c", ".h", ".sh")
# Files of tests about one subject, with the world that they build for it. Each may only get shorter.
LONG_FILES = {
    "harness/emulated_npu/tests/test_emulated_kernels.py": 314,
    "harness/meta_tests/fake_server.py": 343,
    "harness/meta_tests/test_accuracy_client.py": 324,
    "harness/meta_tests/test_accuracy_faults.py": 428,
    "harness/meta_tests/test_accuracy_report.py": 365,
    "harness/meta_tests/test_accuracy_run.py": 648,
    "harness/meta_tests/test_accuracy_verdict.py": 566,
    "harness/meta_tests/test_ascend_engine.py": 319,
    "harness/meta_tests/test_ascend_judging.py": 334,
    "harness/meta_tests/test_contract.py": 354,
    "harness/meta_tests/test_hooks_contract.py": 504,
    "harness/meta_tests/test_npu_bench.py": 401,
    "harness/meta_tests/test_peers.py": 365,
    "packages/expert-maps/tests/test_api.py": 418,
    "packages/expert-maps/tests/test_contradictions.py": 442,
    "packages/expert-maps/tests/test_convert.py": 321,
    "packages/expert-maps/tests/test_files.py": 368,
    "packages/expert-maps/tests/test_hostile.py": 387,
    "packages/expert-maps/tests/test_load_forms.py": 318,
    "packages/expert-maps/tests/test_map_limits.py": 349,
    "packages/expert-maps/tests/test_models.py": 770,
    "packages/expert-maps/tests/test_placements.py": 432,
    "packages/vllm-ascend-moe/tests/test_ascend_checks.py": 323,
    "packages/vllm-ascend-moe/tests/test_ascend_layers.py": 735,
    "packages/vllm-ascend-moe/tests/test_ascend_options.py": 365,
    "packages/vllm-ascend-moe/tests/test_doctor.py": 546,
    "packages/vllm-ascend-moe/tests/test_eplb.py": 305,
    "packages/vllm-ascend-moe/tests/test_frontend_ascend.py": 490,
    "packages/vllm-ascend-moe/tests/test_hardware.py": 346,
    "packages/vllm-ascend-moe/tests/test_record_file.py": 361,
    "packages/vllm-ascend-moe/tests/test_recorder.py": 528,
    "packages/vllm-ascend-moe/tests/test_replica_tables.py": 497,
    "packages/vllm-ascend-moe/tests/test_session.py": 325,
    "packages/vllm-ascend-moe/tests/test_settings.py": 404,
    "packages/vllm-ascend-moe/tests/test_upstream.py": 361,
    "packages/vllm-ascend-moe/tests_vllm/engine.py": 390,
    "packages/vllm-ascend-moe/tests_vllm/test_vllm_eplb_ranks.py": 311,
    "packages/vllm-ascend-moe/tests_vllm/test_vllm_experts.py": 402,
}
LONG_FUNCTIONS: dict[str, int] = {}


def tracked() -> list[Path]:
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [ROOT / name for name in done.stdout.split("\0") if name.endswith(SUFFIXES)]
    return [path for path in paths if path.exists()]


def lengths_of_functions(source: str) -> dict[str, int]:
    """The lines of each function, by its name within its classes; those of its docstring are not counted."""
    found: dict[str, int] = {}

    def visit(node: ast.AST, above: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = above
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                name = f"{above}.{child.name}".lstrip(".")
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                first = child.body[0]
                told = ast.get_docstring(child) is not None
                docstring = (first.end_lineno or 0) - first.lineno + 1 if told else 0
                lines = (child.end_lineno or 0) - child.lineno + 1 - docstring
                found[name] = max(lines, found.get(name, 0))
            visit(child, name)

    visit(ast.parse(source), "")
    return found


def check(found: dict[str, int], most: int, known: dict[str, int], what: str) -> None:
    long = {name: lines for name, lines in found.items() if lines > most}
    grown = {name: lines for name, lines in long.items() if lines > known.get(name, most)}
    assert not grown, f"longer than {most} lines, or than they were: {grown}; split them"
    short = sorted({*known} - {*long})
    assert not short, f"{', '.join(short)}: {what} no longer; take the line out of this file"


def test_files_are_short() -> None:
    found = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in tracked()
    }
    assert len(found) > 500
    check(found, MOST_LINES, LONG_FILES, "long")


def test_functions_are_short() -> None:
    found = {
        f"{path.relative_to(ROOT)}::{name}": lines
        for path in tracked()
        if path.suffix == ".py"
        for name, lines in lengths_of_functions(path.read_text(encoding="utf-8")).items()
    }
    assert len(found) > 5000
    check(found, MOST_LINES_OF_FUNCTION, LONG_FUNCTIONS, "long")


def test_what_grows_is_told_and_what_has_shrunk_too() -> None:
    with pytest.raises(AssertionError, match=r"\{'new\.py': 301\}; split"):
        check({"new.py": 301, "old.py": 310}, 300, {"old.py": 310}, "long")
    with pytest.raises(AssertionError, match=r"\{'old\.py': 311\}; split"):
        check({"old.py": 311}, 300, {"old.py": 310}, "long")
    with pytest.raises(AssertionError, match=r"old\.py: long no longer"):
        check({"old.py": 300}, 300, {"old.py": 310}, "long")


def test_a_docstring_does_not_count() -> None:
    source = 'class A:\n    def f(self, x):\n        """Say.\n\n        More.\n        """\n        return [\n            x\n        ]\n'
    assert lengths_of_functions(source) == {"A.f": 4}
