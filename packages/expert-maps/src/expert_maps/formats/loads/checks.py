# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a load for a model, and what looks wrong without one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from expert_maps._layers import LayerNames
from expert_maps._words import counted
from expert_maps.errors import LoadError
from expert_maps.formats.loads.suspicion import EQUAL_WITHIN, differ

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from expert_maps.formats.loads.counts import Counts
    from expert_maps.formats.loads.options import LoadOptions
    from expert_maps.load import ExpertLoad

_MOST_LAYERS = 256  # more than any known model has
# Numbers of experts that models have and that others could be with redundancy.
_EXPERTS = frozenset({60, 62, 64, 72, 80, 96, 112, 120, 128, 160, 192, 224, 256, 320, 384, 512})
_REDUNDANT_FROM = (64, 128, 256, 384, 512)
_MAX_REDUNDANCY = 0.5


def check_counts(counts: Counts, options: LoadOptions) -> None:
    """Compare layers and experts with what the caller says of them.

    Raises:
        LoadError: they differ; what is expected and why is said.
    """
    layers, experts = counts.values.shape[1:]
    said: list[tuple[int, int, str]] = []
    if options.num_layers is not None and not counts.has_said_layers:
        said.append((options.num_layers, options.num_experts or experts, "said"))
    if options.num_experts is not None:
        said.append((layers, options.num_experts, "said"))
    if options.model is not None:
        said.append((options.model.num_layers, options.model.num_experts, f"{options.model.name} has"))
    for expected_layers, expected_experts, why in said:
        hint = _hint(layers, experts, expected_layers, expected_experts)
        if layers != expected_layers:
            msg = f"load has {counted(layers, 'layer')}; expected {expected_layers}, as {why}{hint or '; choose layers with --layers'}"
            raise LoadError(msg)
        if experts != expected_experts:
            msg = f"load has {counted(experts, 'expert')}; expected {expected_experts}, as {why}{hint}"
            raise LoadError(msg)


def _hint(layers: int, experts: int, expected_layers: int, expected_experts: int) -> str:
    if (layers, experts) == (expected_experts, expected_layers) or layers == expected_experts != experts:
        return ": it looks transposed, [experts, layers]; transpose it"
    if layers == expected_layers and experts > expected_experts:
        return ": counts by physical slot need --map MAP, the map in use"
    if layers > expected_layers and layers % expected_layers == 0:
        return ": it is a multiple, as of steps that are appended (--format mindie)"
    return ""


def suspicions(load: ExpertLoad, options: LoadOptions, labels: Sequence[int] | None = None) -> Iterator[str]:
    """Yield what looks wrong, a line each; layers are named by row, and as file or model number them."""
    names = LayerNames(None if labels is None else tuple(labels))
    total = load.total
    if not total.any():
        yield "every count is 0, there is nothing to balance"
        return
    layer_totals = total.sum(axis=1)
    idle = np.flatnonzero(layer_totals == 0).tolist()
    if idle:
        what = f"{names.several(idle)} {'has' if len(idle) == 1 else 'have'}"
        chosen = options.known_layers is not None
        yield f"{what} no tokens{'' if chosen else '; leave dense layers out with --layers or --model'}"
    still = int((load.counts.sum(axis=(1, 2)) == 0).sum())
    if still:
        yield f"{still} of {counted(load.num_steps, 'step')} have no tokens, as of a buffer that was not full; --steps leaves them out"
    if load.num_experts == 1:
        yield "there is 1 expert in a layer: nothing to balance, or the file is no table of layers and experts"
    if np.isin(load.counts, (0, 1)).all():
        yield "every count is 0 or 1: a mask or a placement rather than a load"
    if options.known_experts is None and options.placement is None:
        yield from _shape(load)
    busy = layer_totals[layer_totals > 0]
    if differ(busy):
        least, most = (
            names.one(int(np.flatnonzero(layer_totals == value)[0])) for value in (busy.min(), busy.max())
        )
        yield (
            f"layers carry unequal tokens, {least} {busy.min():.15g} and {most} {busy.max():.15g}; MoE layers "
            f"of one trace carry the same within {EQUAL_WITHIN:.0%}"
        )
    alone = np.flatnonzero((total > 0).sum(axis=1) == 1).tolist() if load.num_experts > 1 else []
    if alone:
        yield f"a single expert has every token in {names.several(alone)}"


def _shape(load: ExpertLoad) -> Iterator[str]:
    layers, experts = load.num_layers, load.num_experts
    columns, rows = load.total.sum(axis=0), load.total.sum(axis=1)
    if min(layers, experts) > 1 and not differ(columns) and differ(rows):
        yield (
            f"{counted(layers, 'layer')} of {counted(experts, 'expert')}: it looks transposed, because the columns have equal totals and the rows "
            "have not; say --experts to be sure"
        )
    elif layers > _MOST_LAYERS:
        yield f"{layers} layers, more than known models have; are they steps? (--format mindie, or a file with steps)"
    base = max((number for number in _REDUNDANT_FROM if number < experts), default=experts)
    if experts not in _EXPERTS and base < experts <= base * (1 + _MAX_REDUNDANCY):
        yield (
            f"{counted(experts, 'column')} may be physical slots, {counted(base, 'expert')} and {experts - base} redundant; give --map MAP if "
            f"they are, or --experts {experts}"
        )
