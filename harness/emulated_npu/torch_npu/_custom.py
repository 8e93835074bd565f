# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`vllm_ascend.vllm_ascend_C`, vllm-ascend's compiled library: importing it defines its ops."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch_npu import _environment, _registry, _schemas
from torch_npu._imports import ImportedOnly, Supplied, find_first

if TYPE_CHECKING:
    import types
    from collections.abc import Sequence

_NAME = "vllm_ascend.vllm_ascend_C"


def install() -> None:
    """Supply the module when vllm-ascend imports it."""
    find_first(Supplied(_NAME, _fill))


def read_schemas(folders: Sequence[str]) -> dict[str, str]:
    """Return the schemas of a release: of its source, if the environment names it, else of its library.

    Args:
        folders: where the package vllm_ascend is.

    Raises:
        ImportError: there is neither, or no schema in it.
    """
    binding = _environment.binding()
    libraries = [path for folder in folders for path in sorted(Path(folder).glob("vllm_ascend_C*.so"))]
    if binding is None and not libraries:
        msg = f"{_NAME}: there is no vllm_ascend_C*.so in {list(folders)}; expected one, or {_environment.BINDING}"
        raise ImportError(msg)
    schemas = _schemas.of_library(libraries[0]) if binding is None else _schemas.of_binding(binding)
    if not schemas:
        msg = f"{_NAME}: no schema of an op was found in {(binding or libraries[0]).name}"
        raise ImportError(msg)
    return schemas


def _fill(module: types.ModuleType, folders: Sequence[str]) -> None:
    library = _registry.define(_registry.CUSTOM, read_schemas(folders))
    # What camem.py imports of it: an allocator, for sleep mode.
    names = ("init_module", "python_create_and_map", "python_unmap_and_release")
    module.__dict__.update({name: ImportedOnly(f"{_NAME}.{name}") for name in names}, library=library)
