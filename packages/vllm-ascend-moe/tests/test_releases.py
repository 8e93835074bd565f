# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The table of releases agrees with itself, with the extras, and with the page that shows it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from typer.testing import CliRunner

from vllm_ascend_moe import releases
from vllm_ascend_moe.cli import app
from vllm_ascend_moe.hooks import table

PACKAGE = Path(__file__).parents[1]
SOURCE = PACKAGE / "src/vllm_ascend_moe"
BEGIN, END = "<!-- releases -->", "<!-- /releases -->"


def requirements(extra: str | None = None) -> dict[str, Requirement]:
    """Read what the package asks for, without an extra or with one; the standard library has no reader before 3.11."""
    text = (PACKAGE / "pyproject.toml").read_text(encoding="utf-8")
    match = re.search(rf"^{extra or 'dependencies'} = (\[.*?\]$)", text, re.MULTILINE | re.DOTALL)
    assert match is not None
    found = [Requirement(line) for line in ast.literal_eval(match[1])]
    return {requirement.name: requirement for requirement in found}


def test_releases_are_in_order_and_there_once() -> None:
    versions = [Version(release.vllm_ascend) for release in releases.RELEASES]
    assert versions == sorted(set(versions))
    assert releases.RELEASES[-1] is releases.NEWEST


def test_a_release_is_found_by_its_version_and_its_pair_has_no_problem() -> None:
    for release in releases.RELEASES:
        assert releases.find(release.vllm_ascend) is release
        assert releases.find(f"{release.vllm_ascend}+local") is release
        assert releases.problem(release.vllm_ascend, release.vllm) is None
    for unknown in (None, "dev", "0.18.0rc1", "0.31.0"):
        assert releases.find(unknown) is None


def test_what_the_newest_and_the_oldest_pin_is_what_is_served_in_ci() -> None:
    assert [release.vllm_ascend for release in releases.RELEASES if release.checked == "ci"] == [
        "0.23.0",
        releases.NEWEST.vllm_ascend,
    ]


def test_a_loader_that_goes_by_the_map_belongs_to_a_ring_and_one_that_appends_to_append() -> None:
    for release in releases.RELEASES:
        assert (release.layout, release.fills) in {("ring", "map"), ("append", "append")}
        assert (release.filled_by == "the plugin") == (release.fills == "append")


def test_the_extras_are_of_the_table() -> None:
    assert requirements("vllm")["vllm"].specifier == releases.VLLM
    ascend = requirements("ascend")
    oldest, newest = releases.RELEASES[0].vllm_ascend, releases.NEWEST.vllm_ascend
    assert str(ascend["vllm-ascend"].specifier) == f"<={newest},>={oldest}"
    assert set(ascend) == {"vllm-ascend", "torch-npu"}
    for release in releases.RELEASES:
        assert ascend["vllm-ascend"].specifier.contains(release.vllm_ascend)
        assert ascend["torch-npu"].specifier.contains(release.torch_npu)


def test_the_torch_that_every_release_pins_is_enough() -> None:
    needed = requirements()
    assert "numba" not in needed
    assert "numba" in requirements("cpu")
    for release in releases.RELEASES:
        assert needed["torch"].specifier.contains(release.torch), release


def test_only_the_table_compares_versions() -> None:
    # A pair that is spelled out elsewhere is forgotten when the next release comes.
    versions = {release.vllm_ascend for release in releases.RELEASES}
    for path in sorted(SOURCE.rglob("*.py")):
        if path.name == "releases.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            value = node.value if isinstance(node, ast.Constant) else None
            assert value not in versions, f"{path.name}:{getattr(node, 'lineno', 0)} names {value}"


def test_every_hook_that_is_used_beside_vllm_ascend_is_one_that_is_checked() -> None:
    known = set(table.beside(releases.NEWEST))
    used = {
        node.attr
        for path in (SOURCE / "backends/ascend_v1.py", *(SOURCE / "backends/ascend").glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "table"
    }
    hooks = {name for name in used if isinstance(getattr(table, name), table.Hook)}
    assert "INIT_EPLB_CONFIG" in hooks
    assert {name for name in hooks if getattr(table, name) not in known} == set()


def test_the_readme_has_exactly_the_table() -> None:
    text = (PACKAGE / "README.md").read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1, f"expected the table between {BEGIN} and {END}"
    shown = text.partition(BEGIN)[2].partition(END)[0].strip()
    assert shown == releases.markdown().strip(), (
        "expected the output of `vllm-ascend-moe releases --markdown`"
    )


@pytest.mark.parametrize("option", [[], ["--markdown"]])
def test_the_command_line_shows_every_release(option: list[str]) -> None:
    result = CliRunner().invoke(app, ["releases", *option])
    assert result.exit_code == 0
    for release in releases.RELEASES:
        line = next(
            line for line in result.stdout.splitlines() if re.match(rf"(\| )?{release.vllm_ascend}\b ", line)
        )
        assert f" {release.vllm} " in line
        assert all(what in result.stdout for what in release.refused)
    assert all(what in result.stdout for what in releases.REFUSED)
    if option:
        assert result.stdout == releases.markdown()
