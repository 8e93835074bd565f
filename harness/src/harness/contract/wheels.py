# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Wheels: fetched, never installed. Of torch_npu's, schemas and shape functions are read from the zip."""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from packaging.version import Version

from harness.contract.fetching import ContractError, fetch_newest, fetch_pinned, sha256_of

if TYPE_CHECKING:
    from pathlib import Path

# What the index must give: the oldest and the newest that a served release pins, and the newest that there was. Their
# shape functions are run, so no other wheel is taken unasked. The contract is the same text in the wheels of every
# Python and architecture.
PINNED = {
    "2.9.0": "afe075e10593b3a7e5414322bff7ff54e6d5a8836e9af8f00bc3e4466dadf6bb",
    "2.10.0": "4e14fa849000189c26b006be1d1700e2f46edda48c84a7de05efd9ce6786a215",
    "2.10.0.post4": "7d88428d9bb8473919a38947617fcc481cb6e28927a8aa30e486a9bc42f30d90",
    "2.14.0": "7736f7d82cf9f16c7dfc4537f7e7c638153da760273a193455e70857f912189e",
}
# Which only rows of the table name that are compared with their source.
OTHERS = {"2.10.0.post2": "63a591ef77883c8b644be2f12dd15191e14f34df5d8fce2cd4b7d124f626924d"}

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


def fetch(folder: Path, *, everything: bool = False, newest: bool = False) -> list[Path]:
    """Download the wheels of the pinned versions.

    Args:
        folder: where they are kept; a wheel that is there is not fetched again.
        everything: also those that no served release pins.
        newest: also the newest, whatever it is; see `may_be_run`.

    Returns:
        Their paths, in order of version, each version once.

    Raises:
        ContractError: one could not be fetched.
    """
    pins = {**PINNED, **OTHERS} if everything else PINNED
    paths = [
        fetch_pinned(folder / version, "torch-npu", version, pins[version])
        for version in sorted(pins, key=Version)
    ]
    if newest:
        found = fetch_newest(folder / "newest", "torch-npu")
        if found.name not in {path.name for path in paths}:
            paths.append(found)
    return paths


def may_be_run(path: Path) -> bool:
    """Return whether a wheel is one that was looked at and pinned; any other is only read."""
    return sha256_of(path) in {*PINNED.values(), *OTHERS.values()}


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


__all__ = ["OTHERS", "PINNED", "ContractError", "Wheel", "fetch", "fetch_pinned", "may_be_run", "read"]
