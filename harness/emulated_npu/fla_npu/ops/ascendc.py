# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Imported only."""

from __future__ import annotations

from torch_npu._imports import ImportedOnly


def __getattr__(name: str) -> ImportedOnly:
    """Return a name that can be imported and not called."""
    if name.startswith("__"):
        raise AttributeError(name)
    return ImportedOnly(f"fla_npu.ops.ascendc.{name}")
