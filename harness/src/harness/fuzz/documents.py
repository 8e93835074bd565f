# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""JSON documents by Hypothesis: the keys that a target knows, with values of any type in any place."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from harness.fuzz.mutations import STRANGERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.fuzz.targets import Target

# Documents that are drawn at once, before any is read.
_BATCH = 500


def prepare() -> None:
    """Import what Hypothesis imports when it first draws."""
    _draw(_documents(["a"]), 2, 0)


def make(target: Target, count: int, number: int) -> Iterator[bytes]:
    """Yield documents, the same for the same number.

    Args:
        target: whose seeds name the keys.
        count: of documents.
        number: of the run.
    """
    strategy = _documents(sorted({key for content in target.seeds for key in _keys(json.loads(content))}))
    for start in range(0, count, _BATCH):
        yield from _draw(strategy, min(_BATCH, count - start), number + start)


def _draw(strategy: st.SearchStrategy[Any], count: int, number: int) -> list[bytes]:
    drawn: list[bytes] = []

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def keep(document: object) -> None:
        drawn.append(json.dumps(document).encode())

    keep()
    return drawn


def _documents(keys: list[str]) -> st.SearchStrategy[Any]:
    numbers = st.one_of(st.integers(-1, 16), st.floats(), st.integers())
    leaves = st.one_of(numbers, st.booleans(), st.none(), st.text(max_size=8), st.sampled_from(STRANGERS))
    names = (
        st.one_of(st.sampled_from(keys), st.integers(0, 9).map(str), st.text(max_size=4))
        if keys
        else st.text()
    )
    rows = st.lists(st.lists(st.integers(-1, 9), max_size=8), max_size=4)

    def wider(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.one_of(st.lists(inner, max_size=6), st.dictionaries(names, inner, max_size=8), rows)

    values = st.recursive(leaves, wider, max_leaves=20)
    return st.one_of(st.dictionaries(names, values, max_size=8), values)


def _keys(document: object) -> Iterator[str]:
    if isinstance(document, dict):
        for key, value in document.items():
            yield key
            yield from _keys(value)
    elif isinstance(document, list):
        for value in document[:3]:
            yield from _keys(value)
