# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""TensorRT-LLM's ``ExpertStatistic``: ``rankN.safetensors``, an array [E] under ``ITERATION_LAYER`` each.

Source: TensorRT-LLM ``_torch/modules/fused_moe/moe_load_balancer`` and
``examples/wide_ep/ep_load_balancer/utils.py``, which adds the files of all ranks. Layers are absolute.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from expert_maps import limits
from expert_maps.errors import LoadError
from expert_maps.formats.loads.by_id import missing_layers
from expert_maps.formats.loads.counts import Counts, Form, combine
from expert_maps.formats.loads.values import (
    as_numbers,
    check_axes,
    check_table,
    listed,
    naming,
    shown,
    spans,
)
from expert_maps.load import refuse_bad

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expert_maps.formats.loads.document import Document
    from expert_maps.formats.loads.options import LoadOptions

_KEY = re.compile(r"(\d{1,12})_(\d{1,9})")


def _matches(document: Document) -> bool:
    named = document.named
    return bool(named) and named is not None and all(_KEY.fullmatch(name) for name in named)


def _read(documents: Sequence[Document], options: LoadOptions) -> Counts:
    if options.key is not None:
        msg = f"key is {shown(options.key)!r}; expected none: every array is an iteration and a layer"
        raise LoadError(msg)
    parts = []
    for document in documents:
        with naming(document.name):
            parts.append(_one(document))
    return combine(parts, options.files, "ranks")


def _one(document: Document) -> Counts:
    if not _matches(document) or document.named is None:
        msg = "expected arrays of the names ITERATION_LAYER, like 100_3, as TensorRT-LLM's ExpertStatistic writes them"
        raise LoadError(msg)
    if "_raw." in document.base:
        msg = "TensorRT-LLM's expert ids of each token (raw), not counts; expected rankN.safetensors"
        raise LoadError(msg)
    if len(document.named) > limits.MAX_ARRAYS:
        msg = f"there are {len(document.named)} arrays; expected at most {limits.MAX_ARRAYS}"
        raise LoadError(msg)
    keys = {
        name: (int(match[1]), int(match[2])) for name in document.named if (match := _KEY.fullmatch(name))
    }
    steps = sorted({step for step, _ in keys.values()})
    layers = sorted({layer for _, layer in keys.values()})
    found = set(keys.values())
    if len(found) != len(keys):
        msg = "an iteration and layer stands twice, with and without leading zeros; expected each once"
        raise LoadError(msg)
    if len(keys) != len(steps) * len(layers):
        step, layer = next((s, n) for s in steps for n in layers if (s, n) not in found)
        msg = f"there is no array {step}_{layer}; expected every layer in every iteration"
        raise LoadError(msg)
    if layers[-1] >= limits.MAX_LAYERS:
        msg = f"layer id is {layers[-1]}; expected one below {limits.MAX_LAYERS}"
        raise LoadError(msg)
    arrays = {keys[name]: as_numbers(value) for name, value in document.named.items()}
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) > 1 or len(next(iter(shapes))) != 1:
        msg = f"the arrays have shapes {listed(sorted(map(list, shapes)))}; expected one [E] for all"
        raise LoadError(msg)
    experts = next(iter(shapes))[0]
    check_axes(len(layers), experts, len(steps))
    check_table((len(steps), len(layers), experts))
    values = np.empty((len(steps), len(layers), experts))
    for row, step in enumerate(steps):
        for column, layer in enumerate(layers):
            values[row, column] = arrays[step, layer]
    refuse_bad(values, ("step", "row", "expert"))
    details = (f"iterations {spans(steps)}",)
    return Counts(values, "expert", tuple(layers), details=details, warnings=missing_layers(tuple(layers)))


TENSORRT_LLM = Form("tensorrt-llm", "TensorRT-LLM ExpertStatistic", _matches, _read)
