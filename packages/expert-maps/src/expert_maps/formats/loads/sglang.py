# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Dumps of SGLang's expert distribution recorder, mode ``stat``: ``logical_count`` [layers, E] or [steps, layers, E].

Source: sglang ``srt/eplb/expert_distribution.py``, ``_StatAccumulator.dump``: ``torch.save`` of rank, logical_count and
average_utilization_rate_over_window; the counts are summed over ranks, and rank 0 writes. The rows are **all** layers of
the model; dense ones stay zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expert_maps.errors import LoadError
from expert_maps.formats.loads.counts import Counts, Form, combine
from expert_maps.formats.loads.plain import member
from expert_maps.formats.loads.values import as_counts, naming

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expert_maps.formats.loads.document import Document
    from expert_maps.formats.loads.options import LoadOptions

_KEY = "logical_count"


def _matches(document: Document) -> bool:
    if document.named is None:
        return document.kind != "csv" and document.base.startswith(_KEY)
    return _KEY in document.named


def _read(documents: Sequence[Document], options: LoadOptions) -> Counts:
    parts = []
    for document in documents:
        with naming(document.name):
            if document.kind == "csv":
                msg = "a CSV file; expected a dump of SGLang's recorder (.json or .pt); its CSV is --format sglang-csv"
                raise LoadError(msg)
            value = document.value if document.named is None else member(document.named, options.key or _KEY)
            parts.append(Counts(as_counts(value), by="expert", all_layers=True))
    # Rank 0 alone writes, sums over ranks: several files were written one after another.
    ranks = {_rank(document) for document in documents}
    return combine(parts, options.files, "steps" if len(ranks) == 1 else None)


def _rank(document: Document) -> object:
    rank = (document.named or {}).get("rank")
    return rank if isinstance(rank, int) else None


SGLANG = Form("sglang", "SGLang recorder", _matches, _read)
