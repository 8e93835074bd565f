# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Rules whose key lists the layers one by one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from expert_maps.errors import FormatError
from expert_maps.models.nesting import TEXT_AND_VISION
from expert_maps.models.values import Config, UntoldLayersError, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

# Nemotron-H's letters: Mamba, experts, attention, dense MLP.
_PATTERN_LETTERS = "ME*-"
_SPARSE_TYPES = {"sparse": True, "moe": True, "hash_moe": True, "dense": False}

# Kinds of layers with experts under another name than moe, and MLPs that need one beside them.
_OF_EXPERTS = re.compile(r"moe|expert|^sparse(_mlp|_ffn|_block|_layer)?$")
_OF_MLPS = frozenset({"dense", "mlp", "ffn", "feed_forward"})
_LONGEST_KIND = 64

_LONGEST_TEXT = 2**16
_INDEX = r"[0-9]{1,9}"

LIST_KEYS = (
    "moe_layer_freq",
    "hybrid_override_pattern",
    "layers_block_type",
    "mlp_layer_types",
    "is_moe_layer",
    "block_configs",
)
"""Keys with an entry for each layer, of which their number follows where num_hidden_layers is absent."""


def frequencies(config: Config, count: int, drafts: int) -> tuple[list[int], str] | None:
    """`moe_layer_freq` as a list: 1 (or true) marks an MoE layer."""
    if not isinstance(config.get("moe_layer_freq"), (list, tuple)):
        return None
    return _marked(config, "moe_layer_freq", count, drafts)


def flags(config: Config, count: int, drafts: int) -> tuple[list[int], str]:
    """`is_moe_layer`: true (or 1) marks an MoE layer."""
    return _marked(config, "is_moe_layer", count, drafts)


def indices(config: Config, count: int, drafts: int) -> tuple[list[int], str]:
    """`moe_layers`: the layers' indices."""
    del drafts
    found = sorted(config.indices("moe_layers", count))
    return found, f"moe_layers lists {len(found)}"


def enumeration(config: Config, count: int, drafts: int) -> tuple[list[int], str]:
    """`moe_layers_enum`: the layers' indices as one text, draft layers perhaps included."""
    value = config.get("moe_layers_enum")
    expected = f"different layer indices from 0 to {count + drafts - 1}, such as '1,2,3'"
    if isinstance(value, str):
        texts = [text.strip() for text in value[:_LONGEST_TEXT].split(",")]
        if len(value) > _LONGEST_TEXT or not all(re.fullmatch(_INDEX, text) for text in texts):
            config.refuse("moe_layers_enum", expected)
        value = [int(text) for text in texts]
    found = Config(config.name, {"moe_layers_enum": value}).indices("moe_layers_enum", count + drafts)
    layers = sorted(layer for layer in found if layer < count)
    return layers, f"moe_layers_enum lists {len(layers)}"


def pattern(config: Config, count: int, drafts: int) -> tuple[list[int], str] | None:
    """`hybrid_override_pattern`: a letter a layer, E for experts."""
    del drafts
    value = config.get("hybrid_override_pattern")
    if value == "":
        return None
    if not isinstance(value, str) or len(value) != count or set(value) - set(_PATTERN_LETTERS):
        config.refuse("hybrid_override_pattern", f"{count} letters of {_PATTERN_LETTERS}, one for each layer")
    layers = [layer for layer, letter in enumerate(value) if letter == "E"]
    return layers, f"hybrid_override_pattern has {len(layers)} E"


def block_types(config: Config, count: int, drafts: int) -> tuple[list[int], str] | None:
    """`layers_block_type`: moe among the kinds of layers; most models list only kinds of attention there."""
    for key in config.present(("layers_block_type", "layer_types")):
        value = config.get(key)
        _refuse_strange_kinds(config, key)
        if isinstance(value, (list, tuple)) and "moe" in value:
            kinds = _per_layer(config, key, count, drafts)
            layers = [layer for layer, kind in enumerate(kinds) if kind == "moe"]
            return layers, f"{key} has {len(layers)} moe"
    return None


