# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What the files of a record hold. Every field that is named here is required; only some may be null."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from expert_maps import ExpertMapsError
from harness.record.schema import Checkpoint  # noqa: TC001 - pydantic reads annotations at run time

_VERSION_DIGITS = 6
# What no logarithm of a probability reaches, and what can be subtracted and added up.
_MOST_LOGPROB = 1e6
# A value may have been rounded to two decimals.
_ROUNDING = 0.00501

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]


class RecordError(ExpertMapsError):
    """A record is absent, malformed, or contradicts itself; the message names file and field."""


class _Model(BaseModel):
    # More than is known here is kept, as a later version may add to it; what is known must be right.
    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)


class TaskRecord(_Model):
    """What was asked, and how.

    Attributes:
        dataset: what tables call it.
        version: `task_version` of the configuration.
        metric: for example `accuracy`.
        mode: for example `gen`.
        num_fewshot: worked examples before a question.
        configuration: all that fixes prompts, generation and scoring.
    """

    dataset: Text
    version: Text
    metric: Text
    mode: Text
    num_fewshot: Count
    configuration: dict[str, Any]

    @model_validator(mode="after")
    def _version_is_of_the_configuration(self) -> TaskRecord:
        expected = task_version(self.configuration)
        if self.version != expected:
            msg = f"version is {self.version!r}; expected {expected!r}, as the configuration says"
            raise ValueError(msg)
        return self


class ServerRecord(_Model):
    """How the server was started."""

    arguments: list[str]
    environment: dict[str, str]


class Versions(_Model):
    """Versions; None for what was not installed."""

    vllm: str | None
    torch: str | None
    torch_npu: str | None
    lm_eval: str | None
    transformers: str | None
    python: str | None
    vllm_ascend_moe: str | None
    expert_maps: str | None


class GitRecord(_Model):
    """The checkout; None where there is none."""

    commit: str | None
    dirty: bool | None


class PlacementRecord(_Model):
    """What the server said of its placement.

    Attributes:
        eplb_active: whether the plugin served.
        digest: of the placement when serving began.
        digest_at_end: of the placement when it ended.
        num_redundant_experts: of a layer, over all ranks.
        rearrangements: since loading.
        ep_size: ranks.
        replica_checksums: whether all replicas of an expert held the same weights.
        faults: what contradicts the arm's configuration, a line each.
        dynamic: whether experts had to move while questions were asked; None where the record does not say.
    """

    eplb_active: bool
    digest: Text | None
    digest_at_end: Text | None
    num_redundant_experts: Count | None
    rearrangements: Count | None
    ep_size: Count | None
    replica_checksums: Literal["equal", "differ", "not read"]
    faults: list[str]
    dynamic: bool | None = None


class ExpectedRecord(_Model):
    """What a baseline should reach, in percent; None where nobody knows.

    Attributes:
        accuracy: that others have measured.
        chance: of an answer that is guessed.
    """

    accuracy: Annotated[float, Field(ge=0, le=100)] | None = None
    chance: Annotated[float, Field(ge=0, le=100)] = 0.0


class LoadRecord(_Model):
    """Load of the ranks: float [L, R], and mean / max; None where it was not recorded.

    Attributes:
        cut_off: whether a run was cut off meanwhile, so that what was in flight may be counted twice.
    """

    cut_off: bool = False
    rank_load: list[list[Annotated[float, Field(ge=0)]]] | None
    balancedness: Share | None

    @field_validator("rank_load")
    @classmethod
    def _is_a_table(cls, table: list[list[float]] | None) -> list[list[float]] | None:
        widths = {len(row) for row in table or ()}
        if table is not None and (len(widths) != 1 or 0 in widths):
            msg = f"rows have {sorted(widths)} ranks; expected the same number, at least one, in every layer"
            raise ValueError(msg)
        return table


