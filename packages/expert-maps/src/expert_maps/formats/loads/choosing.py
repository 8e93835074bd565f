# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Which rows and steps of a file are the load: MoE layers only, by the model's rule or by the caller's choice."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from expert_maps._words import counted
from expert_maps.errors import LoadError
from expert_maps.formats.loads.values import layers_named, spans

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expert_maps.formats.loads.counts import Counts
    from expert_maps.formats.loads.options import LoadOptions, ModelShape


@dataclass(frozen=True)
class Chosen:
    """What was taken of the rows.

    Attributes:
        counts: the counts of the rows that are left, with their numbers where they are known.
        num_rows: rows of the file.
        dense: the rows that were left out as dense layers, by number.
        is_said: whether the caller chose the rows.
    """

    counts: Counts
    num_rows: int
    dense: tuple[int, ...] = ()
    is_said: bool = False


def choose_layers(counts: Counts, options: LoadOptions) -> Chosen:
    """Take the MoE layers.

    Raises:
        LoadError: a layer that is asked for is not there, a dense one has tokens, or no layer has any.
    """
    num_rows = counts.values.shape[1]
    labels = counts.labels or tuple(range(num_rows))
    if options.layers is not None:
        return _said(counts, labels if options.layers == "all" else options.layers, labels)
    model = options.model
    if model is not None and model.moe_layers is not None and num_rows != len(model.moe_layers):
        by_model = _by_model(counts, model, labels)
        if by_model is not None:
            return by_model
    if counts.all_layers:
        return _without_zeros(counts, labels, options)
    if model is not None and model.moe_layers is not None and num_rows == len(model.moe_layers):
        return Chosen(_with_labels(counts, model), num_rows)
    return Chosen(counts, num_rows)


def _said(counts: Counts, layers: tuple[int, ...], labels: tuple[int, ...]) -> Chosen:
    missing = sorted(set(layers) - set(labels))
    if missing:
        are = "is" if len(missing) == 1 else "are"
        msg = f"{layers_named(missing)} {are} not in the file; it has {spans(labels)}"
        raise LoadError(msg)
    rows = [labels.index(layer) for layer in layers]
    return Chosen(_take(counts, rows, layers), len(labels), is_said=True)


def _by_model(counts: Counts, model: ModelShape, labels: tuple[int, ...]) -> Chosen | None:
    layers = model.moe_layers or ()
    has_all = set(layers) <= set(labels) and (
        counts.all_layers or counts.labels is not None or len(labels) == model.num_hidden_layers
    )
    if not has_all:
        return None
    dense = tuple(label for label in labels if label not in set(layers))
    busy = [label for label in dense if counts.values[:, labels.index(label)].any()]
    if busy:
        msg = (
            f"{layers_named(busy)} {'has' if len(busy) == 1 else 'have'} tokens; expected none of a layer that is dense in "
            f"{model.name}: its MoE layers are "
            f"{spans(layers)}; choose the layers with --layers if the file numbers them otherwise"
        )
        raise LoadError(msg)
    return Chosen(_take(counts, [labels.index(layer) for layer in layers], layers), len(labels), dense)


def _without_zeros(counts: Counts, labels: tuple[int, ...], options: LoadOptions) -> Chosen:
    has_tokens = counts.values.any(axis=(0, 2))
    if not has_tokens.any():
        msg = "every count is 0; expected tokens, by which MoE layers are told from dense ones (or choose with --layers)"
        raise LoadError(msg)
    rows = np.flatnonzero(has_tokens).tolist()
    taken = [labels[row] for row in rows]
    dense = tuple(label for label in labels if label not in set(taken))
    chosen = _take(counts, rows, taken)
    inner = [label for label in dense if label > taken[0]]
    known = options.known_layers
    if inner and known is None:
        doubt = (
            f"{layers_named(inner)} {'has' if len(inner) == 1 else 'have'} no tokens and "
            f"{'is' if len(inner) == 1 else 'are'} left out as dense; give --model, or --layers, if that is wrong"
        )
        chosen = replace(chosen, warnings=(*chosen.warnings, doubt))
    return Chosen(chosen, len(labels), dense)


def _with_labels(counts: Counts, model: ModelShape) -> Counts:
    layers = model.moe_layers or ()
    if counts.labels is not None and counts.labels not in {layers, tuple(range(len(layers)))}:
        msg = f"the file has layers {spans(counts.labels)}; expected {spans(layers)}, the MoE layers of {model.name}"
        raise LoadError(msg)
    return replace(counts, labels=layers)


def _take(counts: Counts, rows: Sequence[int], labels: Sequence[int]) -> Counts:
    is_whole = list(rows) == list(range(counts.values.shape[1]))
    # Not by `[:, rows]`, which lays numbers out so that they are copied once more.
    values = counts.values if is_whole else counts.values.take(rows, axis=1)
    return replace(counts, values=values, labels=tuple(labels))


def choose_steps(counts: Counts, steps: slice | None) -> Counts:
    """Take a range of steps.

    Raises:
        LoadError: it is empty, or goes beyond the last.
    """
    if steps is None:
        return counts
    number = counts.values.shape[0]
    taken = range(number)[steps]
    is_beyond = steps.stop is not None and steps.stop > number
    if not taken or is_beyond:
        first, last = steps.start or 0, "" if steps.stop is None else steps.stop - 1
        asked = f"{first}" if first == last else f"{first}-{last}"
        held = "0" if number == 1 else f"0-{number - 1}"
        msg = f"steps are {asked}; the file has {counted(number, 'step')}, {held}"
        raise LoadError(msg)
    return replace(counts, values=counts.values[steps])
