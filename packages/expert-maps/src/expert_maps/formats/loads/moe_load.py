# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""vllm-ascend's ``moe_load_N.npy``: counts by slot, [layers, ranks, local slots].

Source: vllm-ascend ``eplb/eplb_updator.py``, ``compute_and_set_moe_load`` (the gathered loads, layers first), and its
pull request 4876, which saves them. Which expert sits in a slot is told by the placement alone.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from expert_maps.errors import LoadError
from expert_maps.formats.loads.counts import Counts, Form, combine
from expert_maps.formats.loads.plain import member
from expert_maps.formats.loads.values import as_array, listed, naming
from expert_maps.load import refuse_bad

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expert_maps.formats.loads.document import Document
    from expert_maps.formats.loads.options import LoadOptions

_NAME = re.compile(r"moe_load(?:_(\d+))?\.np[yz]")
_KEY = "moe_load"


def _matches(document: Document) -> bool:
    if document.named is not None:
        return _KEY in document.named
    return _NAME.fullmatch(document.base) is not None and getattr(document.value, "ndim", 0) == 3  # noqa: PLR2004


def _read(documents: Sequence[Document], options: LoadOptions) -> Counts:
    numbers = [match[1] if (match := _NAME.fullmatch(document.base)) else None for document in documents]
    if all(number is not None for number in numbers):
        pairs = zip(numbers, documents, strict=True)
        documents = [document for _, document in sorted(pairs, key=lambda pair: int(pair[0] or 0))]
    parts = []
    for document in documents:
        with naming(document.name):
            parts.append(_one(document, options))
    return combine(parts, options.files, "steps")


def _one(document: Document, options: LoadOptions) -> Counts:
    if document.kind == "csv":
        msg = "a CSV file; expected an array [layers, ranks, slots]"
        raise LoadError(msg)
    if document.named is None:
        value = document.value
    else:
        only = next(iter(document.named)) if len(document.named) == 1 else _KEY
        if options.key is None and only not in document.named:
            msg = f"the file holds {listed(document.named)}; expected one array [layers, ranks, slots]; choose with --key"
            raise LoadError(msg)
        value = member(document.named, options.key or only)
    array = as_array(value)
    if array.ndim != 3 or 0 in array.shape:  # noqa: PLR2004
        msg = f"the array has shape {list(array.shape)}; expected [layers, ranks, slots] with every axis at least 1"
        raise LoadError(msg)
    refuse_bad(array, ("layer", "rank", "slot"))
    layers, ranks, slots = array.shape
    return Counts(array.reshape(1, layers, ranks * slots), by="slot", ranks=(ranks, slots))


MOE_LOAD = Form("vllm-ascend", "vllm-ascend moe_load, by physical slot", _matches, _read)
