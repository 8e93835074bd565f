# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Using the packages that were built, each where nothing is but what its metadata asks for, by hash."""

from __future__ import annotations

import ast
import hashlib
import platform
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness.sessions.environments import CORE, install_torch
from harness.sessions.wheels import DIST

if TYPE_CHECKING:
    from collections.abc import Iterable

    import nox

_GENERATE = [
    "expert-maps",
    "generate",
    "--model",
    "deepseek-r1",
    "--ep-size",
    "16",
    "--redundant",
    "16",
    "--output",
    "map.json",
]
_LOADS = "from expert_maps.policies import load_planner; print(load_planner().expert_maps_plan)"
_MAPS = (
    "import vllm_ascend_moe.eplb as e; print(e.init_eplb_config(None, 0, {'num_experts': 8, 'ep_size': 2}))"
)
_ABSENT = "import expert_maps as e; print(e.plan([[9., 1.]], ep_size=2, policy='reference').placement)"
# What was pinned for tests holds all that the packages ask for.
_PINS = Path("requirements/dev.txt")
_TORCH_PINS = Path("requirements/torch.txt")


@dataclass(frozen=True)
class _Trial:
    """Files that are installed into an empty environment, and what is done there.

    Attributes:
        files: of `DIST`.
        asked: what they ask for: names of packages, and what builds them.
        commands: run there.
        environ: environment variables while they are installed.
        with_torch: whether torch is among what they ask for.
    """

    files: list[Path]
    asked: list[str]
    commands: list[list[str]]
    environ: dict[str, str] = field(default_factory=dict)
    with_torch: bool = False


def use(session: nox.Session) -> None:
    """Install each package into an empty environment and use it there."""
    scratch = Path(session.create_tmp()).absolute()
    for number, trial in enumerate(_trials()):
        binaries = scratch / f"venv-{number}" / "bin"
        made = [sys.executable, "-m", "virtualenv", "--quiet", "--clear", str(binaries.parent)]
        session.run(*made, external=True)
        pip = [str(binaries / "python"), "-m", "pip"]

        def install(*words: str, pip: list[str] = pip, environ: dict[str, str] = trial.environ) -> None:
            session.run(*pip, "install", "--quiet", "--no-compile", *words, env=environ, external=True)

        pins, own = scratch / f"pins-{number}.txt", scratch / f"own-{number}.txt"
        pins.write_text("".join(_pinned(_closure(session, trial.asked))), encoding="utf-8")
        own.write_text("".join(map(_by_hash, trial.files)), encoding="utf-8")
        install("--require-hashes", "--no-deps", "-r", str(pins))
        if trial.with_torch:
            install_torch(install)
        # pip keeps what it built from a file of that name before.
        install("--require-hashes", "--no-deps", "--no-build-isolation", "--no-cache-dir", "-r", str(own))
        session.run(*pip, "check", external=True)
        with session.chdir(scratch):
            for command in trial.commands:
                session.run(str(binaries / command[0]), *command[1:], external=True)


def _trials() -> list[_Trial]:
    source, plugin = next(DIST.glob("expert_maps-*.tar.gz")), next(DIST.glob("vllm_ascend_moe-*.whl"))
    planner = [_GENERATE, ["python", "-c", _LOADS]]
    built = ["expert-maps", *_build_requires(Path(CORE, "pyproject.toml").read_text(encoding="utf-8"))]
    wheels = sorted(DIST.glob(f"expert_maps-*_{platform.machine()}.whl")) if sys.platform == "linux" else []
    return [
        _Trial([source], built, planner),
        # A machine whose compiler does not work: all but the compiled planner.
        _Trial(
            [source],
            built,
            [_GENERATE, ["python", "-c", _ABSENT]],
            {"CC": "false", "EXPERT_MAPS_CC": ""},
        ),
        # With the wheel of expert-maps, where one fits.
        _Trial(
            [*(wheels or [source]), plugin],
            ["vllm-ascend-moe", *([] if wheels else built)],
            [["python", "-c", _MAPS], *planner],
            with_torch=True,
        ),
    ]


def _build_requires(text: str) -> list[str]:
    """Return what a pyproject file says that it is built with."""
    found = re.search(r"^\[build-system\]\nrequires = (\[.*?\])", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    return list(ast.literal_eval(found[1]))


def _closure(session: nox.Session, asked: Iterable[str]) -> set[str]:
    """Return the names of all that packages ask for, by the metadata of what was built, without these and torch's."""
    question = Path(session.create_tmp()) / "asked.txt"
    question.write_text("".join(f"{word}\n" for word in asked), encoding="utf-8")
    python = str(Path(session.bin).absolute() / "python")
    words = ["uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--python", python]
    words += ["--find-links", str(DIST), "--constraints", str(_PINS), "--constraints", str(_TORCH_PINS)]
    listed = session.run(*words, str(question), silent=True)
    names = {_name_of(line) for line in str(listed).splitlines() if "==" in line}
    of_torch = {
        _name_of(line) for line in _TORCH_PINS.read_text(encoding="utf-8").splitlines() if "==" in line
    }
    return names - of_torch - {"expert-maps", "vllm-ascend-moe"}


def _name_of(line: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[=\[ ]", line, maxsplit=1)[0]).lower()


def _pinned(names: set[str]) -> list[str]:
    """Return the lines of `_PINS` that pin these packages, with their hashes."""
    found: list[str] = []
    seen, is_wanted = set(), False
    for line in _PINS.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.startswith((" ", "#")):
            is_wanted = _name_of(line) in names
            seen.add(_name_of(line))
        if is_wanted:
            found.append(line)
    absent = sorted(names - seen)
    assert not absent, f"{', '.join(absent)}: not pinned by {_PINS}; expected all that the packages ask for"
    return found


def _by_hash(path: Path) -> str:
    name = path.name.partition("-")[0].replace("_", "-")
    return (
        f"{name} @ {path.absolute().as_uri()} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"
    )
