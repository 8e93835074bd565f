# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What holds for the repository as a whole: headers, pins, versions, addresses."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[2]
MEMBERS = ("packages/expert-maps", "packages/vllm-ascend-moe", "harness")
CODE = [
    *ROOT.glob("*.py"),
    *(path for folder in ("packages", "harness") for path in (ROOT / folder).rglob("*.py")),
]


def project(member: str) -> dict[str, Any]:
    document: dict[str, Any] = tomllib.loads((ROOT / member / "pyproject.toml").read_text(encoding="utf-8"))
    return document


def pins(name: str) -> dict[str, str]:
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9._-]+)==([^ ;\\]+)", text, re.MULTILINE))


def test_every_source_file_names_its_licence() -> None:
    assert len(CODE) > 50
    for path in CODE:
        lines = path.read_text(encoding="utf-8").splitlines()[:2]
        assert lines == [
            "# SPDX-FileCopyrightText: The expert-maps authors",
            "# SPDX-License-Identifier: Apache-2.0",
        ], path


def test_the_root_installs_nothing_and_names_its_members() -> None:
    root = project(".")
    assert "project" not in root
    assert root["tool"]["uv"] == {
        "package": False,
        "workspace": {"members": list(MEMBERS)},
        "sources": {name: {"workspace": True} for name in ("expert-maps", "vllm-ascend-moe")},
    }


@pytest.mark.parametrize("member", MEMBERS)
def test_a_member_is_typed_and_needs_no_newer_python(member: str) -> None:
    metadata = project(member)["project"]
    package = metadata["name"].replace("-", "_")
    assert (ROOT / member / "src" / package / "py.typed").exists()
    assert metadata["requires-python"] == ">=3.10"
    assert metadata["license"] == "Apache-2.0"


def test_pinned_files_have_hashes_and_no_addresses() -> None:
    files = sorted((ROOT / "requirements").glob("*.txt"))
    assert {path.stem for path in files} >= {
        "dev",
        "minimums",
        "nox",
        "pythons",
        "run",
        "tools",
        "vllm",
        "zig",
    }
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert "://" not in text, path
        assert "--index-url" not in text, path
        assert "--find-links" not in text, path
        for requirement in re.split(r"\n(?=[a-z0-9])", text)[1:]:
            assert "--hash=sha256:" in requirement, (path, requirement.splitlines()[0])


def test_minimums_pins_the_lowest_version_that_each_package_allows() -> None:
    pinned = pins("minimums")
    for entry in project("packages/expert-maps")["project"]["dependencies"]:
        requirement = Requirement(entry)
        lowest = next(spec.version for spec in requirement.specifier if spec.operator == ">=")
        assert Version(pinned[requirement.name]) == Version(lowest), entry


@pytest.mark.parametrize("name", ["dev", "pythons"])
def test_pins_of_more_are_what_run_pins(name: str) -> None:
    more = pins(name)
    for package, version in pins("run").items():
        assert more[package] == version, package


def test_versions_agree() -> None:
    for path in (
        "expert-maps/src/expert_maps/_version.py",
        "vllm-ascend-moe/src/vllm_ascend_moe/_version.py",
    ):
        code = (ROOT / "packages" / path).read_text(encoding="utf-8")
        found = re.search(r'^__version__ = "([^"]+)"', code, re.MULTILINE)
        assert found is not None
        version = found.group(1)
        assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
        assert f"version: {version}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


PAGES = [
    "README.md",
    "README.zh-CN.md",
    *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))),
]


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_links_to_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert targets or page == "docs/library.md"
    for target in targets:
        assert ((ROOT / page).parent / target).exists(), target


def test_the_readme_names_sessions_that_exist_and_the_page_of_sessions_all() -> None:
    noxfile = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    names = set(re.findall(r"^@nox\.session\b.*\ndef (\w+)\(", noxfile, re.MULTILINE))
    used = {
        page: set(re.findall(r"nox -s (\w+)", (ROOT / page).read_text(encoding="utf-8"))) for page in PAGES
    }
    assert {"unit", "demo"} <= used["README.md"] <= names
    assert used["docs/sessions.md"] == names
    assert set.union(*used.values()) == names


def test_the_page_on_extending_names_files_that_exist() -> None:
    text = (ROOT / "docs/howto/extend.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:packages|harness|golden)/[^`]+)`", text)
    assert len(named) > 20
    for path in named:
        # NAME and CASE are what is new.
        known = path if not re.search("NAME|CASE", path) else str(Path(path).parent)
        assert (ROOT / known).exists(), path


@pytest.mark.parametrize("name", ["README", "docs/tutorial"])
def test_both_languages_have_the_same_commands_tables_and_links(name: str) -> None:
    other = f"{Path(name).name}.zh-CN.md"

    def skeleton(page: str) -> list[str]:
        text = (ROOT / page).read_text(encoding="utf-8")
        consoles = re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL)
        prose = re.sub(r"```.*?```", "```", text, flags=re.DOTALL)
        shape = [
            line.split(" ")[0] if line.startswith("#") else str(line.count("|"))
            for line in prose.splitlines()
            if line.startswith(("#", "|", "```", "!["))
        ]
        links = re.findall(
            r"\]\(([^)]+)\)", prose.replace(f"({other})", "").replace(f"({Path(name).name}.md)", "")
        )
        code = [" ".join(words.split()) for words in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)]
        return [*consoles, *shape, *sorted(links), *sorted(code)]

    assert skeleton(f"{name}.md") == skeleton(f"{name}.zh-CN.md")


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_a_tracked_file_holds_no_absolute_home_path() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=False, capture_output=True, text=True, timeout=60
    )
    if tracked.returncode:
        pytest.skip("not a git checkout")
    pattern = re.compile(r"/(?:home|Users|root)/\w")
    for name in filter(None, tracked.stdout.split("\0")):
        path = ROOT / name
        if (
            path.suffix in {".npz", ".npy", ".png", ".safetensors"}
            or not path.exists()
            or path == Path(__file__).resolve()
        ):
            continue
        assert not pattern.search(path.read_text(encoding="utf-8")), name
