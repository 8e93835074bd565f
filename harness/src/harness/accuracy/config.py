# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What is run: a model, a task and the arms that are compared, as a YAML file of `accuracy/models`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from expert_maps import ExpertMapsError
from harness.accuracy.arms import Arm, Count, Name, Serving, Strict
from harness.accuracy.streams import Performance

MODELS = Path("accuracy/models")
BASELINE, REPEAT = "baseline", "repeat"
_WORK = "work"

# Of the weights and activations: those whose rounding is known.
DTYPES = ("float32", "bfloat16", "float16")


class ConfigError(ExpertMapsError):
    """A configuration is absent, malformed or contradicts itself; the message names the field."""


class Expected(Strict):
    """What others have measured.

    Attributes:
        accuracy: in percent; None where nothing fitting is published.
        source: where it is published.
        reason: why there is none, or how that measurement differs from this task.
        chance: accuracy of guesses, in percent; a baseline that is no better is not judged by.
    """

    accuracy: Annotated[float, Field(ge=0, le=100)] | None = None
    source: str | None = None
    reason: str | None = None
    chance: Annotated[float, Field(ge=0, le=100)] = 0.0

    @model_validator(mode="after")
    def _is_founded(self) -> Expected:
        if self.accuracy is not None and not self.source:
            msg = f"accuracy is {self.accuracy} without a source; expected where it is published"
            raise ValueError(msg)
        if self.accuracy is None and not self.reason:
            msg = "accuracy is null without a reason; expected why there is none"
            raise ValueError(msg)
        return self


class Data(Strict):
    """Local JSONL files with `question` and `answer`; ``{model}`` stands for the folder of the checkpoint."""

    test: str
    train: str


class Task(Strict):
    """A task of lm-eval, and how it is asked.

    Attributes:
        name: of lm-eval's task.
        dataset: what tables call it.
        data: local files; None for the hub's.
        num_fewshot: worked examples before a question.
        chat_template: whether the server applies its chat template (chat completions, few-shot as turns).
        chat_template_kwargs: passed on to the template.
        max_tokens: most tokens of an answer.
        filter: which of the task's filters finds the number in an answer.
    """

    name: Literal["gsm8k", "gsm8k_cot_llama"]
    dataset: Name
    data: Data | None = None
    num_fewshot: Annotated[int, Field(ge=0, le=64)]
    chat_template: bool = False
    chat_template_kwargs: dict[str, Any] = Field(default={})
    max_tokens: Count
    filter: Literal["strict-match", "flexible-extract"] = "strict-match"


class ModelConfig(Strict):
    """A file of `accuracy/models`.

    Attributes:
        name: of the folder of results.
        model: a folder of a checkpoint, or a name on the hub.
        dtype: of the weights and activations.
        concurrency: requests in flight at a time.
        logprobs: whether each arm also scores the baseline's texts token by token.
        startup_seconds: most seconds until a server answers.
        request_seconds: most seconds for one answer.
        task: what is asked.
        expected: what others have measured.
        server: how all arms are served.
        arms: what is compared with the arm ``baseline``, in the order in which they run.
        performance: the streams of requests that each arm gets beside the baseline, with ``--performance``.
    """

    name: Name
    model: Annotated[str, Field(min_length=1)]
    dtype: Literal["float32", "bfloat16", "float16"]
    concurrency: Annotated[int, Field(ge=1, le=4096)] = 32
    logprobs: bool = True
    startup_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 600
    request_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1800
    task: Task
    expected: Expected
    server: Serving = Serving()
    arms: dict[Name, Arm]
    performance: Performance = Performance()

    @model_validator(mode="after")
    def _has_a_baseline(self) -> ModelConfig:
        first = next(iter(self.arms), None)
        if first != BASELINE or self.arms[BASELINE].role != BASELINE:
            msg = f"the first arm is {first!r}; expected {BASELINE!r}, of the role {BASELINE!r}"
            raise ValueError(msg)
        if _WORK in self.arms:
            msg = f"an arm is called {_WORK!r}, as the folder of what is kept while a run is under way"
            raise ValueError(msg)
        others = [name for name, arm in self.arms.items() if arm.role == BASELINE and name != BASELINE]
        if others:
            msg = f"arm {others[0]!r} has the role {BASELINE!r} too; expected one baseline"
            raise ValueError(msg)
        for name, arm in self.arms.items():
            if (name == REPEAT) != (arm.role == REPEAT):
                msg = f"arm {name!r} has the role {arm.role!r}; expected {REPEAT!r} for one of that name, and for no other"
                raise ValueError(msg)
            source = arm.plan.load_of if arm.plan else None
            if source is not None and not (source in self.arms and self.arms[source].record_load):
                msg = f"arm {name!r} is planned from the load of {source!r}; expected an arm with record_load"
                raise ValueError(msg)
        return self

    def with_repeat(self) -> ModelConfig:
        """Return the configuration with the baseline once more, right after it; itself where it has one."""
        if REPEAT in self.arms:
            return self
        again = self.arms[BASELINE].model_copy(update={"role": REPEAT, "record_load": False})
        rest = {name: arm for name, arm in self.arms.items() if name != BASELINE}
        return self.model_copy(update={"arms": {BASELINE: self.arms[BASELINE], REPEAT: again, **rest}})

    def choose(self, names: list[str] | None) -> list[str]:
        """Return the arms to run, in the file's order.

        Raises:
            ConfigError: there is no arm of a name.
        """
        for name in names or ():
            self.require_arm(name)
        return [name for name in self.arms if not names or name in names]

    def require_arm(self, name: str) -> Arm:
        """Return an arm.

        Raises:
            ConfigError: there is none of that name.
        """
        if name not in self.arms:
            msg = f"arm is {name!r}; expected one of {', '.join(self.arms)}"
            raise ConfigError(msg)
        return self.arms[name]
