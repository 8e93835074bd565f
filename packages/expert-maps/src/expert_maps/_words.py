# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Counts in words."""

from __future__ import annotations


def counted(count: int, word: str) -> str:
    """Return a count with its word: ``1 step``, ``2 steps``."""
    return f"{count} {word}{'' if count == 1 else 's'}"
