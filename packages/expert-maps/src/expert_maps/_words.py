# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Counts in words."""

from __future__ import annotations


def counted(count: int | str, word: str) -> str:
    """Return a count, or one as it is shown, with its word: ``1 step``, ``2 steps``, ``5/6 slots``."""
    return f"{count} {word}{'' if str(count) == '1' else 's'}"
