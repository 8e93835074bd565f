# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""From prompts to answers: what is sent to a server, under which key an answer is kept, and how far it is."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from harness.accuracy import versions
from harness.accuracy.client import AskError, Job, Limits, ask_all
from harness.accuracy.journal import Journal, key_of
from harness.accuracy.progress import progress

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from harness.accuracy.client import Post
    from harness.accuracy.questions import Answer, Evaluated, Prompt
    from harness.accuracy.server import Server
    from harness.accuracy.settings import RunSettings


# OpenAI's limit, which vLLM keeps.
MAX_STOPS = 4


class Asker:
    """Asks one arm's server, and keeps each answer in a journal.

    Attributes:
        taken: questions, of those put last, that the journal had the answer of.
    """

    def __init__(self, journal: Path, settings: RunSettings) -> None:
        """Open the journal."""
        self._journal = Journal(journal)
        self._settings = settings
        self._server: Server | None = None
        self._context = ""
        self._label = ""
        self._shuffles = False
        self.taken = 0

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()

    @property
    def has_answers(self) -> bool:
        """Whether a run before this one got any."""
        return len(self._journal) > 0

    @property
    def moves(self) -> int:
        """How often experts moved while these questions were asked, by the word of a run that was cut off."""
        noted = self._journal.get(key_of(kind="moves", context=self._context))
        return int(noted["rearrangements"]) if noted else 0

    @moves.setter
    def moves(self, number: int) -> None:
        self._journal.add(key_of(kind="moves", context=self._context), {"rearrangements": number})

    def forget(self) -> None:
        """Ask again for what was answered; the answers are put aside."""
        self._journal.clear()

    def bind(
        self,
        server: Server,
        arm: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        digest: str | None,
    ) -> None:
        """Say who is asked: answers of anyone else are not taken from the journal."""
        settings = self._settings
        self._server = server
        self._label = arm
        self._shuffles = settings.config.arms[arm].role == "repeat"
        self._context = key_of(
            arm=arm,
            model=settings.identity,
            served=server.model,
            checkpoint=None if server.is_own else server.describe(),
            dtype=settings.dtype,
            digest=digest,
            arguments=list(arguments),
            environment=dict(environment),
            vllm=versions.versions(server)["vllm"],
        )

    def evaluate(self) -> Evaluated:
        """Put all questions and score them."""
        from harness.accuracy.questions import evaluate

        settings = self._settings
        return evaluate(
            settings.config.task,
            self._answers,
            count=settings.count,
            paths=settings.data,
            cache=settings.work / "datasets",
        )

    def _answers(self, prompts: Sequence[Prompt]) -> list[Answer]:
        from harness.accuracy.questions import Answer

        jobs = [self._answer_job(prompt) for prompt in prompts]
        self.taken = sum(self._journal.get(job.key) is not None for job in jobs)
        found = self._ask(jobs, f"{self._label}: questions")
        return [Answer(one["text"], one["finish_reason"]) for one in found]

    def _answer_job(self, prompt: Prompt) -> Job:
        template = self._settings.config.task.chat_template_kwargs
        # OpenAI's interface takes four; the rest is cut off here.
        stop = list(prompt.stop[:MAX_STOPS])
        body: dict[str, Any] = {"max_tokens": prompt.max_tokens, "temperature": 0, "stop": stop}
        if prompt.is_chat:
            path = "/v1/chat/completions"
            body |= {"messages": prompt.content} | ({"chat_template_kwargs": template} if template else {})
        else:
            path = "/v1/completions"
            body |= {"prompt": prompt.content}
        assert self._server is not None
        model = self._server.model

        async def run(post: Post) -> dict[str, Any]:
            return cut(_read(path, await post(path, {"model": model, **body})), prompt.stop)

        # The same question twice in the data is asked twice.
        parts = {"index": prompt.index, "path": path, "body": body, "stop": list(prompt.stop)}
        return Job(key_of(kind="answer", context=self._context, **parts), run)

    def force(self, texts: Sequence[tuple[Prompt, str]]) -> list[list[float]]:
        """Return the log-probabilities of the tokens of given texts."""
        from harness.accuracy.logprobs import forced_job

        assert self._server is not None
        template = self._settings.config.task.chat_template_kwargs
        model = self._server.model
        jobs = [forced_job(self._context, model, prompt, text, template) for prompt, text in texts]
        return [one["logprobs"] for one in self._ask(jobs, f"{self._label}: log-probabilities")]

    def _ask(self, jobs: Sequence[Job], label: str) -> list[dict[str, Any]]:
        settings, server = self._settings, self._server
        assert server is not None
        old = sum(self._journal.get(job.key) is not None for job in jobs)
        if old:
            settings.say(f"{label}: {old} of {len(jobs)} are there from a run that was cut off")
        order = list(range(len(jobs)))
        if self._shuffles:
            # Other batches, so that sums are rounded otherwise.
            random.Random(0).shuffle(order)  # noqa: S311 - no secret
        limits = Limits(settings.concurrency, settings.attempts, settings.config.request_seconds)
        with progress(settings.console, label, len(jobs)) as advance:
            found = ask_all(
                server.url,
                [jobs[place] for place in order],
                self._journal,
                limits,
                on_answer=advance,
                require_alive=server.require_alive,
            )
        return [one for _, one in sorted(zip(order, found, strict=True), key=lambda pair: pair[0])]


def cut(answer: dict[str, Any], stops: Sequence[str]) -> dict[str, Any]:
    """End an answer where the first of the strings begins that end it."""
    text = str(answer["text"])
    ends = [place for place in (text.find(stop) for stop in stops if stop) if place >= 0]
    return {"text": text[: min(ends)], "finish_reason": "stop"} if ends else answer


def _read(path: str, answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return text and reason of a completion.

    Raises:
        AskError: it is none.
    """
    try:
        choice = answer["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        reason = choice.get("finish_reason")
    except (LookupError, TypeError, AttributeError) as error:
        msg = f"{path} answered {answer!r:.200}; expected a completion"
        raise AskError(msg) from error
    for name, value in (("text", text), ("finish_reason", reason)):
        if value is not None and not isinstance(value, str):
            msg = f"{path} answered with the {name} {value!r:.80}; expected a string"
            raise AskError(msg)
    # A chat's content is null where a reasoning parser took all of it. Half a character is none in UTF-8.
    return {"text": (text or "").encode(errors="replace").decode(), "finish_reason": reason}
