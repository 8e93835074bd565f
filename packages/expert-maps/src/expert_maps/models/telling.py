# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Keys that may tell layers apart without naming experts, such as ``layer_pattern``, ``mlp_layers`` or ``block_pattern``.

Of an architecture that is known here they say something else (kinds of attention, mostly), and are not looked at. Of
another one they may be what says which layers have experts: a key is suspect if its name or its value has to do with
layers one by one, unless it is of attention or of another part that has no experts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from expert_maps import limits

if TYPE_CHECKING:
    from collections.abc import Iterator

# What has to do with layers ...
_LAYERS = re.compile(
    r"(^|_)(layer|layers|block|blocks|pattern|patterns|schedule|interval|period|freq|frequency|every|stride|cycle"
    r"|alternat[a-z]*|interleav[a-z]*|hybrid|mlp|mlps|ffn|ffns|ff|feed_forward|feedforward|layout)(_|$)"
)
# ... is a list of them by its name where its value is a text, ...
_LISTED = re.compile(
    r"(^|_)(layers|blocks|pattern|schedule|order|sequence|layout|list|map|spec|types|kinds)(_|$)"
)
# ... or may be switched on.
_SWITCH = re.compile(r"alternat|interleav|every_other|every_second")
# Attention and other parts without experts; sizes and ways of computing; words of tokens, training and generation.
_OTHERS = re.compile(
    r"(^|_)(mtp|nextn|draft|dspark|eagle|attention|attn|att|sliding|window|swa|rope|mrope|nope|kv|qk|query|key|value|head"
    r"|heads|lora|vision|visual|image|video|audio|talker|speech|mamba|ssm|conv|rnn|recurrent|linear|lightning|delta|gdn|kda"
    r"|mla|cross|index|indexer|token|tokens|time|beam|ngram|embedding|embeddings|embd|pooling|quant|recompute|pipeline"
    r"|parallel|checkpoint|projector|mm|deepstack|ple|label|dropout|id2label|label2id)(_|$)"
    r"|(^|_)(norm|layernorm|rmsnorm)|layerdrop"
)
_MEASURE = re.compile(
    r"(^|_)(act|activation|bias|dtype|init|initializer|kernel|loss|eps|epsilon|alpha|beta|gamma|fn|func|size)(_|$)"
    r"|(sizes|dim|dims|mult|multiplier|multiple|of|ratio|scale|scaling|factor|weight|weights|implementation|impl|width"
    r"|range|std|rate|input)$"
)
# Parts of a configuration that are looked through neither.
_OTHER_PARTS = re.compile(
    r"(^|_)(vision|visual|image|video|audio|talker|code2wav|speech|quant[a-z]*|compress[a-z]*|rope|id2label|label2id"
    r"|generation|draft|eagle|speculat[a-z]*|attn|attention|task|projector|tokenizer|auto_map|ssm|mamba)(_|$)"
)
# What a rule reads only where it says moe.
_OF_KINDS = frozenset({"layer_types", "layers_block_type"})
_IGNORED = frozenset({"architectures", "tie_word_embeddings", "auto_map", "model_type"})
_DEEPEST = 4
_FEWEST = 2  # entries that are layers one by one, or letters of a pattern
_MOST_LETTERS = 8

# Kinds of layers that differ in their attention alone, as lists of them say it.
_ATTENTION = re.compile(
    r"attention|attn|mamba|ssm|conv|recurrent|rnn|sliding|full|global|local|linear|swa|gdn|kda|mla|gqa|mha|nope|rope|window"
    r"|chunk"
)
_LONGEST_KIND = 64


@dataclass(frozen=True)
class Layers:
    """How many there are.

    Attributes:
        count: the model's layers.
        drafts: its draft layers.
    """

    count: int
    drafts: int


def suspects(
    config: Mapping[str, object], known: frozenset[str], layers: Layers, path: str = "", depth: int = 0
) -> Iterator[tuple[str, object]]:
    """Yield the keys that may tell layers apart, each with its value.

    Args:
        config: keys and values, perhaps nested.
        known: keys that a rule reads, or that are known to say nothing here.
        layers: how many there are.
        path: of the keys around it, with a point behind each.
        depth: how many keys there are around it.
    """
    for name, value in config.items():
        key = str(name)  # a caller's may be something else
        if key in known - _OF_KINDS or key in _IGNORED:
            continue
        plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower().replace("-", "_")
        if isinstance(value, Mapping):
            if value and depth < _DEEPEST and not _OTHER_PARTS.search(plain):
                yield from _suspects_inside(key, value, layers, path, depth)
        elif not _OTHERS.search(plain) and _tells(plain, value, layers):
            yield f"{path}{key}", value


def _suspects_inside(
    key: str, value: Mapping[str, object], layers: Layers, path: str, depth: int
) -> Iterator[tuple[str, object]]:
    if all(str(name).isdecimal() for name in value):
        yield f"{path}{key}", value  # an object for each layer
    else:
        # Inside a part of its own no key is read, so that a known one is as suspect there.
        yield from suspects(value, frozenset(), layers, f"{path}{key}.", depth + 1)


def _tells(name: str, value: object, layers: Layers) -> bool:
    is_named = bool(_LAYERS.search(name)) and not _MEASURE.search(name)
    if isinstance(value, bool):
        return value and bool(_SWITCH.search(name))
    if isinstance(value, int):
        # As many as there are layers is all of them.
        return is_named and value > 0 and value not in (layers.count, layers.count + layers.drafts)
    if isinstance(value, str):
        return _is_pattern(value, layers) or (is_named and bool(value) and bool(_LISTED.search(name)))
    if isinstance(value, (list, tuple)):
        return _lists_layers(value, layers, is_named=is_named)
    return False


def _is_pattern(text: str, layers: Layers) -> bool:
    """Whether a text has a letter for each layer, a few in turn."""
    return (
        len(text) in (layers.count, layers.count + layers.drafts)
        and len(text) >= _FEWEST
        and 1 < len(set(text)) <= _MOST_LETTERS
        and (len(text) > _MOST_LETTERS or text.isupper())
    )


def _lists_layers(values: list[object] | tuple[object, ...], layers: Layers, *, is_named: bool) -> bool:
    """Whether a list has an entry for each layer that differ, or names some layers."""
    if not values:
        return False
    if len(values) > limits.MAX_LAYERS:  # not looked through
        return is_named
    if all(isinstance(value, str) and _ATTENTION.search(value[:_LONGEST_KIND].lower()) for value in values):
        return False
    if len(values) in (layers.count, layers.count + layers.drafts):
        return any(value != values[0] for value in values[1:])
    if is_named:
        return True
    numbers = [value for value in values if type(value) is int and 0 <= value < layers.count]
    return len(values) >= _FEWEST and len(numbers) == len(values) and sorted(set(numbers)) == numbers
