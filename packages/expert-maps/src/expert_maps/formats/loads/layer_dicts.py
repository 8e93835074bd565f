# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""JSON objects of layers: MindSpeed-RL's ``{layer: {expert: count}}`` and ESFT's summary of such under two keys.

Sources: MindSpeed-RL ``docs/features/EPLB.md`` (token_collects); ESFT ``scripts/expert/generate_expert_config.py``
(``token_scores`` and ``gate_scores``, layers from 1). Layers are sorted by number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from expert_maps import limits
from expert_maps.errors import LoadError
from expert_maps.formats.loads import by_id
from expert_maps.formats.loads.counts import Counts, Form, combine
from expert_maps.formats.loads.plain import member
from expert_maps.formats.loads.values import listed, naming, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from expert_maps.formats.loads.document import Document
    from expert_maps.formats.loads.options import LoadOptions

    Float64Array = NDArray[np.float64]
    Int64Array = NDArray[np.int64]

_TOKENS, _GATES = "token_scores", "gate_scores"
_SHARES = "each expert's scores add up to 1 over the layers, as ESFT's script divides them: experts of a layer cannot be compared"
_ID_DIGITS = 9


def is_layers(value: object) -> bool:
    """Say whether every key is a number and every value an object with numbers as keys, or a list."""
    if not isinstance(value, dict) or not value or not all(map(_is_id, value)):
        return False
    return all(
        isinstance(item, list) or (isinstance(item, dict) and all(map(_is_id, item)))
        for item in value.values()
    )


def _is_id(key: object) -> bool:
    return isinstance(key, str) and key.isdecimal() and len(key) <= _ID_DIGITS


def _is_mindspeed(document: Document) -> bool:
    return is_layers(document.named)


def _is_esft(document: Document) -> bool:
    return document.named is not None and is_layers(document.named.get(_TOKENS))


def _read_mindspeed(documents: Sequence[Document], options: LoadOptions) -> Counts:
    parts = []
    for document in documents:
        with naming(document.name):
            found = document.named if options.key is None else member(document.named or {}, options.key)
            parts.append(_layers(found, options))
    return combine(parts, options.files)


def _read_esft(documents: Sequence[Document], options: LoadOptions) -> Counts:
    key = options.key or _TOKENS
    parts = []
    for document in documents:
        with naming(document.name):
            counts = _layers(member(document.named or {}, key), options)
            shares = counts.values.sum(axis=(0, 1))
            is_share = len(counts.labels or ()) > 1 and bool(np.allclose(shares, 1, atol=0.01))
            parts.append(
                Counts(
                    counts.values,
                    "expert",
                    counts.labels,
                    details=(key,),
                    warnings=(_SHARES,) if is_share else (),
                )
            )
    return combine(parts, options.files)


def _layers(value: object, options: LoadOptions) -> Counts:
    if not is_layers(value):
        keys = (
            listed([repr(shown(name)) for name in value]) if isinstance(value, dict) else type(value).__name__
        )
        msg = f"the object has keys {keys}; expected {{layer: {{expert: count}}}} with numbers as keys"
        raise LoadError(msg)
    rows = cast("Mapping[str, list[object] | dict[str, object]]", value)
    total = sum(map(len, rows.values()))
    if total > limits.MAX_SLOTS:
        msg = f"the object has {total} counts; expected at most {limits.MAX_SLOTS}, of layers and experts"
        raise LoadError(msg)
    if len({*map(int, rows)}) != len(rows):
        msg = "a layer stands twice, with and without leading zeros; expected each once"
        raise LoadError(msg)
    parts = [_row(int(layer), row) for layer, row in rows.items()]
    layers = np.repeat(list(map(int, rows)), list(map(len, rows.values())))
    experts, counts = (np.concatenate([part[index] for part in parts]) for index in (0, 1))
    table, labels = by_id.tabulate(layers.astype(np.int64), experts, counts, options)
    return Counts(table[None], by="expert", labels=labels, warnings=by_id.missing_layers(labels))


def _row(layer: int, row: list[object] | dict[str, object]) -> tuple[Int64Array, Float64Array]:
    """Return the ids of a layer's experts, and their counts."""
    ids = list(map(int, row)) if isinstance(row, dict) else range(len(row))
    counts = list(row.values()) if isinstance(row, dict) else row
    if not set(map(type, counts)) <= {int, float}:
        expert, count = next(
            (expert, count)
            for expert, count in zip(ids, counts, strict=True)
            if type(count) not in {int, float}
        )
        msg = f"the count of layer {layer}, expert {expert} is {shown(repr(count))}; expected a number"
        raise LoadError(msg)
    try:
        numbers = np.array(counts, dtype=np.float64)
    except OverflowError as error:
        msg = f"a count of layer {layer} is beyond any number of tokens"
        raise LoadError(msg) from error
    return np.array(ids, dtype=np.int64), numbers


MINDSPEED = Form("mindspeed", "MindSpeed-RL {layer: {expert: count}}", _is_mindspeed, _read_mindspeed)
ESFT = Form("esft", "ESFT summary", _is_esft, _read_esft)
