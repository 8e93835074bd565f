# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What `sensitivity` and `false-alarms` share: settings, the baseline, and how outcomes are written."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.console import Console

from expert_maps import plan, read_load
from expert_maps.files import write_text
from harness.accuracy import offline
from harness.accuracy.config import BASELINE, EXPERT_MAPS, ConfigError
from harness.accuracy.limits import limits_for
from harness.accuracy.loading import load_config
from harness.accuracy.loads import QuestionLoad
from harness.accuracy.run import find_data
from harness.accuracy.settings import RunSettings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from expert_maps import Placement
    from harness.accuracy.criteria import Criterion
    from harness.accuracy.records import Record

# With 299 and no question lost, an arm is no worse by 1 point: 0.05 ** (1 / 299) = 1 − 0.00997.
QUESTIONS = 300
# What looks at answers alone: without these a fault is seen by checksums only, which need the workers' report.
OUTPUTS = ("log-probabilities, largest", "log-probabilities, mean", "identical texts", "McNemar", "loss")
CHECKSUMS = ("replicas equal", "as declared")


def settings_for(
    model: str, scratch: Path, questions: int, dtype: str | None = None, *, trusted: bool = False
) -> RunSettings:
    """Return settings whose records are not kept.

    Args:
        model: a name in accuracy/models, or a .yaml file.
        scratch: folder of the records of each arm.
        questions: the first so many.
        dtype: of weights and activations; the model's where it is None.
        trusted: whether a .yaml file may set what can run code.

    Raises:
        ConfigError: the configuration or its data is absent or malformed.
    """
    config = load_config(model, trusted=trusted)
    if config.task.chat_template:
        msg = f"{config.name} is asked by a chat template; expected plain prompts, as vLLM gets them here"
        raise ConfigError(msg)
    found = RunSettings(
        config=config,
        model=config.model,
        dtype=dtype or config.dtype,
        count=questions,
        base_urls={},
        output=scratch,
        concurrency=config.concurrency,
        startup_seconds=config.startup_seconds,
        attempts=1,
        console=Console(stderr=True),
        data=find_data(config, config.model, None),
    )
    # So that git leaves the records out, as those of a run that is under way.
    found.make_folder(found.work)
    return found


def measure_baseline(settings: RunSettings) -> tuple[Record, Path]:
    """Start the baseline's engine, as a run does, and measure it; return its load, too."""
    load = QuestionLoad(settings.work, "", "")
    load.begin(resumed=False)
    additional = settings.config.arms[BASELINE].additional(record=load.recorded.absolute(), expert_map=None)
    settings.say("baseline: starting vLLM")
    with offline.engine(settings, additional=additional[EXPERT_MAPS]) as engine:
        record = offline.measure(engine, settings, offline.Trial(BASELINE, BASELINE), None, load).record
    settings.say(f"baseline: {record.summary.value:.2f} % of {record.summary.num_questions} questions")
    return record, load.kept


def planned(settings: RunSettings, load: Path) -> Placement:
    """Plan a placement with redundant experts from recorded load, as the first planned arm's is.

    Raises:
        ConfigError: no arm is planned.
    """
    wanted = next((arm.plan for arm in settings.config.arms.values() if arm.plan), None)
    if wanted is None:
        msg = f"{settings.config.name} has no arm with a plan; expected one, whose redundancy is used here"
        raise ConfigError(msg)
    found = read_load(load)
    return plan(
        found.total,
        num_physical_experts=found.num_experts + wanted.num_redundant_experts,
        ep_size=wanted.ep_size,
    ).placement


def with_checkpoint(settings: RunSettings, folder: Path, dtype: str) -> RunSettings:
    """Return the settings for another checkpoint of the model, with a folder of its own."""
    output = settings.output.with_name(f"{settings.output.name}-{folder.name}")
    found = replace(settings, model=str(folder), dtype=dtype, output=output)
    found.make_folder(found.work)
    return found


def criterion_as_json(one: Criterion) -> dict[str, object]:
    """Return a criterion as an object of JSON."""
    found = {"name": one.name, "outcome": one.outcome, "value": one.value, "limit": one.limit}
    return {**found, "measured": one.measured, "bound": one.bound}


def caught_by(criteria: Sequence[Criterion], names: Sequence[str] | None = None) -> list[str]:
    """Return which criteria fail, of all or of those named."""
    return [one.name for one in criteria if one.outcome == "fail" and (names is None or one.name in names)]


def measured(criteria: Sequence[Criterion], name: str) -> float | None:
    """Return the number that a criterion found."""
    return next((one.measured for one in criteria if one.name == name), None)


def environment(record: Record) -> dict[str, Any]:
    """Return what the numbers stand on: versions, checkout and machine."""
    summary = record.summary
    return {
        "model": summary.model,
        "task": summary.task.model_dump(include={"dataset", "version", "num_fewshot"}),
        "questions": summary.num_questions,
        "versions": summary.versions.model_dump(),
        "git": summary.git.model_dump(),
        "environment": summary.environment,
    }


def limits_line(dtype: str) -> str:
    """Name the limits of a dtype."""
    found = limits_for(dtype)
    return (
        f"{dtype}: largest Δ {found.largest:.1e}, mean {found.mean:.1e}, "
        f"identical texts {100 * found.identical:g} %"
    )


def write_both(folder: Path, name: str, page: str, record: dict[str, Any]) -> None:
    """Write the page and the record of a proof."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / f"{name}.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    write_text(folder / f"{name}.md", page)
