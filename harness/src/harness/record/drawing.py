# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How plots are drawn: without a display, the same file from the same figures, and nobody else's settings changed."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def drawing(**settings: str | float) -> Iterator[None]:
    """Draw in a `with` block or in the function below it.

    Args:
        settings: matplotlib's, with ``_`` where a name has a dot: ``font_size``.
    """
    # Only who draws needs it.
    import matplotlib as mpl

    mpl.use("agg")
    given: dict[Any, Any] = {name.replace("_", ".", 1): value for name, value in settings.items()}
    with mpl.rc_context({**given, "svg.hashsalt": "expert-maps"}):
        yield
