# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What is known of an arm while it runs, of which its record is made."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.accuracy import versions
from harness.accuracy.evidence import Evidence
from harness.accuracy.loads import NOT_RECORDED, QuestionLoad
from harness.accuracy.records import write_record
from harness.accuracy.schema import Forced, Summary, task_version
from harness.record.provenance import checkout, without_places

if TYPE_CHECKING:
    from expert_maps import Placement
    from harness.accuracy.arms import Arm
    from harness.accuracy.questions import Evaluated
    from harness.accuracy.schema import Question
    from harness.accuracy.settings import RunSettings
    from harness.record.schema import Checkpoint

# The development endpoints carry the proof; nobody is told that vLLM was used.
_ENVIRONMENT = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}


@dataclass
class ArmRun:
    """What is known of an arm while it runs; the record is made of it.

    Attributes:
        settings: of the run.
        name: of the arm.
        arguments: of the server, as a record shows them.
        placement: the planned one; None where none was planned here.
        evidence: read from the server; None until then.
        evaluated: None until all questions are scored.
        found: versions; None until there is a server.
        forced: log-probabilities of the baseline's texts; None where they were not measured.
        load: the part `load` of a record.
        questions_load: of the questions; None where the arm records none, or another's server is asked.
        checkpoint: what is served; None until there is a server.
        started: when, in UTC.
    """

    settings: RunSettings
    name: str
    arguments: list[str] = field(default_factory=list)
    placement: Placement | None = None
    evidence: Evidence | None = None
    evaluated: Evaluated | None = None
    found: dict[str, str | None] | None = None
    forced: list[Forced] | None = None
    load: dict[str, Any] = field(default_factory=lambda: dict(NOT_RECORDED))
    questions_load: QuestionLoad | None = None
    checkpoint: Checkpoint | None = None
    _started: float = field(default_factory=time.monotonic)
    started: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    @property
    def arm(self) -> Arm:
        """The arm's configuration."""
        return self.settings.config.arms[self.name]

    @property
    def folder(self) -> Path:
        """Where the record goes."""
        return self.settings.folder / self.name

    @property
    def work(self) -> Path:
        """Where journal, log and load are kept while the arm runs."""
        return self.settings.work / self.name

    @property
    def environment(self) -> dict[str, str]:
        """Variables of the server that the harness starts; none for another's."""
        if self.name in self.settings.base_urls:
            return {}
        return {**_ENVIRONMENT, **self.settings.config.server.environment, **self.arm.environment}

    def shown(self, text: str) -> str:
        """Return a text for a record that others read: what it calls the folders of this run, and no others."""
        return without_places(text, {self.folder: "", self.work: "work", Path.cwd(): ""})

    def write(self, status: str, reason: str | None) -> Summary:
        """Write the record as far as it is known."""
        config = self.settings.config
        questions: list[Question] = self.evaluated.questions if self.evaluated else []
        correct = sum(question.correct for question in questions)
        evidence = self.evidence or Evidence(None, None)
        summary = {
            "format": 1,
            "status": status,
            "reason": self.shown(reason) if reason else None,
            "model": config.name,
            "arm": self.name,
            "role": self.arm.role,
            "task": self._task(),
            "value": 100 * correct / len(questions) if status == "complete" else None,
            "num_questions": len(questions),
            "num_correct": correct,
            "dtype": self.settings.dtype,
            "server": {
                "arguments": self.arguments,
                "environment": {name: self.shown(value) for name, value in self.environment.items()},
                "started_by_harness": self.name not in self.settings.base_urls,
            },
            "versions": self.found or dict.fromkeys(versions.NAMES),
            "git": dict(zip(("commit", "dirty"), checkout(), strict=True)),
            "placement": evidence.as_record(),
            "environment": versions.machine(self.environment),
            "load": self.load,
            "seconds": round(time.monotonic() - self._started, 1),
            "started": self.started,
            "expected": config.expected.model_dump(),
            "checkpoint": None if self.checkpoint is None else self.checkpoint.model_dump(),
        }
        checked = Summary.model_validate_json(json.dumps(summary))
        forced = self.forced if status == "complete" else None
        write_record(self.folder, checked, questions, forced)
        return checked

    def _task(self) -> dict[str, Any]:
        task = self.settings.config.task
        configuration = self.evaluated.configuration if self.evaluated else {}
        return {
            "dataset": task.dataset,
            "version": task_version(configuration),
            "metric": "accuracy",
            "mode": "gen",
            "num_fewshot": task.num_fewshot,
            "configuration": configuration,
            "filter": task.filter,
        }
