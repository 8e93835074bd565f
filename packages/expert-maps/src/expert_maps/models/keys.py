# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Keys that look as if they said which layers are MoE: where no rule knows one, nothing is counted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from expert_maps import limits
from expert_maps.errors import FormatError, printable
from expert_maps.models.values import UntoldLayersError, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

# A key is suspect if it names experts and a place among layers, ...
_SUBJECT = re.compile(r"moe|expert|spars|dense|mixture")
_PLACE = re.compile(
    r"layer|freq|step|interval|pattern|index|indices|idx|period|offset|every|stride|skip|replace|alternat|interleav"
    r"|(^|_)(start|end|begin|from|until|first|last|enum|nth|position|positions|schedule)(_|$)"
)
# ... or a number of something, which no size, way of routing or way of computing does; draft layers, attention and
# other parts are not meant.
_NUMBER = re.compile(
    r"(^|_)(num|number|n|nr|count|counts|total|per|list|mask|map|ids|types|block|blocks|only|at|which|each|range"
    r"|before|after|prefix|leading)(_|$)"
)
_MEASURE = re.compile(
    r"router|routing|gate|aux|loss|dispatch|capacity|norm|act_fn|activation|dtype|kernel|token_drop"
    r"|(size|sizes|dim|dims|scale|scaling|factor|bias|weight|weights|fraction|implementation|impl)$"
)
_OTHERS = re.compile(
    r"^(mtp|nextn|draft|dspark|eagle)_"
    r"|(^|_)(attention|attn|sliding|rope|kv|lora|vision|visual|image|audio|talker|speech)(_|$)"
)

# Keys that look so and do not say it, with who has them.
IRRELEVANT = frozenset(
    {
        "activation_sparsity_pattern",  # Gemma 3n: activations
        "expert_tokens_num_type",  # MindSpeed: kernel
        "inference_moe_w13_interleaved",  # Inkling: order in memory
        "moe_2layer_gate",  # Skywork
        "moe_layer_feed_fake_token",  # ERNIE 4.5
        "moe_num_dense_experts",  # ERNIE 4.5: not routed
        "num_expert_groups_per_tok",
        "sparse_disable_index_value",
        "sparse_init_block",
        "sparse_local_block",
        "sparse_num_index_heads",
        "sparse_topk_blocks",
        "zero_expert_num",  # LongCat: experts that compute nothing and are placed nowhere
    }
)

# Parts of a configuration that say nothing about the language model's layers.
_OTHER_PARTS = re.compile(
    r"(^|_)(vision|visual|image|audio|talker|code2wav|speech|quant[a-z]*|compress[a-z]*|rope|id2label|label2id"
    r"|generation|draft|eagle|speculat[a-z]*|attn|attention|task|projector|tokenizer|map)(_|$)"
)
_DEEPEST = 4
_MOST_KEYS = 2**16

# A kind of layer, as lists of them say it.
_KIND = re.compile(r"moe|expert|^sparse$")
_LONGEST_KIND = 64


def refuse_unknown(name: str, config: Mapping[str, object], known: frozenset[str]) -> None:
    """Refuse a key of sparsity that no rule knows.

    Args:
        name: the model or file, for messages.
        config: keys and values, perhaps nested.
        known: keys that a rule reads, or that are known to say nothing here.

    Raises:
        UntoldLayersError: there is one; the message names it.
    """
    for key, value in _suspects(config, known, "", 0):
        raise cannot_tell(name, key, value)


def check_number(name: str, config: Mapping[str, object]) -> None:
    """Refuse more keys than are looked through in a moment; those of quantisations and other parts are not.

    Raises:
        FormatError: as said.
    """
    parts: list[tuple[Mapping[str, object], int]] = [(config, 0)]
    number = 0
    while parts:
        part, depth = parts.pop()
        number += len(part)
        if number > _MOST_KEYS:
            msg = f"{name}: the configuration has more than {_MOST_KEYS} keys; expected at most so many"
            raise FormatError(msg)
        parts += [
            (value, depth + 1)
            for key, value in part.items()
            if isinstance(value, Mapping) and depth < _DEEPEST and not _OTHER_PARTS.search(str(key).lower())
        ]


def cannot_tell(name: str, key: str, value: object) -> UntoldLayersError:
    """Return the error that refuses to count by a key that no rule knows."""
    return UntoldLayersError(
        f"{name}: cannot tell the MoE layers of this model from {printable(key)} ({shown(value)}), a key that no rule here "
        "knows; give --layers"
    )


def _suspects(
    config: Mapping[str, object], known: frozenset[str], path: str, depth: int
) -> Iterator[tuple[str, object]]:
    for key, value in config.items():
        if value is None or not isinstance(key, str):
            continue
        if isinstance(value, Mapping):
            if value and depth < _DEEPEST and not _OTHER_PARTS.search(key.lower()):
                # Inside a part of its own no key is read, so that a known one is as suspect there.
                yield from _suspects(value, frozenset(), f"{path}{key}.", depth + 1)
        elif key not in known and key not in IRRELEVANT and (is_suspect(key) or _marks_layers(key, value)):
            yield f"{path}{key}", value


def is_suspect(key: str) -> bool:
    """Whether a key looks as if it said which layers are MoE, or how many experts they have."""
    plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower().replace("-", "_")
    if not _SUBJECT.search(plain) or _OTHERS.search(plain):
        return False
    return bool(_PLACE.search(plain)) or (bool(_NUMBER.search(plain)) and not _MEASURE.search(plain))


def _marks_layers(key: str, value: object) -> bool:
    """Whether a list has kinds of layers in it that are MoE, whatever its key."""
    if (
        key == "architectures"
        or not isinstance(value, (list, tuple))
        or not 1 < len(value) <= limits.MAX_LAYERS
    ):
        return False
    if _OTHERS.search(key.lower()) or not all(isinstance(item, str) for item in value):
        return False
    return any(_KIND.search(item[:_LONGEST_KIND].lower()) for item in value)
