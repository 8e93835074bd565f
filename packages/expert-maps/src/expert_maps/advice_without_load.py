# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`advise` for a model of which no load was recorded: memory and rules, and what to record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expert_maps.advice import LEAST_STEPS, Advice
from expert_maps.advice_memory import memory_assumed, memory_of, usual_amounts
from expert_maps.advice_rules import Served, apply_rules
from expert_maps.errors import LayoutError
from expert_maps.validation import as_count

if TYPE_CHECKING:
    from collections.abc import Iterable

    from expert_maps.models import ModelCounts

_ENOUGH_STEPS = 200


def advise_model(
    model: ModelCounts,
    *,
    ep_size: int,
    redundant: Iterable[int] | None = None,
    expert_bytes: int | None = None,
    served: Served | None = None,
) -> Advice:
    """Say what is known without a load: memory and known rules. The answer is always that there is not enough data.

    Args:
        model: as `expert_maps.models.model_counts` returns it.
        ep_size: R.
        redundant: redundant experts of a layer, several; None for the least that divides, and one and two slots more.
        expert_bytes: of one expert's weights in one layer; None for the model's, if they can be told.
        served: what is known of the server.

    Raises:
        ExpertMapsError: a count is invalid, or memory is asked for and the bytes of an expert are not known.
    """
    ranks = as_count("ep_size", ep_size, 1, error=LayoutError)
    known = served or Served()
    rules = apply_rules(known, model.num_experts, ranks)
    amounts = usual_amounts(model.num_experts, ranks) if redundant is None else list(redundant)
    size = (
        model.expert_bytes if expert_bytes is None else as_count("expert_bytes", expert_bytes, 0, 2**63 - 1)
    )
    if size is None and known.device_memory is not None:
        msg = f"expert_bytes is missing: {model.expert_bytes_rule}; expected it where device_memory is given"
        raise LayoutError(msg)
    rows = (
        []
        if size is None
        else memory_of(
            num_layers=model.num_layers,
            num_experts=model.num_experts,
            ep_size=ranks,
            redundant=amounts,
            expert_bytes=size,
            served=known,
        )
    )
    origin = "as given" if expert_bytes is not None else model.expert_bytes_rule
    assumptions = [
        f"{model.num_layers} MoE layers of {model.num_experts} experts: {model.rule or model.name}"
    ]
    assumptions += [] if size is None else [f"an expert has {size} bytes: {origin}"]
    assumptions += memory_assumed(known)
    reasons = [
        "no load is given: how uneven the router is, and how fast that changes, cannot be told from a model"
    ]
    reasons += [f"the bytes of an expert cannot be told: {origin}"] * (size is None)
    reasons += [
        f"rule: {rule.name}; a yes would become a no, whatever the load" for rule in rules if rule.means_no
    ]
    reasons.append(_what_to_record(model))
    return Advice("not enough data", "not enough data", reasons, rules, assumptions, memory=rows)


def _what_to_record(model: ModelCounts) -> str:
    return (
        f"record tokens of each of {model.num_experts} experts in {model.num_layers} layers, step by step, under traffic "
        f"like yours: at least {LEAST_STEPS} steps, better {_ENOUGH_STEPS}, of one phase (prefill or decode); with the "
        "plugin by record_path, with SGLang by its expert distribution recorder"
    )
