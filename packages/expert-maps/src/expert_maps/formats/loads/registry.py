# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The forms of load files, in the order in which a file is tried for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expert_maps.errors import LoadError
from expert_maps.formats.loads.csv_tables import CSV, CSV_ROWS
from expert_maps.formats.loads.layer_dicts import ESFT, MINDSPEED
from expert_maps.formats.loads.mindie import MINDIE
from expert_maps.formats.loads.moe_load import MOE_LOAD
from expert_maps.formats.loads.plain import ARRAY, FORCED_ARRAY, RECORD
from expert_maps.formats.loads.routed_experts import ROUTED_EXPERTS
from expert_maps.formats.loads.sglang import SGLANG
from expert_maps.formats.loads.sglang_csv import SGLANG_CSV
from expert_maps.formats.loads.tensorrt_llm import TENSORRT_LLM
from expert_maps.formats.loads.values import listed, naming, shown
from expert_maps.formats.loads.vllm import VLLM

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expert_maps.formats.loads.counts import Form
    from expert_maps.formats.loads.document import Document

_RECOGNISED = (
    RECORD,
    SGLANG,
    VLLM,
    MOE_LOAD,
    ROUTED_EXPERTS,
    TENSORRT_LLM,
    MINDSPEED,
    ESFT,
    MINDIE,
    SGLANG_CSV,
    CSV,
    ARRAY,
)
_FORCED = {form.name: form for form in (*_RECOGNISED[1:-1], CSV_ROWS, FORCED_ARRAY)}
FORM_NAMES = tuple(_FORCED)
"""What ``format`` and ``--format`` take."""


def form_of(documents: Sequence[Document], name: str | None, key: str | None) -> Form:
    """Return the form of some files: the one that is named, or the one that all are recognised as.

    Raises:
        LoadError: an unknown name, or files of several forms.
    """
    if name is not None:
        if name not in _FORCED:
            msg = f"format is {shown(name)!r}; expected one of {', '.join(FORM_NAMES)}"
            raise LoadError(msg)
        return _FORCED[name]
    forms = []
    for document in documents:
        with naming(document.name):
            forms.append(_recognise(document, key))
    if len(set(forms)) > 1:
        kinds = listed(
            [f"{document.name}: {form.title}" for document, form in zip(documents, forms, strict=True)]
        )
        msg = f"the files are of several forms ({kinds}); expected one"
        raise LoadError(msg)
    return forms[0]


def _recognise(document: Document, key: str | None) -> Form:
    found = next(form for form in _RECOGNISED if form.matches(document))
    # Another array of the file than the one that its form knows is just an array.
    own = {
        SGLANG: "logical_count",
        VLLM: "expert_load_",
        ROUTED_EXPERTS: "routed_experts",
        MOE_LOAD: "moe_load",
    }
    if key is not None and not key.startswith(own.get(found, "")):
        return ARRAY
    return found
