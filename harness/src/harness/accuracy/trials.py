# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What `sensitivity` and `false-alarms` share: options, settings, the baseline, and how trials are written."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from expert_maps import plan, read_load
from expert_maps.files import write_text
from harness.accuracy import offline
from harness.accuracy.arms import EXPERT_MAPS
from harness.accuracy.config import BASELINE, REPEAT, ConfigError
from harness.accuracy.data import find_data
from harness.accuracy.limits import limits_for
from harness.accuracy.loading import load_config
from harness.accuracy.loads import QuestionLoad
from harness.accuracy.options import RESULTS, SCRATCH
from harness.accuracy.settings import RunSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from expert_maps import Placement
    from harness.accuracy.records import Record
    from harness.accuracy.verdict import Verdict

# With 299 and no question lost, an arm is no worse by 1 point: 0.05 ** (1 / 299) = 1 − 0.00997.
QUESTIONS = 300

Questions = Annotated[int, typer.Option("--questions", min=1, help="The first so many.")]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", help=f"Folder of results, in which the model's name is added; {SCRATCH} without it."
    ),
]
Scratch = Annotated[Path, typer.Option("--scratch", help="Folder for the records of each arm.")]
Keep = Annotated[bool, typer.Option("--record", help=f"Keep the results in {RESULTS}, where git has them.")]


def run_alone(command: Callable[..., None], about: str | None) -> None:
    """Run a command as a module of its own."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(help=about)(command)
    app()


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


def measure_baseline(settings: RunSettings) -> tuple[Record, Record | None, Path]:
    """Start the baseline's engine, as a run does, and measure it; in 16 bits once more, in another order, for the floor.

    Returns:
        The baseline, its repeat, and the file of its load.
    """
    load = QuestionLoad(settings.work, "", "")
    load.begin(resumed=False)
    additional = settings.config.arms[BASELINE].additional(record=load.recorded.absolute(), expert_map=None)
    settings.say("baseline: starting vLLM")
    with offline.engine(settings, additional=additional[EXPERT_MAPS]) as engine:
        record, _ = offline.measure(engine, settings, offline.Trial(BASELINE, BASELINE), None, load)
        floor = None
        if limits_for(settings.dtype).needs_floor:
            again = offline.Trial(REPEAT, REPEAT, how=offline.Order(seed=0))
            floor, _ = offline.measure(engine, settings, again, record)
    settings.say(f"baseline: {record.summary.value:.2f} % of {record.summary.num_questions} questions")
    return record, floor, load.kept


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


def trial_as_json(verdict: Verdict | None, accuracy: float | None) -> dict[str, Any]:
    """Return what came of one trial, with every criterion; no verdict where the engine stopped."""
    line = {"verdict": verdict.answer, "line": verdict.line} if verdict else {"verdict": None}
    criteria = [asdict(one) for one in (verdict.criteria if verdict else ())]
    return {"accuracy": accuracy, **line, "criteria": criteria}


def about(record: Record) -> dict[str, Any]:
    """Return what the numbers stand on: versions, checkout and machine."""
    summary = record.summary
    return {
        "format": 1,
        "model": summary.model,
        "task": summary.task.model_dump(include={"dataset", "version", "num_fewshot"}),
        "questions": summary.num_questions,
        "versions": summary.versions.model_dump(),
        "git": summary.git.model_dump(),
        "environment": summary.environment,
        "baseline": summary.value,
    }


def write_both(folder: Path, name: str, page: str, record: dict[str, Any]) -> None:
    """Write the page and the record of a proof, and say so."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / f"{name}.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    write_text(folder / f"{name}.md", page)
    typer.echo(f"wrote {folder / name}.md and .json")
