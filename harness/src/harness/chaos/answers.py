# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Requests and what is right: each prompt's text from one rank without the plugin."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.accuracy.server import Server

MAX_TOKENS = 24
# Of a probability's logarithm, between a token and the next best: sums in another order move it by 1e-5.
_LEAST_MARGIN = 1e-3
_SHORTEST, _LONGEST = 4, 48
_AT_ONCE = 8


@dataclass(frozen=True)
class Answer:
    """A prompt and its right text.

    Attributes:
        prompt: token ids.
        tokens: ids of the text, MAX_TOKENS of them; fewer that are asked for are the first of them.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]


def prompts(count: int, vocabulary: int, seed: int) -> list[tuple[int, ...]]:
    """Return prompts of random token ids; the first ids of a vocabulary are special.

    Args:
        count: how many.
        vocabulary: ids there are.
        seed: of the draw.
    """
    chance = random.Random(f"prompts {seed}")  # noqa: S311 - a test's data
    return [
        tuple(chance.randrange(8, vocabulary) for _ in range(chance.randint(_SHORTEST, _LONGEST)))
        for _ in range(count)
    ]


def body(model: str, prompt: Sequence[int], max_tokens: int, logprobs: int | None = None) -> dict[str, Any]:
    """Return the request for a greedy completion by token ids."""
    return {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "logprobs": logprobs,
    }


def right_answers(server: Server, asked: Sequence[Sequence[int]]) -> list[Answer]:
    """Ask a server that is right, and keep the prompts whose every token is clearly ahead of the next best.

    Where two tokens are as likely, the order of a sum decides, which depends on who else asks at the moment.
    """

    def one(prompt: Sequence[int]) -> Answer | None:
        choice = server.post("/v1/completions", body(server.model, prompt, MAX_TOKENS, 2))["choices"][0]
        clear = all(_margin(top) >= _LEAST_MARGIN for top in choice["logprobs"]["top_logprobs"])
        return Answer(tuple(prompt), tuple(choice["token_ids"])) if clear else None

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return [answer for answer in pool.map(one, asked) if answer is not None]


def _margin(top: dict[str, float]) -> float:
    # Tokens are named by their text: two of the same text count as one, and there is no margin to be seen.
    best = sorted(top.values(), reverse=True)
    return best[0] - best[1] if len(best) > 1 else 0.0


__all__ = ["MAX_TOKENS", "Answer", "body", "prompts", "right_answers"]
