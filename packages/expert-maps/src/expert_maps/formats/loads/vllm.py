# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Counts by physical slot that vLLM's EPLB keeps: ``expert_load_pass`` [L, P], ``expert_load_window` [steps, L, P].

Source: vLLM ``distributed/eplb/eplb_state.py``. Which expert sits in a slot is told by the placement alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expert_maps.errors import LoadError
from expert_maps.formats.loads.counts import Counts, Form, combine
from expert_maps.formats.loads.plain import member
from expert_maps.formats.loads.values import as_counts, listed, naming

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expert_maps.formats.loads.document import Document
    from expert_maps.formats.loads.options import LoadOptions

_KEYS = ("expert_load_pass", "expert_load_window")


def _matches(document: Document) -> bool:
    if document.named is None:
        return document.kind != "csv" and document.base.startswith(_KEYS)
    return any(key in document.named for key in _KEYS)


def _read(documents: Sequence[Document], options: LoadOptions) -> Counts:
    parts = []
    for document in documents:
        with naming(document.name):
            parts.append(Counts(as_counts(_array(document, options), ("step", "layer", "slot")), by="slot"))
    return combine(parts, options.files)


def _array(document: Document, options: LoadOptions) -> object:
    if document.kind == "csv":
        msg = f"a CSV file; expected an array or one of {', '.join(_KEYS)}"
        raise LoadError(msg)
    if document.named is None:
        return document.value
    if options.key is not None:
        return member(document.named, options.key)
    found = [key for key in _KEYS if key in document.named]
    if len(found) != 1:
        msg = f"the file holds {listed(document.named)}; expected exactly one of {', '.join(_KEYS)}; choose with --key"
        raise LoadError(msg)
    return document.named[found[0]]


VLLM = Form("vllm", "vLLM EPLB, by physical slot", _matches, _read)
