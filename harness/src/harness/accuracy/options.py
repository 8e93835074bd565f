# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Options of the commands, each with its type and what `--help` says; and how a command ends that was given nonsense."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expert_maps import ExpertMapsError
from harness.accuracy.verdict import MARGIN_POINTS

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_MODEL = "tiny-moe"
RESULTS, SCRATCH = Path("accuracy/results"), Path("build/accuracy")
# Enough for an arm in which nothing differs to be no worse by 3 points: 0.05 ** (1 / 120) = 1 − 0.0247.
SHORT_QUESTIONS, SHORT_MARGIN = 120, 3.0

# Options of the commands that judge.
Margin = Annotated[float, typer.Option("--margin", help="Largest loss that is accepted, in points.")]
Largest = Annotated[
    float | None, typer.Option("--largest", help="Limit of |Δ log-probability|; by dtype without it.")
]
Mean = Annotated[float | None, typer.Option("--mean", help="Limit of its mean; by dtype without it.")]
Identical = Annotated[
    float | None,
    typer.Option("--identical", help="Share of texts that must stay the same; by dtype without it."),
]

Waive = Annotated[
    list[str] | None, typer.Option("--waive", help="A criterion that need not be measured; may be repeated.")
]
Floor = Annotated[
    Path | None,
    typer.Option(
        "--floor", help="Record of the baseline once more; `repeat` beside the baseline without it."
    ),
]

# Of `run`.
ModelName = Annotated[str, typer.Option("--model", help="A name in accuracy/models, or a .yaml file.")]
ArmNames = Annotated[list[str] | None, typer.Option("--arm", help="Only this arm; may be repeated.")]
Questions = Annotated[int | None, typer.Option("--questions", min=1, help="Only the first so many.")]
Short = Annotated[
    bool,
    typer.Option(
        "--short", help=f"{SHORT_QUESTIONS} questions, margin {SHORT_MARGIN:g}; of --performance a trial."
    ),
]
BaseUrls = Annotated[
    list[str] | None,
    typer.Option("--base-url", help="ARM=URL of a server that runs already; may be repeated."),
]
CheckpointFolder = Annotated[
    str | None, typer.Option("--checkpoint", help="Another folder of the checkpoint.")
]
DataFolder = Annotated[Path | None, typer.Option("--data", help="A folder with train.jsonl and test.jsonl.")]
Output = Annotated[Path | None, typer.Option("--output", help=f"Folder of records; {SCRATCH} without it.")]
Concurrency = Annotated[
    int | None, typer.Option("--concurrency", min=1, help="Requests in flight; the model's if not given.")
]
MarginOrDefault = Annotated[
    float | None, typer.Option("--margin", help=f"Accepted loss in points; {MARGIN_POINTS:g}.")
]
Keep = Annotated[bool, typer.Option("--record", help=f"Keep the records in {RESULTS}, where git has them.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be run, and start no server.")]
Speed = Annotated[
    bool,
    typer.Option(
        "--performance",
        help="Also time each arm beside the baseline, under the configuration's `performance`.",
    ),
]
Dtype = Annotated[str | None, typer.Option("--dtype", help="Of weights and activations.")]
Resume = Annotated[bool, typer.Option("--resume/--no-resume", help="Go on with a run that was cut off.")]
StartupTimeout = Annotated[
    float | None, typer.Option("--startup-timeout", min=1, help="Seconds until a server answers.")
]
Attempts = Annotated[int, typer.Option("--attempts", min=1, help="Tries of a request.")]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Let the .yaml file set what can run code, such as --trust-remote-code."),
]


@contextlib.contextmanager
def bad_input() -> Iterator[None]:
    """End with one line and exit code 2 where what was given cannot be used."""
    try:
        yield
    except (ExpertMapsError, ValueError, OSError) as error:
        # A name of a file may hold line breaks.
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from error
