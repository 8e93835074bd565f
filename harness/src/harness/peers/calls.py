# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How often a test has called a function of ours: one that passes without it proves nothing."""

from __future__ import annotations

_count = 0


def reset() -> None:
    """Start a test."""
    global _count  # noqa: PLW0603 - one process runs one test at a time
    _count = 0


def hit(times: int = 1) -> None:
    """Say that ours was called."""
    global _count  # noqa: PLW0603 - see above
    _count += times


def count() -> int:
    """Return how often ours was called since the test started."""
    return _count
