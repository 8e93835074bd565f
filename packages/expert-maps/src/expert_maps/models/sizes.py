# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How many bytes a routed expert has: its shape by the configuration, its numbers by the quantisation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from expert_maps.errors import FormatError
from expert_maps.models import experts, modelslim, quantisation
from expert_maps.models.nesting import TEXT_AND_VISION, language_model
from expert_maps.models.shapes import DTYPE_BYTES, Shape, UntoldError, untold
from expert_maps.models.values import Config

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from expert_maps.models.counts import ModelCounts

# The width of an expert, by its names: most; LongCat.
_WIDTH_KEYS = ("moe_intermediate_size", "expert_ffn_hidden_size")
# Where an expert reads and writes a narrower state than the model's: Nemotron-H, Kimi K3 (vLLM 0.32).
_LATENT_KEYS = ("moe_latent_size", "routed_expert_hidden_size")
_HIDDEN_KEYS = ("hidden_size", "d_model", "dim")
# Model types whose experts have the width intermediate_size (transformers 5.19; Arctic and Grok-1 by vLLM 0.9).
_PLAIN_WIDTH = frozenset(
    {
        "arctic",
        "aria_text",
        "cohere2_moe",
        "flex_olmo",
        "gpt_oss",
        "granitemoe",
        "granitemoe_swa",
        "granitemoehybrid",
        "granitemoeshared",
        "grok-1",
        "hunyuan_v1_moe",
        "jamba",
        "llama4_text",
        "minimax",
        "minimax_m1",
        "minimax_m2",
        "minimax_m3_vl_text",
        "minimax_text_01",
        "mixtral",
        "olmoe",
        "openai_privacy_filter",
        "phimoe",
    }
)
# Experts of two projections instead of gate, up and down: Nemotron-H (vLLM 0.32, nemotron_h.py: is_non_gated_moe).
_TWO_PROJECTIONS = frozenset({"nemotron_h", "nemotron_h_puzzle"})
# Experts that are no plain MLP: JetMoe shares its experts with attention (transformers 5.19).
_OTHER_EXPERTS = frozenset({"jetmoe", "doge"})
_BIASED = frozenset({"gpt_oss", "openai_privacy_filter"})
# Files beside config.json that state a quantisation which it does not: ModelSlim's and NVIDIA ModelOpt's.
_OTHER_FILES = ("quant_model_weights.json", "hf_quant_config.json")


@dataclass(frozen=True)
class ExpertSize:
    """The bytes of one routed expert.

    Attributes:
        num_bytes: of its weights, scales, zero points and biases; None where they cannot be told.
        rule: how they are counted, or why they cannot be told.
    """

    num_bytes: int | None
    rule: str


def expert_bytes(config: Mapping[str, object], dtype: str | None = None) -> int | None:
    """Return the bytes of one routed expert, None where they cannot be told; see `expert_size`."""
    return expert_size(config, dtype).num_bytes


def expert_size(config: Mapping[str, object], dtype: str | None = None) -> ExpertSize:
    """Count the bytes of one routed expert as its checkpoint holds it.

    Args:
        config: keys and values as in the model's ``config.json``.
        dtype: count plain numbers of this type instead of what the configuration says, without scales:
            ``bfloat16``, ``float16``, ``float32``, ``float8`` or ``int8``.

    Raises:
        FormatError: `dtype` is none of these, or a size is no whole number of at least 1.
    """
    if dtype is not None and dtype not in DTYPE_BYTES:
        msg = f"dtype is {dtype!r}; expected one of {', '.join(DTYPE_BYTES)}"
        raise FormatError(msg)
    return size_of(
        Config("the model", experts.flattened("the model", language_model("the model", config))), dtype
    )


def size_of(flat: Config, dtype: str | None = None) -> ExpertSize:
    """Count the bytes of one routed expert of a language model's flat configuration; see `expert_size`."""
    try:
        shape = _shape(flat)
        if dtype is not None:
            return ExpertSize(shape.numbers * DTYPE_BYTES[dtype], f"{dtype}, {shape.text}")
        num_bytes, how = quantisation.quantised_bytes(flat, shape)
    except UntoldError as reason:
        return ExpertSize(None, str(reason))
    return ExpertSize(num_bytes, f"{how}, {shape.text}")


def with_other_files(counts: ModelCounts, config: Mapping[str, object], folder: Path) -> ModelCounts:
    """Return the counts with an expert's bytes as a file beside config.json says that states another quantisation.

    Args:
        counts: by config.json alone.
        config: what it holds.
        folder: where it lies.
    """
    if "quant_method" in counts.expert_bytes_rule:
        return counts
    described = sorted(folder.glob(modelslim.DESCRIPTIONS))
    for path in described or [folder / name for name in _OTHER_FILES if (folder / name).is_file()]:
        flat = Config(counts.name, experts.flattened(counts.name, language_model(counts.name, config)))
        try:
            if not described:
                untold(f"{path.name} lies beside config.json, and its quantisation is not read here")
            shape = _shape(flat)
            num_bytes, how = modelslim.modelslim_bytes(flat, shape, *modelslim.described(path))
        except UntoldError as reason:
            return replace(counts, expert_bytes=None, expert_bytes_rule=str(reason))
        return replace(counts, expert_bytes=num_bytes, expert_bytes_rule=f"{how}, {shape.text}")
    return counts


def _shape(config: Config) -> Shape:
    kind = config.model_type
    if kind in _OTHER_EXPERTS:
        untold(f"the experts of {kind} are no plain MLPs")
    width = _width(config)
    hidden = _first(config, _LATENT_KEYS) or _first(config, _HIDDEN_KEYS)
    if hidden is None:
        untold("hidden_size is missing")
    inner = ((width, hidden),) if kind in _TWO_PROJECTIONS else ((width, hidden), (width, hidden))
    biases = 2 * width + hidden if kind in _BIASED else 0
    return Shape((*inner, (hidden, width)), biases)


def _width(config: Config) -> int:
    for key in config.present(_WIDTH_KEYS):
        value = config.get(key)
        # ERNIE 4.5 VL: [text, vision].
        if (
            "ernie" in config.model_type
            and isinstance(value, (list, tuple))
            and len(value) == len(TEXT_AND_VISION)
        ):
            return Config(config.name, {key: value[0]}).whole(key, 1) or 0
        try:
            return config.one_of_layers(key, None, 1) or 0
        except FormatError as error:
            if isinstance(value, (list, tuple)) and len(set(map(str, value))) > 1:
                raise UntoldError(str(error)) from error
            raise
    width = config.whole("intermediate_size", 1)
    if width is None:
        untold("moe_intermediate_size is missing")
    if config.model_type not in _PLAIN_WIDTH:
        kind = config.model_type or "this model"
        untold(
            f"moe_intermediate_size is missing, and whether intermediate_size is an expert's in {kind} is not known"
        )
    return width


def _first(config: Config, keys: tuple[str, ...]) -> int | None:
    return next((config.whole(key, 1) for key in config.present(keys)), None)
