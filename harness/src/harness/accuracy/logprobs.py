# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Forced log-probabilities: what an arm thinks of each token of the baseline's texts.

Greedy texts hide small faults, because a fault must turn an argmax before it shows. Here every arm scores the same
tokens: the prompt and the baseline's text are tokenised one after the other, so that every arm gets the same ids, and
sent as one prompt whose log-probabilities come back (`echo`). The one token that is generated on top is dropped.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from harness.accuracy.client import AskError, Job
from harness.accuracy.journal import key_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.accuracy.client import Post
    from harness.accuracy.questions import Prompt


# A logarithm of a softmax, rounded.
_MOST = 1e-3


def forced_job(context: str, model: str, prompt: Prompt, text: str, template: Mapping[str, Any]) -> Job:
    """Return what scores one text.

    Args:
        context: the hash of everything else that the answer depends on.
        model: the name under which it is served.
        prompt: what was asked.
        text: the baseline's answer.
        template: arguments of the chat template.
    """

    async def run(post: Post) -> dict[str, Any]:
        turn = {"add_generation_prompt": True} if prompt.is_chat else {}
        before = await _ids(post, {"model": model, **turn, **prompt.body(template)})
        # Nothing is added to a text: it goes on where the prompt ends.
        after = await _ids(post, {"model": model, "prompt": text, "add_special_tokens": False})
        if not after:
            return {"logprobs": []}
        body = {
            "model": model,
            "prompt": before + after,
            "echo": True,
            "logprobs": 1,
            "max_tokens": 1,
            "temperature": 0,
        }
        answer = await post("/v1/completions", body)
        return {"logprobs": _continuation(answer, len(before), len(after))}

    key = key_of(kind="forced", context=context, index=prompt.index, content=prompt.content, text=text)
    return Job(key, run)


async def _ids(post: Post, body: Mapping[str, Any]) -> list[int]:
    answer = await post("/tokenize", body)
    ids = answer.get("tokens")
    if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
        msg = f"/tokenize answered {answer!r:.200}; expected token ids"
        raise AskError(msg)
    return ids


def _continuation(answer: Mapping[str, Any], num_before: int, num_after: int) -> list[float]:
    """Return the log-probabilities of the text's tokens."""
    try:
        values: Sequence[Any] = answer["choices"][0]["logprobs"]["token_logprobs"]
    except (LookupError, TypeError) as error:
        msg = f"/v1/completions with echo answered {answer!r:.200}; expected log-probabilities"
        raise AskError(msg) from error
    expected = num_before + num_after + 1
    if not isinstance(values, list) or len(values) != expected:
        found = f"{len(values)}" if isinstance(values, list) else f"{values!r:.80} as"
        msg = f"/v1/completions returned {found} log-probabilities; expected {expected}"
        raise AskError(msg)
    wanted = values[num_before : num_before + num_after]
    for place, one in enumerate(wanted):
        if isinstance(one, bool) or not isinstance(one, int | float) or not -math.inf < one <= _MOST:
            msg = f"log-probability {num_before + place} is {one!r:.40}; expected a number of at most 0"
            raise AskError(msg)
    return [float(one) for one in wanted]
