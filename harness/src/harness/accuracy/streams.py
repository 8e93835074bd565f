# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The streams of requests that arms are timed with, as a configuration names them, in words of vLLM's own client.

Closed loop: so many requests are in flight, and the next is sent when one is answered. Open loop: requests are sent at a
rate (Poisson), whether others have been answered or not. A trace brings its own times and lengths.
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import ConfigDict, Field, model_validator

from harness.accuracy.arms import Name, Strict, read_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

Tokens = Annotated[int, Field(ge=1, le=2**20)]
_SHORT_ROUNDS, _SHORT_REQUESTS = 1, 8
# Tokens that the client makes up for one of `hash_ids`.
_CHUNK = 16


class _Request(Strict):
    """A line of a trace; more than this may stand in it."""

    model_config = ConfigDict(extra="ignore")

    timestamp: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    input_length: Annotated[int, Field(ge=1)]
    output_length: Annotated[int, Field(ge=1)]
    hash_ids: list[int | str] | None = None


_EXPECTED = f"an object with {', '.join(name for name, field in _Request.model_fields.items() if field.is_required())}"


class Stream(Strict):
    """Requests of one kind; one of `concurrency`, `rate` and `trace` says when they are sent.

    Attributes:
        concurrency: closed loop: requests in flight.
        rate: open loop: requests a second.
        trace: a JSONL file with `timestamp` (seconds), `input_length`, `output_length` (tokens), and `hash_ids` where
            beginnings are shared.
        requests: of a round.
        input_tokens: of prompts that are made up; the prompts are the task's without it.
        output_tokens: of an answer. Made-up prompts are answered with exactly so many, the task's with at most so many.
    """

    concurrency: Annotated[int, Field(ge=1, le=4096)] | None = None
    rate: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None = None
    trace: Annotated[str, Field(min_length=1)] | None = None
    requests: Annotated[int, Field(ge=2, le=100_000)] = 64
    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None

    @model_validator(mode="after")
    def _is_one_kind(self) -> Stream:
        if [self.concurrency, self.rate, self.trace].count(None) != 2:  # noqa: PLR2004 - of three
            msg = "a stream needs one of concurrency (closed loop), rate (open loop) and trace (a file)"
            raise ValueError(msg)
        if self.trace and (self.input_tokens or self.output_tokens):
            msg = "a stream has a trace and input_tokens or output_tokens; expected one, as a trace says the lengths"
            raise ValueError(msg)
        if self.input_tokens and not self.output_tokens:
            msg = f"a stream has input_tokens {self.input_tokens} without output_tokens; expected both"
            raise ValueError(msg)
        return self

    @property
    def prompts(self) -> str:
        """Where its prompts come from: `task`, `synthetic` or `trace`."""
        return "trace" if self.trace else "synthetic" if self.input_tokens else "task"

    def check(self) -> None:
        """Check the trace, before a server is started.

        Raises:
            ValueError: there are fewer requests than are to be sent.
            FormatError: the file cannot be read, or a line is no request.
        """
        if self.trace is None:
            return
        found = sum(1 for _ in read_rows(Path(self.trace), _Request, _EXPECTED))
        if found < self.requests:
            msg = f"{self.trace}: {found} requests; expected at least {self.requests}"
            raise ValueError(msg)

    def write_trace(self, path: Path) -> None:
        """Write the trace so that the client makes prompts of its lengths.

        The client makes up 16 tokens for each of `hash_ids`, whatever the length says. So each is cut into as many as it
        needs for the longest prompt that it is the beginning of, the same number for all; a line without any gets its own.

        Args:
            path: of the file that is written.
        """
        assert self.trace is not None
        rows = [row for _, row in islice(read_rows(Path(self.trace), _Request, _EXPECTED), self.requests)]
        chunks = [-(-row.input_length // _CHUNK) for row in rows]
        shared = [row.hash_ids or [] for row in rows]
        each = max((-(-n // len(ids)) for n, ids in zip(chunks, shared, strict=True) if ids), default=1)
        with path.open("w", encoding="utf-8") as stream:
            for number, (row, count, ids) in enumerate(zip(rows, chunks, shared, strict=True)):
                own = [f"{part}.{index}" for part in ids for index in range(each)]
                own = own or [f"line {number}.{index}" for index in range(count)]
                stream.write(json.dumps({**row.model_dump(), "hash_ids": own[:count]}) + "\n")

    def words(
        self, prompts: Path, *, seed: int, max_tokens: int, stop: Sequence[str], is_chat: bool = False
    ) -> list[str]:
        """Return the part of the client's arguments that is the same for all servers.

        Args:
            prompts: a file of the task's prompts, as `write_prompts` makes it; of a trace, as `write_trace` does.
            seed: of a round: arrivals and made-up prompts follow from it.
            max_tokens: most tokens of an answer to a prompt of the task.
            stop: strings that end such an answer.
            is_chat: whether prompts have a chat's template, which says itself how they begin.
        """
        words = ["--num-prompts", str(self.requests), "--seed", str(seed), "--temperature", "0"]
        if self.concurrency is not None:
            words += ["--max-concurrency", str(self.concurrency)]
        if self.rate is not None:
            words += ["--request-rate", repr(self.rate)]
        if self.trace is not None:
            return [*words, "--dataset-name", "timed_trace", "--dataset-path", str(prompts)]
        length = str(self.output_tokens or max_tokens)
        if self.input_tokens is not None:
            return [
                *(*words, "--dataset-name", "random", "--random-input-len", str(self.input_tokens)),
                *("--random-output-len", length),
            ]
        body = {"add_special_tokens": False} if is_chat else {}
        words += ["--dataset-name", "custom", "--dataset-path", str(prompts), "--custom-output-len", length]
        return [
            *(*words, "--skip-chat-template", "--disable-shuffle"),
            *("--extra-body", json.dumps({"stop": list(stop), **body})),
        ]


class Performance(Strict):
    """How the speed of arms is compared.

    Attributes:
        streams: by name; each arm and the baseline get all of them in every round.
        rounds: of each stream, arm and baseline in turn. Below `harness.accuracy.speed.LEAST_ROUNDS` nothing is decided.
        margin: the loss of speed that is accepted, in percent.
        gate: whether a slower arm fails the run, and an undecided one leaves it undecided.
    """

    streams: dict[Name, Stream] = Field(default={"closed": Stream(concurrency=8)}, min_length=1)
    rounds: Annotated[int, Field(ge=1, le=1000)] = 10
    margin: Annotated[float, Field(gt=0, lt=100, allow_inf_nan=False)] = 5.0
    gate: bool = False

    def shortened(self) -> Performance:
        """Return what shows in seconds that all of it works: the first stream, and too little to decide anything."""
        name, stream = next(iter(self.streams.items()))
        few = stream.model_copy(update={"requests": min(stream.requests, _SHORT_REQUESTS)})
        return self.model_copy(update={"streams": {name: few}, "rounds": min(self.rounds, _SHORT_ROUNDS)})

    def check(self) -> None:
        """Check the files of all streams; errors as `Stream.check`."""
        for stream in self.streams.values():
            stream.check()
