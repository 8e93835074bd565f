# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Count a model's layers and experts by its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from expert_maps import limits
from expert_maps._words import counted
from expert_maps.errors import FormatError
from expert_maps.models import experts, keys, sizes, telling
from expert_maps.models.architectures import ALL_LAYERS, DEFAULTS, NOT_WITHOUT, SILENT_KEYS, STATED
from expert_maps.models.counts import ModelCounts
from expert_maps.models.layer_lists import listed_layers
from expert_maps.models.nesting import language_model
from expert_maps.models.rules import RULE_KEYS, RULES
from expert_maps.models.values import Config, UntoldLayersError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expert_maps.models.rules import Rule

    LayersSaid: TypeAlias = int | Sequence[int]

_LAYER_KEYS = ("num_hidden_layers", "n_layers", "num_layers", "n_layer")
_KNOWN_KEYS = RULE_KEYS | experts.EXPERT_COUNT_KEYS | frozenset(_LAYER_KEYS) | frozenset({"topk_group"})


def counts_from_config(
    name: str,
    config: Mapping[str, object],
    *,
    layers: LayersSaid | None = None,
    if_untold: LayersSaid | Literal["all"] | None = None,
) -> ModelCounts:
    """Count a model's MoE layers and experts by its Hugging Face configuration.

    Args:
        name: what to call the model.
        config: keys and values as in its ``config.json``; a multimodal model's language model is found in it.
        layers: the MoE layers, as the caller knows them: their indices, or only how many; None goes by the rules.
        if_untold: the same, or all, where no rule tells them and they would be refused or assumed.

    Raises:
        FormatError: it is no configuration of an MoE model, a value is wrong, or its MoE layers cannot be told.
    """
    keys.check_number(name, config)
    flat = Config(name, experts.flattened(name, language_model(name, config)))
    count = _all_layers(flat)
    num_experts = experts.routed_experts(flat, count)
    if count is None:
        msg = f"{name}: num_hidden_layers is missing; expected the number of layers"
        raise FormatError(msg)
    drafts = experts.draft_layers(flat)
    found: list[int] = []
    rule, is_assumed = "no rule", False
    if layers is None:
        said = range(count) if if_untold == "all" else if_untold
        try:
            found, rule, is_assumed = _moe_layers(flat, config, count, drafts)
        except UntoldLayersError:
            if said is None:
                raise
            layers = said
        layers = said if is_assumed else layers
    size = sizes.size_of(flat)
    counts = ModelCounts(
        name,
        len(found),
        num_experts,
        moe_layers=tuple(found),
        num_hidden_layers=count,
        num_groups=experts.expert_groups(flat, num_experts),
        num_shared_experts=experts.shared_experts(flat, count),
        top_k=experts.experts_per_token(flat, count, num_experts),
        architecture=_architecture(flat),
        num_draft_layers=drafts,
        expert_bytes=size.num_bytes,
        expert_bytes_rule=size.rule,
        rule=rule,
        is_assumed=is_assumed,
    )
    return counts if layers is None else with_layers(counts, layers)


def _all_layers(config: Config) -> int | None:
    """Return how many layers of all kinds the model has, None where nothing says.

    A LongCat layer has two attentions and two dense MLPs around its experts, and transformers counts it twice
    (5.19, ``configuration_longcat_flash.py``); vLLM's index, that of the experts, runs over `num_layers` (0.32).
    """
    counts = {key: config.whole(key, 1, limits.MAX_LAYERS) for key in config.present(_LAYER_KEYS)}
    if config.model_type.startswith("longcat"):
        short, double = counts.get("num_layers"), counts.get("num_hidden_layers")
        if short is not None and double in (None, short, 2 * short):
            return short
        told = ", ".join(f"{key} is {count}" for key, count in counts.items()) or "no number of layers"
        msg = f"{config.name}: {told}; expected num_layers, and num_hidden_layers the same or twice as many"
        raise FormatError(msg)
    if len(set(counts.values())) > 1:
        told = " but ".join(f"{key} is {count}" for key, count in counts.items())
        msg = f"{config.name}: {told}; expected the same number of layers"
        raise FormatError(msg)
    stated = next(iter(counts.values()), None)
    listed = listed_layers(config) if stated is None else None
    if listed is not None and listed > limits.MAX_LAYERS:
        msg = f"{config.name}: {listed} layers are listed; expected at most {limits.MAX_LAYERS}"
        raise FormatError(msg)
    return listed if stated is None else stated