def _refuse_strange_kinds(config: Config, key: str) -> None:
    """Refuse kinds of layers that have to do with experts or MLPs, and are none that a rule knows."""
    value = config.get(key)
    kinds = {str(kind) for kind in value} if isinstance(value, (list, tuple)) else {str(value)}
    strange = sorted(kind for kind in kinds - {"moe"} if _OF_EXPERTS.search(kind[:_LONGEST_KIND].lower()))
    if not strange and "moe" not in kinds:
        strange = sorted(kind for kind in kinds if kind.lower() in _OF_MLPS)
    if strange:
        msg = (
            f"{config.name}: cannot tell the MoE layers of this model from {key}, which has the kind "
            f"{shown(strange[0])} that no rule here knows; give --layers"
        )
        raise UntoldLayersError(msg)


def mlp_types(config: Config, count: int, drafts: int) -> tuple[list[int], str]:
    """`mlp_layer_types`: sparse or dense; DeepSeek-V4 says moe and hash_moe."""
    kinds = _per_layer(config, "mlp_layer_types", count, drafts)
    if any(not isinstance(kind, str) or kind not in _SPARSE_TYPES for kind in kinds):
        config.refuse("mlp_layer_types", f"each one of {', '.join(_SPARSE_TYPES)}")
    layers = [layer for layer, kind in enumerate(kinds) if _SPARSE_TYPES[str(kind)]]
    return layers, f"mlp_layer_types has {len(layers)} sparse"


def blocks(config: Config, count: int, drafts: int) -> tuple[list[int], str] | None:
    """`block_configs`: what a search for an architecture has chosen, a layer at a time."""
    found = _per_layer(config, "block_configs", count, drafts)
    blocks_of = [block for block in found if isinstance(block, Mapping)]
    if len(blocks_of) != len(found):
        config.refuse("block_configs", "an object for each layer")
    layers = [layer for layer, block in enumerate(blocks_of) if block.get("block_type") == "moe"]
    return (layers, f"block_configs has {len(layers)} moe") if layers else None


def text_of_pairs(config: Config, keys: Sequence[str], count: int) -> Config:
    """Return a configuration with the first of each pair: ERNIE 4.5 VL states [text, vision].

    Its published pairs end beyond its last layer ([29, 28] of 28), which then is the end.
    """
    pairs: dict[str, object] = {}
    for key in keys:
        value = config.get(key)
        if isinstance(value, (list, tuple)):
            if [type(item) for item in value] != [int] * len(TEXT_AND_VISION):
                config.refuse(key, "one layer index, or one for text and one for vision")
            pairs[key] = min(value[0], count - 1)
    return Config(config.name, {**config.values, **pairs}) if pairs else config


def listed_layers(config: Config) -> int | None:
    """Return how many layers the keys with an entry for each say; None where there is none.

    Raises:
        FormatError: two of them differ.
    """
    lengths = {
        key: len(value)
        for key in config.present(LIST_KEYS)
        if isinstance(value := config.get(key), (list, tuple, str)) and len(value)
    }
    if len(set(lengths.values())) > 1:
        told = " but ".join(f"{key} has {length} entries" for key, length in lengths.items())
        msg = f"{config.name}: {told}; expected one for each layer"
        raise FormatError(msg)
    return next(iter(lengths.values()), None)


def _marked(config: Config, key: str, count: int, drafts: int) -> tuple[list[int], str]:
    marks = _per_layer(config, key, count, drafts)
    if any(mark not in (0, 1) or not isinstance(mark, (int, bool)) for mark in marks):
        config.refuse(key, "0 or 1 for each layer")
    layers = [layer for layer, mark in enumerate(marks) if mark]
    return layers, f"{key} marks {len(layers)}"


def _per_layer(config: Config, key: str, count: int, drafts: int) -> Sequence[object]:
    """Return the entries of the model's layers; those of draft layers may follow."""
    value = config.get(key)
    if not isinstance(value, (list, tuple)) or len(value) not in (count, count + drafts):
        expected = f"a list of {count}, one for each layer" + (
            f", or {count + drafts} with draft layers" * (drafts > 0)
        )
        if isinstance(value, (list, tuple)):
            msg = f"{config.name}: {key} has {len(value)} entries; expected {expected}"
            raise FormatError(msg)
        config.refuse(key, expected)
    return value[:count]
