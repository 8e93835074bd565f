# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Several clients at once, each by its own seed: bursts, pauses, prompts of any length; every answer is compared."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import aiohttp

from harness.chaos.answers import MAX_TOKENS, body

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.accuracy.server import Server
    from harness.chaos.answers import Answer

# A server that needs longer has lost it; a machine that is busy with something else is no fault.
REQUEST_SECONDS = 600.0
_MOST_AT_ONCE = 4
_MOST_PAUSE_SECONDS = 0.3
_SHOWN = 5
_OK = 200


@dataclass
class Tally:
    """What came back.

    Attributes:
        sent: requests.
        right: answers that are the baseline's, token for token.
        wrong: whole answers that are not.
        lost: requests without a whole answer.
        tokens: that the model computed for right and wrong ones: of prompts, and all but the last of each text.
        slowest: seconds of the slowest answer.
        said: the first few of what was wrong or lost.
    """

    sent: int = 0
    right: int = 0
    wrong: int = 0
    lost: int = 0
    tokens: int = 0
    slowest: float = 0.0
    said: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Keep what was wrong, if it is one of the first few."""
        if len(self.said) < _SHOWN:
            self.said.append(text)


def ask_for(
    server: Server,
    answers: Sequence[Answer],
    *,
    is_over: Callable[[], bool],
    clients: int,
    seed: int,
    tally: Tally,
) -> None:
    """Let clients ask until it is over and all that was sent has been answered or lost.

    Args:
        server: is asked.
        answers: prompts and what is right.
        is_over: whether nothing more is sent.
        clients: at a time.
        seed: of what they draw.
        tally: what came back is added to it.
    """

    async def ask() -> None:
        limit = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        # Not the environment's proxies: the server is on loopback.
        async with aiohttp.ClientSession(timeout=limit, trust_env=False) as session:
            await asyncio.gather(
                *(
                    _client(session, server, answers, is_over, f"{seed} client {one}", tally)
                    for one in range(clients)
                )
            )

    asyncio.run(ask())


async def _client(
    session: aiohttp.ClientSession,
    server: Server,
    answers: Sequence[Answer],
    is_over: Callable[[], bool],
    seed: str,
    tally: Tally,
) -> None:
    chance = random.Random(seed)  # noqa: S311 - a test's data
    while not is_over():
        burst = [
            (chance.choice(answers), chance.randint(1, MAX_TOKENS))
            for _ in range(chance.randint(1, _MOST_AT_ONCE))
        ]
        await asyncio.gather(*(_ask(session, server, *one, tally) for one in burst))
        await asyncio.sleep(chance.uniform(0, _MOST_PAUSE_SECONDS))


async def _ask(
    session: aiohttp.ClientSession, server: Server, answer: Answer, max_tokens: int, tally: Tally
) -> None:
    tally.sent += 1
    begin = time.monotonic()
    try:
        asked = body(server.model, answer.prompt, max_tokens)
        async with session.post(f"{server.url}/v1/completions", json=asked) as response:
            found = await response.json(content_type=None)
            if response.status != _OK:
                tally.lost += 1
                tally.note(f"lost: the server answered {response.status}: {str(found)[:200]}")
                return
            tokens = tuple(found["choices"][0]["token_ids"])
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError, LookupError, TypeError) as error:
        tally.lost += 1
        tally.note(f"lost: {type(error).__name__}: {error} after {time.monotonic() - begin:.1f} s")
        return
    tally.slowest = max(tally.slowest, time.monotonic() - begin)
    tally.tokens += len(answer.prompt) + max_tokens - 1
    if tokens == answer.tokens[:max_tokens]:
        tally.right += 1
        return
    tally.wrong += 1
    first = next(
        (at for at, pair in enumerate(zip(tokens, answer.tokens, strict=False)) if pair[0] != pair[1]),
        len(tokens),
    )
    tally.note(
        f"wrong: of {max_tokens} tokens after {len(answer.prompt)} the text is another from number {first} on: "
        f"{list(tokens)}; expected {list(answer.tokens[:max_tokens])}"
    )


__all__ = ["Tally", "ask_for"]