def _moe_layers(
    config: Config, whole: Mapping[str, object], count: int, drafts: int
) -> tuple[list[int], str, bool]:
    """Return the MoE layers, what says so, and whether nothing does."""
    verdicts = _verdicts(config, count, drafts)
    _refuse_unknown(config, whole, [rule for rule, _, _ in verdicts], telling.Layers(count, drafts))
    # A number that makes every layer MoE, such as a step of 1, says nothing against another key.
    deciding = [verdict for verdict in verdicts if verdict[0].is_list or len(verdict[1]) < count]
    for _, layers, words in deciding[1:]:
        if layers != deciding[0][1]:
            msg = (
                f"{config.name}: cannot tell the MoE layers of this model: {deciding[0][2]} makes them "
                f"{len(deciding[0][1])}, but {words} {len(layers)}, or others; give --layers"
            )
            raise UntoldLayersError(msg)
    if deciding:
        _, layers, words = deciding[0]
        if not layers:
            msg = f"{config.name}: not an MoE model: {words} leaves none of {counted(count, 'layer')} with experts"
            raise FormatError(msg)
        return layers, words, False
    default = _default(config, count, drafts)
    if default is not None:
        return *default, False
    if verdicts:
        return list(range(count)), ", ".join(words for _, _, words in verdicts), False
    kind = config.model_type
    if kind.startswith("longcat"):
        return list(range(count)), f"num_layers {count}: each has experts", False
    needed = next((key for start, key in NOT_WITHOUT.items() if kind.startswith(start)), None)
    if needed is not None:
        msg = (
            f"{config.name}: cannot tell the MoE layers of this model: {needed} is missing, and {kind} models differ "
            "in it; give --layers"
        )
        raise UntoldLayersError(msg)
    if kind in ALL_LAYERS:
        return list(range(count)), f"{kind}: every layer has experts", False
    return list(range(count)), "no key says which layers are MoE: every layer taken", True


def _refuse_unknown(
    config: Config, whole: Mapping[str, object], rules: Sequence[Rule], layers: telling.Layers
) -> None:
    """Refuse keys that may say which layers are MoE and that no rule knows."""
    is_listed = any(rule.keys[0] in SILENT_KEYS["beside"] for rule in rules)
    known = _KNOWN_KEYS | (SILENT_KEYS["silent"] if is_listed else frozenset())
    outside = {
        key: value
        for key, value in whole.items()
        if key not in config.values and not isinstance(value, Mapping)
    }
    for part in (config.values, outside):
        keys.refuse_unknown(config.name, part, known)
    if _is_known(config.model_type) or any(rule.is_list for rule in rules):
        return
    for part in (config.values, outside):
        for key, value in telling.suspects(part, known, layers):
            raise keys.cannot_tell(config.name, key, value)


def _is_known(kind: str) -> bool:
    """Whether it is known which keys say the MoE layers of a model type."""
    known = kind in ALL_LAYERS or kind in DEFAULTS or kind in STATED
    return known or (bool(kind) and kind.startswith(("longcat", *NOT_WITHOUT)))


def _verdicts(config: Config, count: int, drafts: int) -> list[tuple[Rule, list[int], str]]:
    return [
        (rule, *verdict)
        for rule in RULES
        if config.present(rule.keys) and (verdict := rule.find(config, count, drafts)) is not None
    ]


def _default(config: Config, count: int, drafts: int) -> tuple[list[int], str] | None:
    """Return what the architecture's own default says where its key is absent."""
    defaults = DEFAULTS.get(config.model_type, {})
    absent = {key: value for key, value in defaults.items() if not config.has(key)}
    if not absent:
        return None
    filled = Config(config.name, {**config.values, **absent})
    rule = next(rule for rule in RULES if set(defaults) <= set(rule.keys))
    verdict = rule.find(filled, count, drafts)
    return None if verdict is None else (verdict[0], f"{verdict[1]} (the default of {config.model_type})")


def _architecture(config: Config) -> str | None:
    value = config.get("architectures")
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], str):
        return value[0]
    return config.model_type or None


def with_layers(counts: ModelCounts, layers: LayersSaid) -> ModelCounts:
    """Return a model with the MoE layers that the caller says: their indices, or only how many.

    Raises:
        FormatError: they are no layers of the model.
    """
    total = counts.num_hidden_layers
    stated = Config(counts.name, {"layers": layers if isinstance(layers, int) else list(layers)})
    if isinstance(layers, int):
        number = stated.whole("layers", 1, limits.MAX_LAYERS) or 0
        return replace(counts, num_layers=number, moe_layers=(), rule="as given", is_assumed=False)
    found = tuple(sorted(stated.indices("layers", total)))
    if not found:
        stated.refuse("layers", "at least one MoE layer")
    return replace(counts, num_layers=len(found), moe_layers=found, rule="as given", is_assumed=False)
