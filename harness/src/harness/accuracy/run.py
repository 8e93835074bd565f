# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`accuracy run`: serve the arms of a model one after the other, put the same questions to each, and judge."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from expert_maps import ExpertMapsError
from harness.accuracy import options as given
from harness.accuracy import resume as resuming
from harness.accuracy.checks import parse_base_urls, require_modules, show_plan
from harness.accuracy.compare import Options
from harness.accuracy.config import BASELINE, DTYPES, REPEAT, ConfigError, Expected
from harness.accuracy.data import find_data
from harness.accuracy.limits import limits_for
from harness.accuracy.loading import load_config
from harness.accuracy.overview import print_results
from harness.accuracy.performance import CLIENT, Rounds
from harness.accuracy.records import SUMMARY, read_record, texts_digest
from harness.accuracy.settings import RunSettings
from harness.accuracy.verdict import MARGIN_POINTS

if TYPE_CHECKING:
    from harness.accuracy.records import Record

_OTHER_QUESTIONS = Expected(reason="other questions, by --data")
_FAILED, _BAD_INPUT, _INTERRUPTED = 1, 2, 130


def run_command(
    model: given.ModelName = given.DEFAULT_MODEL,
    arm: given.ArmNames = None,
    questions: given.Questions = None,
    base_url: given.BaseUrls = None,
    checkpoint: given.CheckpointFolder = None,
    data: given.DataFolder = None,
    output: given.Output = None,
    concurrency: given.Concurrency = None,
    margin: given.MarginOrDefault = None,
    largest: given.Largest = None,
    mean: given.Mean = None,
    identical: given.Identical = None,
    waive: given.Waive = None,
    dtype: given.Dtype = None,
    startup_timeout: given.StartupTimeout = None,
    attempts: given.Attempts = 8,
    *,
    short: given.Short = False,
    performance: given.Speed = False,
    trust: given.Trust = False,
    record: given.Keep = False,
    dry_run: given.DryRun = False,
    resume: given.Resume = True,
) -> None:
    """Ask the arms of a model the same questions, keep a record of each, and judge them in pairs.

    Exit code 0: no worse, or nothing to judge (the baseline alone). 1: worse, or an arm could not be run. 2: bad input.
    3: undecided, or an arm was not judged for want of a baseline. Speed decides it only where the configuration says so.
    """
    with given.bad_input():
        config = load_config(model, trusted=trust)
        timed = config.performance.shortened() if short else config.performance
        settings = RunSettings(
            # What others measured is of the model's own questions.
            config=config if data is None else config.model_copy(update={"expected": _OTHER_QUESTIONS}),
            model=checkpoint or config.model,
            dtype=dtype or config.dtype,
            count=given.SHORT_QUESTIONS if short and questions is None else questions,
            base_urls=parse_base_urls(base_url or [], config),
            output=output or (given.RESULTS if record else given.SCRATCH),
            concurrency=concurrency or config.concurrency,
            startup_seconds=startup_timeout or config.startup_seconds,
            attempts=attempts,
            console=Console(stderr=True),
            data=find_data(config, checkpoint or config.model, data),
            performance=timed if performance else None,
        )
        accepted = margin if margin is not None else given.SHORT_MARGIN if short else MARGIN_POINTS
        options = Options(accepted, largest, mean, identical, waived=tuple(waive or ()))
        settings, names = _checked(settings, config.choose(arm), options)
        if dry_run:
            show_plan(settings, names)
            raise typer.Exit
    raise typer.Exit(_run(settings, names, options, resume=resume))


