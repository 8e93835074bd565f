# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Wheels: fetched, never installed. Of torch_npu's, schemas and shape functions are read from the zip."""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from harness.contract.fetching import ContractError, fetch_newest, fetch_pinned

if TYPE_CHECKING:
    from pathlib import Path

# What the index must give for a version; the newest one is checked as it comes. The contract is the same
# text in the wheels of every Python and architecture.
PINNED = {
    "2.8.0": "f437680685581f84c713e4625fdf3d95369856f1a583f38622f34e766f54039d",
    "2.10.0": "4e14fa849000189c26b006be1d1700e2f46edda48c84a7de05efd9ce6786a215",
    "2.13.0": "0deb809cf447d3fce636ccfdc9c9f874950f1fe76f18f4aaab31e2d345f7dac0",
}
SCHEMAS = "torch_npu/csrc/aten/npu_native_functions_by_codegen.yaml"
SHAPE_FUNCTIONS = "torch_npu/op_plugin/meta/_meta_registrations.py"
DOCS = "torch_npu/_op_plugin_docs.py"


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
    newest = fetch_newest(folder / "newest", "torch-npu")
    return paths if newest.name in {path.name for path in paths} else [*paths, newest]


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


__all__ = ["PINNED", "ContractError", "Wheel", "fetch", "fetch_pinned", "read"]