class Summary(_Model):
    """`summary.json`.

    Attributes:
        format: of the record.
        status: only `complete` can be judged no worse.
        reason: why it is not complete.
        model: what was served.
        arm: name of the arm.
        role: `baseline`, `eplb`, or `repeat`: the baseline once more, for what rounding does by itself.
        task: what was asked.
        value: accuracy in percent; None where the run is not complete.
        num_questions: answered.
        num_correct: of them.
        dtype: of weights and activations.
        server: how it was started.
        versions: of the packages.
        git: of this repository.
        placement: what the server said of it.
        environment: machine, cores, threads.
        load: of the ranks.
        seconds: of the run.
        started: ISO time.
        checkpoint: None in records that do not say it.
        expected: of the baseline.
    """

    format: Literal[1]
    status: Literal["complete", "failed", "incomplete"]
    reason: str | None
    model: Text
    arm: Text
    role: Literal["baseline", "eplb", "repeat"]
    task: TaskRecord
    value: Annotated[float, Field(ge=0, le=100)] | None
    num_questions: Count
    num_correct: Count
    dtype: Text
    server: ServerRecord
    versions: Versions
    git: GitRecord
    placement: PlacementRecord
    environment: dict[str, Any]
    load: LoadRecord
    seconds: Annotated[float, Field(ge=0)]
    started: str
    checkpoint: Checkpoint | None = None
    expected: ExpectedRecord = ExpectedRecord()

    @field_validator("started")
    @classmethod
    def _is_a_time(cls, text: str) -> str:
        datetime.fromisoformat(text)
        return text

    @model_validator(mode="after")
    def _agrees(self) -> Summary:
        if self.num_correct > self.num_questions:
            msg = f"num_correct is {self.num_correct} of {self.num_questions} questions"
            raise ValueError(msg)
        if self.status != "complete":
            if not self.reason or self.value is not None:
                msg = f"status is {self.status}, reason {self.reason!r}, value {self.value}; expected a reason and no value"
                raise ValueError(msg)
            return self
        if self.reason is not None or self.num_questions == 0:
            msg = f"status is complete, reason {self.reason!r}, num_questions {self.num_questions}; expected no reason, and questions"
            raise ValueError(msg)
        expected = 100 * self.num_correct / self.num_questions
        if self.value is None or abs(self.value - expected) > _ROUNDING:
            msg = (
                f"value is {self.value}; expected {expected:.2f}, {self.num_correct} of {self.num_questions}"
            )
            raise ValueError(msg)
        return self


class Question(_Model):
    """A line of `questions.jsonl`.

    Attributes:
        index: its place in the data.
        doc_hash: of the question and its answer, as lm-eval takes it.
        prompt_hash: of what was sent.
        target: the right answer.
        text: what came back.
        answer: what was found in it.
        correct: 0 or 1.
        finish_reason: why the text ended.
    """

    index: Count
    doc_hash: Text
    prompt_hash: Text
    target: str
    text: str
    answer: str | None
    correct: Annotated[int, Field(ge=0, le=1)]
    finish_reason: str | None

    @property
    def is_cut(self) -> bool:
        """Whether the limit of tokens ended the text."""
        return self.finish_reason == "length"

    @property
    def is_right(self) -> bool:
        """Whether the judge takes it as right: a number found in a text that was cut short is no answer."""
        return self.correct == 1 and not self.is_cut


class Forced(_Model):
    """A line of `logprobs.jsonl`: log-probabilities of the tokens of the baseline's text.

    Attributes:
        doc_hash: the question.
        forced_from: `texts_digest` of the baseline.
        logprobs: a number for each token of the text.
    """

    doc_hash: Text
    forced_from: Text
    logprobs: list[Annotated[float, Field(ge=-_MOST_LOGPROB, le=_MOST_LOGPROB)]]


def task_version(configuration: dict[str, Any]) -> str:
    """Return six hex digits of the SHA-256 over a configuration as JSON with sorted keys."""
    text = json.dumps(configuration, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_VERSION_DIGITS]