def _checked(settings: RunSettings, names: list[str], options: Options) -> tuple[RunSettings, list[str]]:
    """Check what the options name, and add the baseline once more where 16 bits need it.

    Raises:
        ConfigError: a folder or a package is absent, or an option is out of range.
    """
    is_path = settings.model.startswith(("/", ".", "~"))
    if is_path and not settings.base_urls and not Path(settings.model).is_dir():
        msg = f"checkpoint is {settings.model!r}, which is no folder; expected one, or a name on the hub"
        raise ConfigError(msg)
    if settings.dtype not in DTYPES:
        msg = f"dtype is {settings.dtype!r}; expected one of {', '.join(DTYPES)}"
        raise ConfigError(msg)
    if not 0 < options.margin < 100:  # noqa: PLR2004 - percent
        msg = f"margin is {options.margin:g} points; expected more than 0 and less than 100"
        raise ConfigError(msg)
    limits = limits_for(
        settings.dtype, largest=options.largest, mean=options.mean, identical=options.identical
    )
    require_modules("lm_eval", *([CLIENT] if settings.performance else []))
    if settings.performance is not None:
        settings.performance.check()
    arms = settings.config.arms
    if not (limits.needs_floor and BASELINE in names and any(arms[one].role == "eplb" for one in names)):
        return settings, names
    # Once more at the same server, where that runs already.
    config, urls = settings.config.with_repeat(), dict(settings.base_urls)
    if BASELINE in urls:
        urls.setdefault(REPEAT, urls[BASELINE])
    return replace(settings, config=config, base_urls=urls), config.choose([*names, REPEAT])


def _run(settings: RunSettings, names: list[str], options: Options, *, resume: bool) -> int:
    """Run the arms, with no other run at the folder, until an end or a signal; the exit code."""
    # As Ctrl-C, so that servers are stopped and the record says what happened.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with contextlib.ExitStack() as stack:
            with given.bad_input():
                stack.enter_context(settings.locked())
            return run_arms(settings, names, options, stack, resume=resume)
    except KeyboardInterrupt:
        typer.echo("interrupted; run it again to go on", err=True)
        return _INTERRUPTED
    except ExpertMapsError as error:
        typer.echo(f"error: {error}", err=True)
        return _BAD_INPUT if isinstance(error, ConfigError) else _FAILED


def run_arms(
    settings: RunSettings, names: list[str], options: Options, stack: contextlib.ExitStack, *, resume: bool
) -> int:
    """Run arms and print what came of them; the exit code.

    Args:
        settings: of the run.
        names: of the arms.
        options: how to judge.
        stack: ends what is started beside the arms' own servers.
        resume: whether to go on with a run that was cut off.

    Raises:
        ExpertMapsError: an arm could not be run; those after it were not.
    """
    from harness.accuracy.arm import run_arm
    from harness.accuracy.questions import preview

    # What is wrong with the data is said before a large model is loaded, or anything is thrown away.
    with given.bad_input():
        prompts = preview(settings, settings.work / "datasets")
    if settings.count is not None and len(prompts) < settings.count:
        settings.say(f"the data has {len(prompts)} questions, fewer than the {settings.count} asked for")
    settings.make_folder(settings.work)
    if not resume:
        resuming.begin_anew(settings.work)
    baseline = None if BASELINE in names else _kept_baseline(settings, len(prompts))
    rounds = Rounds(settings, prompts, stack) if settings.performance and set(names) != {BASELINE} else None
    records: dict[str, Record] = {}
    for name in names:
        texts = None
        if baseline is not None and name != BASELINE:
            texts = texts_digest(question.text for question in baseline.questions)
        key = resuming.fingerprint(settings, name, texts)
        found = resuming.finished(settings, name, key)
        if found is not None:
            settings.say(f"{name}: complete, from the run that was cut off")
        else:
            run_arm(settings, name, baseline, rounds)
        records[name] = found or resuming.finish(settings, name, key)
        if name == BASELINE:
            baseline = records[name]
    resuming.begin_anew(settings.work)
    return print_results(settings, records, baseline, options)


def _kept_baseline(settings: RunSettings, questions: int) -> Record | None:
    """Return the baseline of an earlier run; None where there is no complete one.

    Raises:
        ConfigError: it answered another number of questions than are asked now.
    """
    folder = settings.folder / BASELINE
    record = read_record(folder) if (folder / SUMMARY).exists() else None
    if record is None or record.summary.status != "complete":
        return None
    if record.summary.num_questions != questions:
        msg = (
            f"the baseline in {folder} answered {record.summary.num_questions} questions; expected {questions}, as are "
            f"asked now: run it with --arm {BASELINE} too"
        )
        raise ConfigError(msg)
    return record
