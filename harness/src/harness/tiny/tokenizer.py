# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The tokenizer: byte-level BPE that splits digits, made from the problems alone and the same everywhere.

Merges are learned here, in plain Python, so that the file depends on no library's version. Algorithm: Sennrich
et al., "Neural Machine Translation of Rare Words with Subword Units", 2016; bytes are written as GPT-2 does.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import islice, pairwise
from typing import TYPE_CHECKING

from harness.tiny.problems import generate

if TYPE_CHECKING:
    from collections.abc import Iterable

PAD, END = "<|pad|>", "<|end|>"
PAD_ID, END_ID = 0, 1
# A digit is a token of its own, with the space or dollar sign before it; a word takes the space before it.
PATTERN = r" ?\$?[0-9]| ?[A-Za-z]+|\n+| ?[^ \n0-9A-Za-z]+| +"
CORPUS_SEED = 4
CORPUS_COUNT = 4000
# Turns of a chat become the text that the model was trained on: a question, and an answer after a space.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}{{ ' ' + message['content'] + '\\n\\n' }}"
    "{%- elif message['role'] == 'user' -%}{{ 'Question: ' + message['content'] + '\\nAnswer:' }}"
    "{%- endif -%}"
    "{%- endfor -%}"
)


def byte_letters() -> list[str]:
    """Return a printable character for each of the 256 bytes, as GPT-2's vocabulary has them."""
    plain = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def _merge(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    index = 0
    while index < len(symbols):
        if symbols[index : index + 2] == pair:
            merged.append("".join(pair))
            index += 2
        else:
            merged.append(symbols[index])
            index += 1
    return tuple(merged)


def learn_merges(texts: Iterable[str]) -> list[tuple[str, str]]:
    """Learn merges until every piece of the texts is one token.

    The most frequent pair comes first, of equal ones the first in order of code points.
    """
    letters = byte_letters()
    counts = Counter(piece for text in texts for piece in re.findall(PATTERN, text))
    words = {tuple(letters[byte] for byte in piece.encode()): count for piece, count in counts.items()}
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for symbols, count in words.items():
            for pair in pairwise(symbols):
                pairs[pair] += count
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = {_merge(symbols, best): count for symbols, count in words.items()}


def tokenizer_json() -> str:
    """Return the content of `tokenizer.json`."""
    texts = (f"{one.prompt} {one.answer}\n\n" for one in islice(generate(CORPUS_SEED), CORPUS_COUNT))
    merges = learn_merges(texts)
    tokens = [PAD, END, *byte_letters(), *map("".join, merges)]
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": PAD_ID, "content": PAD, **special},
            {"id": END_ID, "content": END, **special},
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [" ".join(pair) for pair in merges],
        },
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def tokenizer_config(max_length: int) -> dict[str, object]:
    """Return the content of `tokenizer_config.json` for a model of so many positions."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "pad_token": PAD,
        "eos_token": END,
        "padding_side": "left",
        "model_max_length": max_length,
        "chat_template": CHAT_TEMPLATE,
    }
