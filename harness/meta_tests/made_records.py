# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Records of made-up arms for the tests of the judge."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forking import run_module

from harness.accuracy.records import Record, read_record, texts_digest, write_record
from harness.accuracy.schema import Forced, Question, Summary, task_version

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Collection

CONFIGURATION = {"task": "words", "num_fewshot": 0, "max_tokens": 64}
TOKENS = 3
# Of a model that is sure of it.
LOGPROB = -2e-4


@dataclass(frozen=True)
class Arm:
    """What an arm is like.

    Attributes:
        name: of its folder.
        questions: how many.
        wrong: indices that it has wrong.
        changed: indices whose text is another than the baseline's.
        cut: indices whose text the limit of tokens ended.
        shift: added to every log-probability; None for no log-probabilities.
        changes: of the summary, by dotted name.
    """

    name: str = "baseline"
    questions: int = 400
    wrong: Collection[int] = ()
    changed: Collection[int] = ()
    cut: Collection[int] = ()
    shift: float | None = 0.0
    changes: dict[str, Any] = field(default_factory=dict)


def eplb(**options: Any) -> Arm:  # noqa: ANN401 - those of Arm
    """Return an arm in which EPLB acted."""
    found = {"name": "static", **options}
    placement = {
        "role": "eplb",
        "placement.eplb_active": True,
        "placement.digest": "b" * 64,
        "placement.digest_at_end": "b" * 64,
        "placement.num_redundant_experts": 8,
        "placement.replica_checksums": "equal",
    }
    return Arm(**{**found, "changes": {**placement, **found.get("changes", {})}})


def summary_of(arm: Arm) -> dict[str, Any]:
    correct = arm.questions - len(set(arm.wrong))
    summary: dict[str, Any] = {
        "format": 1,
        "status": "complete",
        "reason": None,
        "model": "made-up",
        "arm": arm.name,
        "role": "baseline",
        "task": {
            "dataset": "words",
            "version": task_version(CONFIGURATION),
            "metric": "accuracy",
            "mode": "gen",
            "num_fewshot": 0,
            "configuration": CONFIGURATION,
        },
        "value": 100 * correct / arm.questions,
        "num_questions": arm.questions,
        "num_correct": correct,
        "dtype": "float32",
        "server": {"arguments": ["--enforce-eager"], "environment": {"OMP_NUM_THREADS": "1"}},
        "versions": dict.fromkeys(
            ("vllm", "torch", "lm_eval", "transformers", "python", "vllm_ascend_moe", "expert_maps"), "1.0"
        )
        | {"torch_npu": None},
        "git": {"commit": "c" * 40, "dirty": False},
        "placement": {
            "eplb_active": False,
            "digest": "a" * 64,
            "digest_at_end": "a" * 64,
            "num_redundant_experts": 0,
            "rearrangements": 0,
            "ep_size": 4,
            "replica_checksums": "not read",
            "faults": [],
        },
        "environment": {"machine": "x86_64", "cores": 2},
        "load": {"rank_load": [[4.0, 1.0, 2.0, 1.0], [3.0, 2.0, 2.0, 1.0]], "balancedness": 4 / 7},
        "checkpoint": {"name": "made-up", "sha256": "d" * 64},
        "seconds": 12.5,
        "started": f"2025-01-01T00:00:0{0 if arm.name == 'baseline' else 1}+00:00",
    }
    for dotted, value in arm.changes.items():
        *path, last = dotted.split(".")
        part = summary
        for name in path:
            part = part[name]
        part[last] = value
    return summary


def questions_of(arm: Arm) -> list[Question]:
    return [
        Question(
            index=index,
            doc_hash=f"doc{index}",
            prompt_hash=f"prompt{index}",
            target=str(index),
            text=f"#### {index}" + (" or so" if index in arm.changed else ""),
            answer=None if index in arm.wrong else str(index),
            correct=0 if index in arm.wrong else 1,
            finish_reason="length" if index in arm.cut else "stop",
        )
        for index in range(arm.questions)
    ]


def logprobs_of(arm: Arm) -> list[Forced] | None:
    if arm.shift is None:
        return None
    # Those of an arm are of the baseline's texts, none of which is changed.
    source = texts_digest(question.text for question in questions_of(Arm(questions=arm.questions)))
    values = [LOGPROB + arm.shift] * TOKENS
    return [
        Forced(doc_hash=f"doc{index}", forced_from=source, logprobs=values) for index in range(arm.questions)
    ]


def make(folder: Path, arm: Arm) -> Record:
    """Write a record to `folder / arm.name` and read it."""
    target = folder / arm.name
    write_record(target, Summary.model_validate(summary_of(arm)), questions_of(arm), logprobs_of(arm))
    return read_record(target)


def record(arm: Arm) -> Record:
    """Return the record of an arm without writing it."""
    logprobs = logprobs_of(arm)
    summary = Summary.model_validate(summary_of(arm))
    return Record(Path(arm.name), summary, tuple(questions_of(arm)), tuple(logprobs) if logprobs else None)


def compare(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command `compare`."""
    return run_module("harness.accuracy", "compare", *map(str, arguments), cwd=Path.cwd(), seconds=120)
