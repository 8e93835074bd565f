# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m harness.contract.install`: does each vllm-ascend of the table resolve beside the plugin? Installs nothing.

A resolver reads the metadata of packages in the user's index, of torch too, and downloads none. What it cannot
read from there without a build is put away: it lives in other indexes, or asks for nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from harness.contract.fetching import ContractError, fetch_source, user_index
from harness.contract.pins import SOURCES
from vllm_ascend_moe.releases import RELEASES

PROJECTS = (Path("packages/expert-maps/pyproject.toml"), Path("packages/vllm-ascend-moe/pyproject.toml"))
PYTHONS = ("3.10", "3.11")
MACHINES = ("x86_64", "aarch64")
# torch-npu's wheels name a torch with a local part, which its own index has, as triton-ascend's has those; the one
# release of arctic-inference that is asked for has no wheel, and asks for nothing; expert-maps is the other project.
_AWAY = ("torch-npu", "triton-ascend", "arctic-inference", "expert-maps")
_PROCESSES = 4
_TIMEOUT_S = 300


@dataclass(frozen=True)
class Question:
    """Whether releases resolve beside the plugin on one platform.

    Attributes:
        versions: of vllm-ascend; several where they ask for the same.
        requirements: what is asked for.
        python: version.
        machine: kind of processor.
    """

    versions: tuple[str, ...]
    requirements: tuple[str, ...]
    python: str
    machine: str

    def __str__(self) -> str:
        """Name the pair and the platform."""
        return f"vllm-ascend {', '.join(self.versions)} on Python {self.python}, {self.machine}"


def questions(folder: Path) -> list[Question]:
    """Return one question for each release and platform; of a release without a wheel, by its own requirements.

    Args:
        folder: where source distributions are kept.

    Raises:
        ContractError: a source distribution could not be fetched or read.
    """
    asked: dict[tuple[str, ...], list[str]] = {}
    for release in RELEASES:
        version = release.vllm_ascend
        if release.has_wheel:
            requirements: tuple[str, ...] = (f"vllm-ascend=={version}",)
        else:
            place = folder / "vllm-ascend" / version
            source = fetch_source(place, "vllm-ascend", version, SOURCES["vllm-ascend", version])
            requirements = read_requirements(source)
        asked.setdefault(requirements, []).append(version)
    return [
        Question(tuple(versions), requirements, python, machine)
        for requirements, versions in asked.items()
        for python in PYTHONS
        for machine in MACHINES
    ]


def read_requirements(source: Path) -> tuple[str, ...]:
    """Return what a source distribution asks for; building it for that would need an NPU's compiler.

    Raises:
        ContractError: it does not say.
    """
    try:
        with tarfile.open(source) as archive:
            member = next(each for each in archive if re.fullmatch(r"[^/]+/PKG-INFO", each.name))
            opened = archive.extractfile(member)
            assert opened is not None
            text = opened.read().decode()
    except (OSError, EOFError, StopIteration, tarfile.TarError, UnicodeDecodeError) as error:
        msg = f"{source.name}: has no metadata that can be read: {type(error).__name__}: {error}"
        raise ContractError(msg) from error
    found = tuple(re.findall(r"^Requires-Dist: (.+)$", text, re.MULTILINE))
    if not found:
        msg = f"{source.name}: its metadata asks for nothing; expected requirements"
        raise ContractError(msg)
    return found


def resolve(question: Question, projects: tuple[Path, ...] = PROJECTS) -> str | None:
    """Ask the resolver; return its reason where there is a conflict, None where all resolves.

    Args:
        question: what is asked for.
        projects: pyproject files, whose requirements are asked for too.

    Raises:
        ContractError: there is no resolver, or it comes to no end.
    """
    found = shutil.which(
        "uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    )
    if found is None:
        msg = "uv is not installed; expected it in the environment: nothing was checked"
        raise ContractError(msg)
    with tempfile.TemporaryDirectory() as scratch:
        asked, away = Path(scratch, "requirements.in"), Path(scratch, "overrides.txt")
        asked.write_text("\n".join(question.requirements), encoding="utf-8")
        away.write_text("".join(f"{name} ; sys_platform == 'never'\n" for name in _AWAY), encoding="utf-8")
        command = [found, "pip", "compile", "--quiet", "--no-build", "--no-progress", "--no-config"]
        command += ["--index-strategy", "unsafe-best-match"]  # as pip takes the best of all indexes
        command += ["--python-version", question.python, "--overrides", str(away)]
        command += ["--python-platform", f"{question.machine}-manylinux_2_34"]
        command += ["--output-file", str(Path(scratch, "resolved.txt")), *map(str, projects), str(asked)]
        try:
            done = subprocess.run(  # noqa: S603 - no shell
                command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S, env=_environment()
            )
        except subprocess.TimeoutExpired as error:
            msg = f"{question}: the resolver took more than {_TIMEOUT_S} s; nothing was checked"
            raise ContractError(msg) from error
    if not done.returncode:
        return None
    text = re.sub(r"\s+", " ", done.stderr).strip()
    return f"{question}: does not resolve beside the plugin: {text}"


def _environment() -> dict[str, str]:
    """Return the environment with pip's settings as the resolver reads them; its own, where they are set, count."""
    index = user_index()
    settings = {
        "UV_DEFAULT_INDEX": index.index_url,
        "UV_INDEX": " ".join(index.extra_index_urls),
        "UV_FIND_LINKS": ",".join(index.find_links),
        "UV_NO_INDEX": "1" if index.no_index else None,
        "SSL_CERT_FILE": index.cert,
    }
    return {**{name: value for name, value in settings.items() if value}, **os.environ}


def main(
    sources: Annotated[Path, typer.Option("--sources", help="Where downloads are kept.")] = Path(
        "build/torch_npu"
    ),
) -> None:
    """Resolve the plugin beside each vllm-ascend of the table, on each Python and machine; exit 1 on a conflict."""
    try:
        asked = questions(sources)
        with ThreadPoolExecutor(_PROCESSES) as pool:
            problems = [problem for problem in pool.map(resolve, asked) if problem is not None]
    except ContractError as error:
        typer.echo(f"FAILED {error}", err=True)
        raise typer.Exit(1) from error
    for problem in problems:
        typer.echo(f"FAILED {problem}", err=True)
    typer.echo(
        f"{len(RELEASES)} releases of vllm-ascend on Python {' and '.join(PYTHONS)}, {' and '.join(MACHINES)}: "
        f"{len(asked)} resolutions, {len(problems)} conflicts; nothing was installed"
    )
    if problems:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
