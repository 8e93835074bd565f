# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The questions: lm-eval's tasks, prompts, few-shot examples, filters and scoring, over answers of a server.

Importing this imports lm-eval, which nothing else of the package does.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lm_eval
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from expert_maps import ExpertMapsError
from harness.accuracy.config import ConfigError
from harness.accuracy.data import check_data
from harness.accuracy.schema import Question

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lm_eval.api.instance import Instance

    from harness.accuracy.config import Task
    from harness.accuracy.settings import RunSettings

_METRIC = "exact_match"
# What lm-eval's filters return where they find nothing.
_INVALID = "[invalid]"
_GROUP = "harness_accuracy"
_MAX_ERROR = 300


@dataclass(frozen=True)
class Prompt:
    """One question as a server gets it.

    Attributes:
        index: of the question in the data.
        content: a text, or for a chat template a list of messages.
        stop: strings that end an answer.
        max_tokens: most tokens of an answer.
    """

    index: int
    content: str | list[dict[str, str]]
    stop: tuple[str, ...]
    max_tokens: int

    @property
    def is_chat(self) -> bool:
        """Whether the server applies its chat template."""
        return not isinstance(self.content, str)

    def body(self, template: Mapping[str, Any]) -> dict[str, Any]:
        """Return the part of a request that holds it, with arguments of the chat template."""
        if not self.is_chat:
            return {"prompt": self.content}
        return {"messages": self.content} | ({"chat_template_kwargs": dict(template)} if template else {})


@dataclass(frozen=True)
class Answer:
    """What a server made of it: the text and why it ended."""

    text: str
    finish_reason: str | None


@dataclass(frozen=True)
class Evaluated:
    """The outcome of a task.

    Attributes:
        questions: scored, in the order of their index.
        prompts: by index.
        configuration: what fixes prompts and generation, but neither data, model nor sampling.
    """

    questions: list[Question]
    prompts: dict[int, Prompt]
    configuration: dict[str, Any]


class ServedModel(LM):  # type: ignore[misc] # lm-eval is not installed where types are checked
    """lm-eval's view of a server: it hands over all prompts at once and takes the texts."""

    def __init__(self, ask: Callable[[Sequence[Prompt]], Sequence[Answer]], *, is_chat: bool) -> None:
        """Keep what asks, and whether prompts are messages."""
        super().__init__()
        self._ask = ask
        self._is_chat = is_chat
        self.prompts: dict[int, Prompt] = {}
        self.answers: dict[int, Answer] = {}

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Ask the server; lm-eval's abstract method."""
        prompts = [_prompt(request, is_chat=self._is_chat) for request in requests]
        answers = self._ask(prompts)
        for prompt, answer in zip(prompts, answers, strict=True):
            self.prompts[prompt.index] = prompt
            self.answers[prompt.index] = answer
        return [answer.text for answer in answers]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Refuse: the tasks generate; see `harness.accuracy.logprobs` for log-probabilities."""
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Refuse, as above."""
        raise NotImplementedError

    def apply_chat_template(
        self,
        chat_history: list[dict[str, str]],
        add_generation_prompt: bool = True,  # noqa: ARG002, FBT001, FBT002 - lm-eval's signature
    ) -> str:
        """Return the messages as JSON: the server has the template."""
        return json.dumps(chat_history, ensure_ascii=False)

    @property
    def tokenizer_name(self) -> str:
        """A name for lm-eval's cache of requests, which is not used."""
        return "server"

    def chat_template(self, chat_template: bool | str = False) -> str | None:  # noqa: ARG002, FBT001, FBT002 - as above
        """Return nothing: the template is the server's."""
        return None


def _prompt(request: Instance, *, is_chat: bool) -> Prompt:
    context, generation = request.args
    # A chat's is the JSON that `apply_chat_template` made.
    content = json.loads(context) if is_chat else context
    return Prompt(int(request.doc_id), content, tuple(generation["until"]), int(generation["max_gen_toks"]))


@functools.cache
def _task_manager() -> TaskManager:
    # Reading all of lm-eval's tasks takes seconds.
    folder = Path(lm_eval.__file__).parent / "tasks" / "gsm8k"
    return TaskManager(verbosity="ERROR", include_path=str(folder), include_defaults=False)


class _SeenError(Exception):
    """All prompts have been made."""


