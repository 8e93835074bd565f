# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Traces of routed experts: ids [tokens, layers, top_k] for each request, counted into [windows, layers, E].

Source: vLLM ``enable_return_routed_experts`` (``CompletionOutput.routed_experts``); SGLang returns the same under this
name. Its rows may be all layers of the model: those of dense layers stay 0 in every place, which no routing does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from expert_maps import limits
from expert_maps._words import counted
from expert_maps.errors import LoadError
from expert_maps.formats.loads.counts import Counts, Form
from expert_maps.formats.loads.plain import member
from expert_maps.formats.loads.suspicion import pieces
from expert_maps.formats.loads.values import as_numbers, check_axes, check_table, listed, naming
from expert_maps.validation import first_true

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from expert_maps.formats.loads.document import Document
    from expert_maps.formats.loads.options import LoadOptions

    Float64Array = NDArray[np.float64]

_NAME = "routed_experts"
_CHUNK = 2**14  # tokens counted at once


def _matches(document: Document) -> bool:
    if document.named is None:
        return document.kind != "csv" and document.base.startswith(_NAME)
    return any(name.startswith(_NAME) for name in document.named)


def _read(documents: Sequence[Document], options: LoadOptions) -> Counts:
    if options.files == "ranks":
        msg = "--files is ranks; expected steps: traces of routed experts are one for each request"
        raise LoadError(msg)
    experts = options.known_experts
    if experts is None:
        msg = "a trace of routed experts tells ids, not how many experts there are; expected --experts or --model"
        raise LoadError(msg)
    requests: list[NDArray[Any]] = []
    for document in documents:
        with naming(document.name):
            for array in _arrays(document, options):
                _check(array, experts)
                requests.append(array)
                if len(requests) > limits.MAX_ARRAYS:
                    msg = f"the trace has more than {limits.MAX_ARRAYS} requests; expected at most so many"
                    raise LoadError(msg)
    if len({request.shape[1:] for request in requests}) != 1:
        shapes = listed(sorted({str(list(request.shape[1:])) for request in requests}))
        msg = f"requests have [layers, top_k] {shapes}; expected the same in each, and at least one"
        raise LoadError(msg)
    tokens = sum(len(request) for request in requests)
    layers, top_k = requests[0].shape[1:]
    window = options.window or tokens
    check_axes(layers, experts, -(-tokens // window))
    check_table((-(-tokens // window), layers, experts))
    dense = np.ones(layers, dtype=bool)
    for request in requests:
        dense &= ~(request != 0).any(axis=(0, 2)) & (top_k > 1)
    _refuse_repeated(requests, dense)
    values = _count(requests, experts, window, tokens)
    values[:, dense] = 0
    details = (f"{counted(len(requests), 'request')}, {tokens} tokens, top {top_k}",)
    return Counts(values, by="expert", all_layers=bool(dense.any()), details=details)


def _arrays(document: Document, options: LoadOptions) -> Iterator[NDArray[Any]]:
    if document.kind == "csv":
        msg = "a CSV file; expected expert ids [tokens, layers, top_k]"
        raise LoadError(msg)
    if document.named is None:
        values: list[object] = [document.value]
    elif options.key is not None:
        values = [member(document.named, options.key)]
    else:
        named = document.named
        values = [named[name] for name in named if name.startswith(_NAME)] or list(named.values())
    for value in values:
        # Lists of several requests differ in tokens, so each is an array of its own.
        requests = value if isinstance(value, list) and _depth(value) > 3 else [value]  # noqa: PLR2004
        for request in requests:
            yield as_numbers(request)


def _depth(value: object) -> int:
    depth = 0
    while isinstance(value, list) and value:
        value, depth = value[0], depth + 1
    return depth + (value.ndim if isinstance(value, np.ndarray) else 0)


def _check(array: NDArray[Any], experts: int) -> None:
    """Refuse what are no expert ids, or the same twice for one token and layer that is not dense."""
    if array.ndim != 3 or 0 in array.shape:  # noqa: PLR2004
        msg = f"the trace has shape {list(array.shape)}; expected [tokens, layers, top_k], every axis at least 1"
        raise LoadError(msg)
    start = 0
    for piece in pieces(array):
        bad = first_true(~((piece >= 0) & (piece < experts) & (np.floor(piece) == piece)))
        if bad is not None:
            token, layer, place = bad[0]
            msg = (
                f"the expert id at token {start + token}, layer {layer}, place {place} is {float(piece[bad[0]]):g}; "
                f"expected one of 0 … {experts - 1}"
            )
            raise LoadError(msg)
        start += len(piece)


def _refuse_repeated(requests: Sequence[NDArray[Any]], dense: NDArray[np.bool_]) -> None:
    for request in requests:
        start = 0
        for piece in pieces(request):
            ordered = np.sort(piece, axis=2)
            twice = first_true((ordered[..., 1:] == ordered[..., :-1]) & ~dense[None, :, None])
            if twice is not None:
                token, layer, place = twice[0]
                msg = (
                    f"token {start + token} has expert {float(ordered[token, layer, place]):g} twice in layer {layer}; "
                    "expected top-k ids that differ: this is no trace of routed experts"
                )
                raise LoadError(msg)
            start += len(piece)


def _count(requests: Sequence[NDArray[Any]], experts: int, window: int, tokens: int) -> Float64Array:
    layers = requests[0].shape[1]
    values = np.zeros((-(-tokens // window), layers * experts))
    row_of_layer = np.arange(layers)[None, :, None] * experts
    done = 0
    for request in requests:
        start = 0
        while start < len(request):
            stop = min(start + min(_CHUNK, window - done % window), len(request))
            ids = (request[start:stop].astype(np.int64) + row_of_layer).ravel()
            values[done // window] += np.bincount(ids, minlength=layers * experts)
            done += stop - start
            start = stop
    return values.reshape(-1, layers, experts)


ROUTED_EXPERTS = Form("routed-experts", "trace of routed experts", _matches, _read)
