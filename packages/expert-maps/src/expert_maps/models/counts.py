# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What is known about a model, and how to say it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from expert_maps._words import counted

# More runs of layers than this are shown by their first and last.
_MOST_RUNS = 6
# Layers at equal distances are shown by the first two and the last, if there are so many.
_FEWEST_APART = 4


@dataclass(frozen=True)
class ModelCounts:
    """The counts that a placement or a load must agree with.

    Attributes:
        name: the model, as it was asked for.
        num_layers: L, MoE layers only, without draft layers.
        num_experts: E, routed experts of a layer; without shared experts and without LongCat's zero experts.
        moe_layers: [L] the MoE layers' indices among all layers, ascending; empty where only their number is
            known (`layers` of `model_counts`).
        num_hidden_layers: layers of all kinds, without draft layers.
        num_groups: the router's groups of experts; 1 for none.
        num_shared_experts: shared experts of a layer; 0 for none.
        top_k: experts of a token; None where the configuration does not say.
        architecture: the model's class or type; None where the configuration does not say.
        num_draft_layers: draft (MTP, next-token) layers that the configuration states; they are in no other count.
        expert_bytes: bytes of one routed expert's weights and scales; None where that cannot be told.
        expert_bytes_rule: how they are counted, or why they cannot be told.
        rule: what says which layers are MoE, for messages.
        is_assumed: no key of the configuration says which layers are MoE, and the architecture is not one that is
            known to have experts in all: every layer was taken.
    """

    name: str
    num_layers: int
    num_experts: int
    moe_layers: tuple[int, ...] = ()
    num_hidden_layers: int = 0
    num_groups: int = 1
    num_shared_experts: int = 0
    top_k: int | None = None
    architecture: str | None = None
    num_draft_layers: int = 0
    expert_bytes: int | None = None
    expert_bytes_rule: str = ""
    rule: str = ""
    is_assumed: bool = False


def layers_text(counts: ModelCounts) -> str:
    """Say in a few words which layers are MoE, such as ``58 of 61 layers (3-60)`` or ``24 of 48 layers (1, 3, … 47)``."""
    text = f"{counts.num_layers} of {counted(counts.num_hidden_layers, 'layer')}"
    return f"{text} ({_indices_text(counts.moe_layers)})" if counts.moe_layers else text


def _indices_text(indices: tuple[int, ...]) -> str:
    steps = {after - before for before, after in pairwise(indices)}
    if len(indices) >= _FEWEST_APART and len(steps) == 1 and steps != {1}:
        return f"{indices[0]}, {indices[1]}, … {indices[-1]}"
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][-1] + 1:
            runs[-1][1:] = [index]
        else:
            runs.append([index])
    texts = ["-".join(map(str, run)) for run in runs]
    if len(texts) > _MOST_RUNS:
        texts = [*texts[: _MOST_RUNS - 1], "…", texts[-1]]
    return ", ".join(texts)
