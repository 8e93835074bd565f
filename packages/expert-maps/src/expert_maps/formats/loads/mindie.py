# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""MindIE's CSV files: one for each NPU, the matrix [layers, local experts] appended every few tokens.

Source: MindIE-LLM ``atb_llm/utils/moe_utils.py``, ``save_eplb_data`` (``decode_RANK.csv``, ``prefill_RANK.csv``), and
``eplb_expert_data_collect.py``: MoE layers only, and with speculation one more line for the draft layer. The columns
are what the rank holds, in the order of its slots.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from expert_maps._words import counted
from expert_maps.errors import LoadError
from expert_maps.formats.loads.counts import Counts, Form
from expert_maps.formats.loads.csv_tables import text_of
from expert_maps.formats.loads.values import check_table, listed, naming
from expert_maps.load import refuse_bad

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from expert_maps.formats.loads.document import Document
    from expert_maps.formats.loads.options import LoadOptions

    Float64Array = NDArray[np.float64]

_NAME = re.compile(r"(prefill|decode|warmup)(_topk)?_(\d+)\.csv")


def _matches(document: Document) -> bool:
    return document.kind == "csv" and _NAME.fullmatch(document.base) is not None


def _read(documents: Sequence[Document], options: LoadOptions) -> Counts:
    if options.files == "steps":
        msg = "--files is steps; expected ranks: MindIE's files are one for each NPU, and are joined"
        raise LoadError(msg)
    documents = _in_order(documents)
    layers = options.known_layers
    if layers is None:
        msg = (
            "MindIE CSV, where a line is a layer and every few tokens all layers are appended; expected --moe-layers "
            "(or --model), which says how many lines are one step"
        )
        raise LoadError(msg)
    parts = []
    for document in documents:
        with naming(document.name):
            parts.append(_steps(document, options, layers))
    if len({part.shape[:2] for part in parts}) > 1:
        lengths = listed(sorted({part.shape[0] for part in parts}))
        msg = f"the files have {lengths} steps; expected the same in the file of each rank"
        raise LoadError(msg)
    check_table((*parts[0].shape[:2], sum(part.shape[2] for part in parts)))
    widths = {part.shape[2] for part in parts}
    values = np.concatenate(parts, axis=2)
    experts = "" if options.placement else ", as experts 0 … in their order"
    return Counts(
        values,
        ranks=(len(parts), widths.pop()) if len(widths) == 1 else None,
        has_said_layers=True,
        details=(f"{counted(len(parts), 'file')} of ranks, joined{experts}",),
        warnings=_partial(documents),
    )


def _in_order(documents: Sequence[Document]) -> list[Document]:
    matches = [_NAME.fullmatch(document.base) for document in documents]
    topk = next(
        (document for document, match in zip(documents, matches, strict=True) if match and match[2]), None
    )
    if topk is not None:
        msg = f"{topk.name}: MindIE's expert ids of each token, not counts; expected the files without topk"
        raise LoadError(msg)
    phases = sorted({match[1] for match in matches if match})
    if len(phases) > 1:
        msg = f"the files are of {' and '.join(phases)}; expected one phase"
        raise LoadError(msg)
    if not all(matches):
        return list(documents)
    ranks = [int(match[3]) for match in matches if match]
    order = sorted(range(len(ranks)), key=ranks.__getitem__)
    ordered = [ranks[index] for index in order]
    if len(ranks) > 1 and ordered != list(range(len(ranks))):
        msg = f"the files are of ranks {listed(ordered)}; expected each of 0 … {len(ranks) - 1} once"
        raise LoadError(msg)
    return [documents[index] for index in order]


def _partial(documents: Sequence[Document]) -> tuple[str, ...]:
    if len(documents) > 1:
        return ()
    return ("one file of one rank: a load of all experts needs the files of all ranks",)


def _steps(document: Document, options: LoadOptions, layers: int) -> Float64Array:
    text = text_of(document, options)
    numbers = text.table()
    if len(numbers) % layers:
        msg = (
            f"has {counted(len(numbers), 'line')}; expected a multiple of {counted(layers, 'layer')} (with a draft layer there is a line more "
            "in each step: give --moe-layers with it, and --layers to leave it out)"
        )
        raise LoadError(msg)
    values: Float64Array = numbers.reshape(-1, layers, numbers.shape[1])
    refuse_bad(values, ("step", "layer", "local expert"))
    return values


MINDIE = Form("mindie", "MindIE CSV", _matches, _read)
