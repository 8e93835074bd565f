# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""From prompts to answers: what is sent to a server, under which key an answer is kept, and how far it is."""

from __future__ import annotations

import random
import sys
from typing import TYPE_CHECKING, Any

from harness.accuracy import versions
from harness.accuracy.client import AskError, Job, Limits, ask_all
from harness.accuracy.journal import key_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.accuracy.arm_run import ArmRun
    from harness.accuracy.client import Post
    from harness.accuracy.journal import Journal
    from harness.accuracy.questions import Answer, Evaluated, Prompt
    from harness.accuracy.server import Server


# OpenAI's limit, which vLLM keeps.
MAX_STOPS = 4
# Between two lines about how far it is, where there is no terminal.
_LINE_SECONDS = 30


class Asker:
    """Asks one arm's server, and keeps each answer in a journal.

    Attributes:
        taken: questions, of those put last, that the journal had the answer of.
    """

    def __init__(self, run: ArmRun, server: Server, journal: Journal, digest: str | None) -> None:
        """Say who is asked: answers of anyone else are not taken from the journal.

        Args:
            run: of the arm.
            server: its own.
            journal: where answers come from and go to.
            digest: of the placement that is served; None where nobody knows.
        """
        self._run, self._server, self._journal = run, server, journal
        self._context = key_of(
            arm=run.name,
            model=run.settings.identity,
            served=server.model,
            checkpoint=None if server.is_own else server.describe(),
            dtype=run.settings.dtype,
            digest=digest,
            arguments=run.arguments,
            environment=run.environment,
            vllm=versions.versions(server)["vllm"],
        )
        self.taken = 0

    @property
    def moves(self) -> int:
        """How often experts moved while these questions were asked, by the word of a run that was cut off."""
        noted = self._journal.get(key_of(kind="moves", context=self._context))
        return int(noted["rearrangements"]) if noted else 0

    @moves.setter
    def moves(self, number: int) -> None:
        self._journal.add(key_of(kind="moves", context=self._context), {"rearrangements": number})

    def evaluate(self) -> Evaluated:
        """Put all questions and score them."""
        from harness.accuracy.questions import evaluate

        settings = self._run.settings
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
        self.taken = self._known(jobs)
        return [Answer(one["text"], one["finish_reason"]) for one in self._ask(jobs, "questions")]

    def _answer_job(self, prompt: Prompt) -> Job:
        path = "/v1/chat/completions" if prompt.is_chat else "/v1/completions"
        # OpenAI's interface takes four strings that end an answer; the rest is cut off here.
        body = {"max_tokens": prompt.max_tokens, "temperature": 0, "stop": list(prompt.stop[:MAX_STOPS])}
        body |= prompt.body(self._run.settings.config.task.chat_template_kwargs)

        async def run(post: Post) -> dict[str, Any]:
            return cut(_read(path, await post(path, {"model": self._server.model, **body})), prompt.stop)

        # The same question twice in the data is asked twice.
        parts = {"index": prompt.index, "path": path, "body": body, "stop": list(prompt.stop)}
        return Job(key_of(kind="answer", context=self._context, **parts), run)

    def force(self, texts: Sequence[tuple[Prompt, str]]) -> list[list[float]]:
        """Return the log-probabilities of the tokens of given texts."""
        from harness.accuracy.logprobs import forced_job

        template, model = self._run.settings.config.task.chat_template_kwargs, self._server.model
        jobs = [forced_job(self._context, model, prompt, text, template) for prompt, text in texts]
        return [one["logprobs"] for one in self._ask(jobs, "log-probabilities")]

    def _known(self, jobs: Sequence[Job]) -> int:
        return sum(self._journal.get(job.key) is not None for job in jobs)

    def _ask(self, jobs: Sequence[Job], what: str) -> list[dict[str, Any]]:
        from tqdm import tqdm

        settings, label = self._run.settings, f"{self._run.name}: {what}"
        if old := self._known(jobs):
            settings.say(f"{label}: {old} of {len(jobs)} are there from a run that was cut off")
        order = list(range(len(jobs)))
        if self._run.arm.role == "repeat":
            # Other batches, so that sums are rounded otherwise.
            random.Random(0).shuffle(order)  # noqa: S311 - no secret
        seconds = 0.1 if sys.stderr.isatty() else _LINE_SECONDS
        with tqdm(
            total=len(jobs), desc=label, mininterval=seconds, maxinterval=seconds, disable=False
        ) as bar:
            found = ask_all(
                self._server.url,
                [jobs[place] for place in order],
                self._journal,
                Limits(settings.concurrency, settings.attempts, settings.config.request_seconds),
                on_answer=bar.update,
                require_alive=self._server.require_alive,
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
