# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Models that are known by name: each is counted by the rules, from what `published` has of its configuration."""

from __future__ import annotations

import difflib
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from expert_maps.errors import FormatError
from expert_maps.models.published import ALIASES, CONFIGS
from expert_maps.models.reading import counts_from_config

if TYPE_CHECKING:
    from expert_maps.models.counts import ModelCounts

MODELS: dict[str, ModelCounts] = {name: counts_from_config(name, keys) for name, keys in CONFIGS.items()}
"""Known models by their plain names."""

# Published with other numbers than the rest of their family: int4.
_STORED_OTHERWISE = frozenset({"kimi-k2-thinking"})
# What follows a name and changes neither layers nor experts: how it was trained, a date or version, the format, ...
_TRAINING = re.compile(
    r"[-.](instruct|chat|base|thinking|it|hf|pt|preview|exp|terminus|speciale|zero|paddle|inst|v0\.1|v1|original"
    r"|0324|0528|0905|2507|0125|0924)$"
)
# ... or how its numbers are stored, which changes the bytes.
_STORED = re.compile(
    r"[-.](fp8|fp8-dynamic|bf16|int4|int8|awq|awq-int4|gptq|gptq-int4|w8a8|w4a8|w4a16|nvfp4|mxfp4|quarot|8bit|4bit)$"
)


def find_known(name: str) -> ModelCounts:
    """Return a known model by its name, in any case, with or without organisation and training.

    Raises:
        FormatError: it is not known; the message lists near names and says that a ``config.json`` works.
    """
    plain = re.sub(r"[\s_]+", "-", name.strip().lower()[:200].rstrip("/").rsplit("/", 1)[-1])
    is_stored_otherwise = False
    while True:
        is_stored_otherwise |= plain in _STORED_OTHERWISE
        known = ALIASES.get(plain, plain)
        if known in MODELS:
            break
        shorter = _TRAINING.sub("", plain)
        if shorter == plain:
            shorter = _STORED.sub("", plain)
            is_stored_otherwise |= shorter != plain
        if shorter == plain:
            raise _unknown(name, plain)
        plain = shorter
    counts = replace(MODELS[known], name=known)
    if not is_stored_otherwise:
        return counts
    return replace(
        counts, expert_bytes=None, expert_bytes_rule="a name does not say how its numbers are stored"
    )


def _unknown(name: str, plain: str) -> FormatError:
    near = difflib.get_close_matches(plain, [*MODELS, *ALIASES], n=3, cutoff=0.6)
    guess = f"did you mean {', '.join(near)}? " if near else ""
    known = "" if near else f" or one of {', '.join(MODELS)}"
    return FormatError(
        f"model {name!r}: no such file, and no known name; {guess}expected a config.json (or its folder){known}"
    )
