# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The ops in plain torch, a module for each family. Importing one registers nothing with torch."""

from __future__ import annotations

import importlib

FAMILIES = (
    "atb",
    "attention",
    "cache",
    "custom",
    "dispatch",
    "grouped_matmul",
    "memory",
    "mla",
    "norms",
    "quantisation",
    "rotary",
    "routing",
)


def load() -> None:
    """Import all families, so that the registry has their ops."""
    for family in FAMILIES:
        importlib.import_module(f"{__name__}.{family}")
