# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The check that releases resolve beside the plugin, on an index of small wheels made here; nothing is fetched."""

from __future__ import annotations

import io
import os
import re
import tarfile
import zipfile
from pathlib import Path

import pytest
import typer

from harness.contract import install
from harness.contract.fetching import ContractError
from harness.contract.install import Question, questions, read_requirements, resolve
from vllm_ascend_moe.releases import RELEASES, Release

REPOSITORY = Path(__file__).parents[2]
PAIR = Question(("0.26.0rc1",), ("vllm-ascend==0.26.0rc1",), "3.11", "x86_64")


def write_wheel(folder: Path, name: str, version: str, *requirements: str) -> None:
    stem = f"{name.replace('-', '_')}-{version}"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in requirements]
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{stem}.dist-info/METADATA", "\n".join(lines) + "\n")
        archive.writestr(
            f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{stem}.dist-info/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an index with two torches, a vllm-ascend that pins the older, and all that the plugin asks for."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in ("numpy", "packaging", "pydantic", "rich", "typer", "scipy", "platformdirs"):
        write_wheel(folder, name, "99.0")
    for version in ("2.10.0", "2.13.0"):
        write_wheel(folder, "torch", version)
    away = ("torch-npu==2.10.0.post4", "triton-ascend==3.2.2", "arctic-inference==0.1.1")
    write_wheel(folder, "vllm-ascend", "0.26.0rc1", "torch==2.10.0", *away)
    for name in [name for name in os.environ if name.startswith(("UV_", "PIP_"))]:
        monkeypatch.delenv(name)
    for name, value in (("NO_INDEX", "1"), ("FIND_LINKS", str(folder)), ("CONFIG_FILE", os.devnull)):
        monkeypatch.setenv(f"PIP_{name}", value)
    return folder


def projects(folder: Path, *changes: tuple[str, str]) -> tuple[Path, ...]:
    """Return the two projects' requirements, the plugin's changed."""
    core, plugin = (REPOSITORY / path for path in install.PROJECTS)
    text = plugin.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    return core, folder / "pyproject.toml"


@pytest.mark.usefixtures("index")
def test_a_pair_that_fits_resolves(tmp_path: Path) -> None:
    assert resolve(PAIR, projects(tmp_path)) is None


@pytest.mark.usefixtures("index")
@pytest.mark.parametrize(
    "change",
    [('"torch>=2.9"', '"torch>=2.13"'), ('"rich>=13.7"', '"rich>=100"'), ('"rich>=13.7"', '"not-there"')],
)
def test_a_conflict_names_the_pair_and_what_is_in_its_way(tmp_path: Path, change: tuple[str, str]) -> None:
    problem = resolve(PAIR, projects(tmp_path, change))
    assert problem is not None
    assert problem.startswith(
        "vllm-ascend 0.26.0rc1 on Python 3.11, x86_64: does not resolve beside the plugin: "
    )
    assert re.split(r"\W", change[1].strip('"'))[0] in problem
    if "torch" in change[1]:
        assert "torch>=2.13" in problem
        assert "torch==2.10.0" in problem


@pytest.mark.usefixtures("index")
def test_a_requirement_that_would_have_to_be_built_is_no_answer(tmp_path: Path) -> None:
    changed = projects(tmp_path, ('"rich>=13.7"', '"rich>=13.7", "vllm-ascend==0.30.0rc2"'))
    assert resolve(PAIR, changed) is not None


def write_source(folder: Path, metadata: str | None) -> Path:
    path = folder / "vllm_ascend-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        files = {"vllm_ascend-1.0/vllm_ascend.egg-info/PKG-INFO": "Requires-Dist: wrong\n"}
        if metadata is not None:
            files["vllm_ascend-1.0/PKG-INFO"] = metadata
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


def test_a_release_without_a_wheel_is_asked_for_by_its_own_requirements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_source(tmp_path, "Name: vllm-ascend\nRequires-Dist: torch==2.10.0\nRequires-Dist: numba\n")
    monkeypatch.setattr(install, "fetch_source", lambda *_: source)
    asked = questions(tmp_path)
    platforms = {(question.python, question.machine) for question in asked}
    assert platforms == {
        (python, machine) for python in ("3.10", "3.11") for machine in ("x86_64", "aarch64")
    }

    def expected(release: Release) -> tuple[str, ...]:
        return (f"vllm-ascend=={release.vllm_ascend}",) if release.has_wheel else ("torch==2.10.0", "numba")

    for release in RELEASES:
        mine = [question for question in asked if release.vllm_ascend in question.versions]
        assert len(mine) == len(platforms)
        assert {question.requirements for question in mine} == {expected(release)}


@pytest.mark.parametrize("metadata", [None, "Name: vllm-ascend\n"])
def test_a_source_that_does_not_say_what_it_asks_for_is_refused(tmp_path: Path, metadata: str | None) -> None:
    with pytest.raises(ContractError, match=r"vllm_ascend-1\.0\.tar\.gz: .*metadata"):
        read_requirements(write_source(tmp_path, metadata))


@pytest.mark.parametrize("conflicts", [0, 2])
def test_the_exit_code_is_that_of_the_conflicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], conflicts: int
) -> None:
    asked = [Question((str(number),), (), "3.11", "x86_64") for number in range(3)]
    monkeypatch.setattr(install, "questions", lambda _: asked)
    monkeypatch.setattr(
        install, "resolve", lambda each: f"{each}: no" if int(each.versions[0]) < conflicts else None
    )
    if conflicts:
        with pytest.raises(typer.Exit) as stopped:
            install.main(tmp_path)
        assert stopped.value.exit_code == 1
    else:
        install.main(tmp_path)
    shown = capsys.readouterr()
    assert f"3 resolutions, {conflicts} conflicts" in shown.out
    assert shown.err.count("FAILED vllm-ascend") == conflicts


def test_without_a_resolver_it_fails_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(ContractError, match="uv is not installed"):
        resolve(PAIR)
