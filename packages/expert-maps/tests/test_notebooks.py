# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The examples in Python run as they are printed: those of pages, and the cells of notebooks."""

from __future__ import annotations

import ast
import doctest
import io
import json
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGES = ("docs/library.md",)
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))

pytestmark = pytest.mark.skipif(
    not (ROOT / "docs").is_dir(), reason="the repository is not around: installed from a source distribution"
)


@pytest.mark.parametrize("page", PAGES)
def test_examples_of_pages_print_what_is_shown(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"```pycon\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    examples = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, page, page, 0)
    said = io.StringIO()
    found = doctest.DocTestRunner(verbose=False).run(examples, out=said.write)
    assert found.attempted >= 10
    assert found.failed == 0, said.getvalue()


def run_cell(source: str, names: dict[str, Any]) -> str:
    """Run a cell as a notebook does: what it prints, and the value of a last line that is an expression."""
    lines = [line for line in source.splitlines() if not line.startswith("%")]
    tree = ast.parse("\n".join(lines))
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(tree, "cell", "exec"), names)  # noqa: S102 - the repository's own
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)  # noqa: S307 - as above
            if value is not None:
                print(repr(value))
    return printed.getvalue()


def stored(cell: dict[str, Any]) -> str:
    """What the notebook keeps of a cell's output, as text."""
    parts = ["".join(each.get("text") or each["data"]["text/plain"] + ["\n"]) for each in cell["outputs"]]
    return "".join(parts)


def test_there_is_a_notebook_that_was_run() -> None:
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), path
        kinds = {each["output_type"] for cell in cells for each in cell["outputs"]}
        assert kinds <= {"stream", "execute_result"}, "an error, or a warning"
        assert {each.get("name", "stdout") for cell in cells for each in cell["outputs"]} == {"stdout"}
        # A figure was drawn.
        assert any("image/png" in each.get("data", {}) for cell in cells for each in cell["outputs"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: str(path.name))
def test_cells_print_what_is_stored(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(path.parent)
    names: dict[str, Any] = {}
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert run_cell("".join(cell["source"]), names) == stored(cell), "".join(cell["source"])
