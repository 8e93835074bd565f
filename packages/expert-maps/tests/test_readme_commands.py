# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The commands that the READMEs print run as they stand there, and print what is shown."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from cli_runs import run

ROOT = Path(__file__).resolve().parents[3]
PAGES = {
    "README.md": "## From a load to a map",
    "docs/commands.md": "# The command line",
    "docs/howto/choose.md": "# Choose ranks, copies and groups",
    "docs/howto/ci.md": "# Maps and accuracy in your own CI",
    "docs/howto/convert.md": "# Convert from each system",
    "docs/tutorial.zh-CN.md": "# 教程：从负载到通过检查的映射，以及之后的改进",
    "docs/failed_ranks.md": "# A rank has failed",
    "docs/tutorial.md": "# Tutorial: from a load to a checked map, and a better one later",
    "packages/expert-maps/README.md": "# expert-maps",
}


def commands_of(page: str, section: str) -> list[tuple[str, list[str]]]:
    """Return the commands of a section's consoles with the lines that are shown after each."""
    text = (ROOT / page).read_text(encoding="utf-8").split(f"{section}\n", 1)[1]
    if section.startswith("## "):
        text = text.split("\n## ", 1)[0]
    found: list[tuple[str, list[str]]] = []
    for console in re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL):
        for line in console.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


def pattern_of(shown: list[str]) -> str:
    """Return what the output must match: … stands for any text, on a line of its own for any lines."""
    lines = [".*" if line == "…" else re.escape(line).replace("…", "[^\n]*") for line in shown]
    return "\n".join(lines) + "\n?"


@pytest.mark.parametrize(("page", "section"), PAGES.items())
def test_commands_run_as_printed(
    page: str, section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (ROOT / page).exists():
        pytest.skip("the repository is not around: installed from a source distribution")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "accuracy").symlink_to(ROOT / "accuracy")
    commands = [
        (line, shown) for line, shown in commands_of(page, section) if line.startswith("expert-maps ")
    ]
    assert commands
    for line, shown in commands:
        result = run(*shlex.split(line)[1:])
        assert result.exit_code == 0, (line, result.output)
        if shown:
            assert re.fullmatch(pattern_of(shown), result.stdout, flags=re.DOTALL), (line, result.stdout)


def test_what_is_shown_is_compared() -> None:
    assert re.fullmatch(pattern_of(["a", "…"]), "a\nb\nc\n", flags=re.DOTALL)
    assert re.fullmatch(pattern_of(["a … c"]), "a b c\n", flags=re.DOTALL)
    assert not re.fullmatch(pattern_of(["a"]), "a\nb\n", flags=re.DOTALL)
    assert not re.fullmatch(pattern_of(["a … c"]), "a b\n", flags=re.DOTALL)
