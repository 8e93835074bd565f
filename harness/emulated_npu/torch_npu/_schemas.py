# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Schemas of the ops, read from what the release itself carries: nothing of them is kept here."""

from __future__ import annotations

import ast
import re
import zipfile
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_YAML = "torch_npu/csrc/aten/npu_native_functions_by_codegen.yaml"
# Text in a compiled library: what stands between two zero bytes.
_TEXT = re.compile(rb"(?<=\0)\s*[a-z_][\w.]*\([^\0]*\)\s*->[^\0]*(?=\0)", re.IGNORECASE)
_STRING = r'"(?:[^"\\]|\\.)*"'


def of_torch_npu(wheel: Path) -> dict[str, str]:
    """Return op (with its overload's name) → schema, of a wheel of torch_npu.

    Only torch_npu's own ops: the file lists those of torch that it implements as well.

    Raises:
        ValueError: the file is no wheel of torch_npu.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            text = archive.read(_YAML).decode()
    except (OSError, KeyError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        msg = f"{wheel.name} cannot be read as a wheel of torch_npu: {error}; expected one with {_YAML}"
        raise ValueError(msg) from error
    schemas = _parsed(re.findall(r"func: (.*\S)", text))
    return {name: schema for name, schema in schemas.items() if not _is_torchs(name)}


def _is_torchs(name: str) -> bool:
    return bool(torch._C._jit_get_schemas_for_operator(f"aten::{name.partition('.')[0]}"))  # noqa: SLF001


def of_library(path: Path) -> dict[str, str]:
    """Return op → schema, of a compiled library of vllm-ascend: they are strings in it."""
    return _parsed(text.decode(errors="replace") for text in _TEXT.findall(path.read_bytes()))


def of_binding(path: Path) -> dict[str, str]:
    """Return op → schema, of a source release's csrc/torch_binding.cpp."""
    source = re.sub(r"^\s*//.*$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return _parsed(
        "".join(ast.literal_eval(part) for part in re.findall(_STRING, definition))
        for definition in re.findall(rf"ops\.def\(\s*((?:{_STRING}\s*)+)", source)
    )


def _parsed(texts: Iterable[str]) -> dict[str, str]:
    """Keep what torch takes for a schema; of several with one name the first."""
    schemas: dict[str, str] = {}
    for text in texts:
        schema = " ".join(text.split())
        try:
            torch._C.parse_schema(schema)  # noqa: SLF001 - torch has no public parser
        except RuntimeError:
            continue
        schemas.setdefault(schema.partition("(")[0].strip(), schema)
    return schemas