def preview(settings: RunSettings, cache: Path) -> list[Prompt]:
    """Make all prompts, as `evaluate` does, and ask nobody.

    Args:
        settings: of the run.
        cache: as of `evaluate`.

    Raises:
        ConfigError: the data cannot be loaded, or does not fit the task.
    """
    task, paths = settings.config.task, settings.data
    for split, path in (paths or {}).items():
        check_data(split, path, task.num_fewshot)
    made: list[Prompt] = []

    def note(prompts: Sequence[Prompt]) -> list[Answer]:
        made.extend(prompts)
        raise _SeenError

    try:
        evaluate(task, note, count=settings.count, paths=paths, cache=cache)
    except _SeenError:
        return made
    except ExpertMapsError:
        raise
    except Exception as error:  # lm-eval and datasets raise what they like
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:_MAX_ERROR]}"
        msg = f"the questions of {task.name} cannot be made: {reason}"
        raise ConfigError(msg) from error
    msg = f"{task.name} has no questions; expected at least one"
    raise ConfigError(msg)


def evaluate(
    task: Task,
    ask: Callable[[Sequence[Prompt]], Sequence[Answer]],
    *,
    count: int | None,
    paths: Mapping[str, Path] | None,
    cache: Path,
) -> Evaluated:
    """Put a task's questions and score the answers.

    Args:
        task: what is asked.
        ask: answers prompts, in their order.
        count: only the first so many questions; None for all.
        paths: absolute paths of the splits `train` and `test`; None for the hub's data.
        cache: a folder for what `datasets` keeps.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    model = ServedModel(ask, is_chat=task.chat_template)
    results = lm_eval.simple_evaluate(
        model,
        tasks=[_group(task, paths, cache)],
        num_fewshot=task.num_fewshot,
        limit=count,
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=task.chat_template,
        fewshot_as_multiturn=task.chat_template,
        gen_kwargs={"max_gen_toks": task.max_tokens, "temperature": 0.0, "do_sample": False},
        task_manager=_task_manager(),
    )
    assert results is not None
    (rows,) = results["samples"].values()
    questions = [_score(row, model.answers) for row in rows if row["filter"] == task.filter]
    questions.sort(key=lambda question: question.index)
    (config,) = results["configs"].values()
    return Evaluated(
        questions, model.prompts, _configuration(task, config, next(iter(model.prompts.values())))
    )


def _group(task: Task, paths: Mapping[str, Path] | None, cache: Path) -> dict[str, Any]:
    """Return lm-eval's own task with local data: a group is the form in which it merges changes."""
    changes: dict[str, Any] = {"task": task.name}
    if paths is not None:
        files = {split: str(path) for split, path in paths.items()}
        changes |= {
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": files, "cache_dir": str(cache)},
        }
    return {"group": _GROUP, "task": [changes]}


def _score(row: Mapping[str, Any], answers: Mapping[int, Answer]) -> Question:
    index = int(row["doc_id"])
    found = str(row["filtered_resps"][0])
    return Question(
        index=index,
        doc_hash=row["doc_hash"],
        prompt_hash=row["prompt_hash"],
        target=str(row["target"]),
        text=row["resps"][0][0],
        answer=None if found == _INVALID else found,
        correct=int(row[_METRIC]),
        finish_reason=answers[index].finish_reason,
    )


def _configuration(task: Task, config: Mapping[str, Any], prompt: Prompt) -> dict[str, Any]:
    """Return what fixes prompts and generation; lm-eval's own form of it is read, not this package's."""
    fewshot = config.get("fewshot_config") or {}
    samples = json.dumps(fewshot.get("samples"), sort_keys=True)
    return {
        "task": task.name,
        "prompt": {
            "doc_to_text": config.get("doc_to_text"),
            "description": config.get("description") or "",
            "target_delimiter": config.get("target_delimiter"),
            "fewshot_delimiter": config.get("fewshot_delimiter"),
            "chat_template": task.chat_template,
            "chat_template_kwargs": task.chat_template_kwargs,
        },
        "retriever": {
            "num_fewshot": task.num_fewshot,
            "split": config.get("fewshot_split"),
            "sampler": fewshot.get("sampler"),
            "samples_sha256": hashlib.sha256(samples.encode()).hexdigest(),
            "multiturn": task.chat_template,
        },
        "inferencer": {
            "endpoint": "chat/completions" if prompt.is_chat else "completions",
            "stop": list(prompt.stop),
            "max_tokens": prompt.max_tokens,
        },
    }
