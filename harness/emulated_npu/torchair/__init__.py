# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""torchair makes graphs; without them its names are only looked up."""

from __future__ import annotations

from torch_npu._imports import ImportedOnly


def __getattr__(name: str) -> ImportedOnly:
    """Return a name that can be imported and not called."""
    if name.startswith("__"):
        raise AttributeError(name)
    return ImportedOnly(f"torchair.{name}")
