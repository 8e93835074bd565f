# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Wheels: fetched, never installed. Of torch_npu's, schemas and shape functions are read from the zip."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from pathlib import Path

# What the index must give for a version; the newest one is checked as it comes. The contract is the same
# text in the wheels of every Python and architecture.
PINNED = {
    "2.8.0": "f437680685581f84c713e4625fdf3d95369856f1a583f38622f34e766f54039d",
    "2.10.0": "4e14fa849000189c26b006be1d1700e2f46edda48c84a7de05efd9ce6786a215",
    "2.13.0": "0deb809cf447d3fce636ccfdc9c9f874950f1fe76f18f4aaab31e2d345f7dac0",
}
# pip takes no older platform for granted: vllm-ascend's wheels are for 2.24, the others for 2.28.
_PLATFORM = (
    *("--python-version", "3.11", "--only-binary", ":all:"),
    *("--platform", "manylinux_2_28_x86_64", "--platform", "manylinux_2_24_x86_64"),
)
_TIMEOUT_S = 600

SCHEMAS = "torch_npu/csrc/aten/npu_native_functions_by_codegen.yaml"
SHAPE_FUNCTIONS = "torch_npu/op_plugin/meta/_meta_registrations.py"
DOCS = "torch_npu/_op_plugin_docs.py"


class ContractError(RuntimeError):
    """The contract could not be checked, which is a failure."""


@dataclass(frozen=True)
class Wheel:
    """A wheel's texts.

    Attributes:
        version: torch_npu's version.
        schemas: op name → schema string, of the ops without an overload name.
        shape_functions: source of the functions that give shapes and dtypes.
        docs: source of the documentation.
    """

    version: str
    schemas: dict[str, str]
    shape_functions: str
    docs: str

    def schema(self, name: str) -> torch._C.FunctionSchema | None:
        """Return an op's parsed schema; None if the version has no such op."""
        text = self.schemas.get(name)
        return None if text is None else torch._C.parse_schema(f"npu::{text}")  # noqa: SLF001 - no public parser


def fetch(folder: Path) -> list[Path]:
    """Download the wheels of the pinned versions and the newest.

    Args:
        folder: where they are kept; a pinned wheel that is there is not fetched again.

    Returns:
        Their paths, in order of version, each version once.

    Raises:
        ContractError: one could not be fetched.
    """
    paths = [
        fetch_pinned(folder / version, "torch-npu", version, sha256) for version, sha256 in PINNED.items()
    ]
    for stale in (folder / "newest").glob("*.whl"):
        stale.unlink()
    newest = _download(folder / "newest", "torch-npu", ["torch-npu"])
    return paths if newest.name in {path.name for path in paths} else [*paths, newest]


def fetch_pinned(folder: Path, project: str, version: str, sha256: str) -> Path:
    """Download one version's wheel for Python 3.11 on x86-64 Linux.

    Args:
        folder: where this version is kept; a wheel with this hash that is there is not fetched again.
        project: its name in the index.
        version: of it.
        sha256: what the index must give.

    Returns:
        The wheel's path.

    Raises:
        ContractError: it could not be fetched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pinned = folder / "requirement.txt"
    pinned.write_text(f"{project}=={version} --hash=sha256:{sha256}\n", encoding="utf-8")
    return _download(folder, project, ["--require-hashes", "-r", str(pinned)])


def _download(folder: Path, project: str, what: list[str]) -> Path:
    name = project.replace("-", "_")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        *_PLATFORM,
        "-d",
        str(folder),
        *what,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)  # noqa: S603 - no shell, this interpreter
    except subprocess.TimeoutExpired as error:
        msg = (
            f"could not fetch {name} ({folder.name}): pip took more than {_TIMEOUT_S} s; nothing was checked"
        )
        raise ContractError(msg) from error
    found = sorted(folder.glob(f"{name}-*.whl"))
    if done.returncode or len(found) != 1:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        msg = f"could not fetch {name} ({folder.name}): {'; '.join(lines) or 'no wheel came'}; nothing was checked"
        raise ContractError(msg)
    return found[0]


def read(path: Path) -> Wheel:
    """Read a wheel's contract.

    Raises:
        ContractError: the file is no wheel of torch_npu, or has not the texts that every wheel has had.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            texts = [archive.read(name).decode() for name in (SCHEMAS, SHAPE_FUNCTIONS, DOCS)]
    except (OSError, KeyError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        msg = f"{path.name}: cannot be read as a wheel of torch_npu: {error}"
        raise ContractError(msg) from error
    schemas: dict[str, str] = {}
    for schema, name in re.findall(r"func: ((\w+)\(.*->.*\S)", texts[0]):
        schemas.setdefault(name, schema)
    return Wheel(path.name.split("-")[1], schemas, texts[1], texts[2])
