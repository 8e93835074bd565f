# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The project's own tiny models.

python -m harness.tiny problems --count N --seed S --output FILE
python -m harness.tiny train {qwen3-moe|deepseek} --output FOLDER [--tokens N]
python -m harness.tiny evaluate FOLDER [--limit N] [--fewshot K]
"""

from __future__ import annotations

import contextlib
from enum import Enum
from itertools import islice
from pathlib import Path  # noqa: TC003 - typer reads annotations at run time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from expert_maps.errors import FormatError
from expert_maps.files import write_text
from harness.tiny import problems as own
from harness.tiny.models import Kind  # noqa: TC001 - as above

if TYPE_CHECKING:
    from collections.abc import Iterator

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)


class Dtype(str, Enum):
    """What a model computes in."""

    float32 = "float32"
    bfloat16 = "bfloat16"


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn bad input into one line and exit code 2."""
    try:
        yield
    except (FormatError, ModuleNotFoundError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error


@app.command()
def problems(
    output: Annotated[Path, typer.Option("--output", help="JSONL file to write.")],
    count: Annotated[int, typer.Option("--count", help="How many problems.", min=1)] = own.HELD_OUT_COUNT,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the draws.", min=0)] = own.HELD_OUT_SEED,
    exclude: Annotated[
        list[Path] | None, typer.Option("--exclude", help="No question of this file; may be repeated.")
    ] = None,
) -> None:
    """Write generated word problems in GSM8K's format, no question twice."""
    with _one_line_errors():
        without = [problem.question for file in exclude or [] for problem in own.read_jsonl(file)]
        write_text(output, own.to_jsonl(islice(own.generate(seed, without), count)))
    typer.echo(f"wrote {count} problems to {output}")


@app.command()
def train(
    kind: Annotated[Kind, typer.Argument(help="Which model.")],
    output: Annotated[Path, typer.Option("--output", help="Folder to write; its files are replaced.")],
    tokens: Annotated[int, typer.Option("--tokens", help="Tokens to train on.", min=1)] = 9_000_000,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the weights.", min=0, max=2**31)] = 0,
    threads: Annotated[int, typer.Option("--threads", help="Threads of torch.", min=1)] = 1,
) -> None:
    """Train a tiny model on generated word problems and write its checkpoint."""
    with _one_line_errors():
        from harness.tiny.plan import Plan
        from harness.tiny.train import train as run

        log = run(Plan(kind, tokens, seed, threads), output, Console())
    typer.echo(f"wrote {output}: exact match {log['accuracy']['bfloat16_0shot']['exact_match']:.2%}")


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(help="Folder of a checkpoint, with its problems.")],
    limit: Annotated[int | None, typer.Option("--limit", help="Only the first problems.", min=1)] = None,
    fewshot: Annotated[int, typer.Option("--fewshot", help="Examples before each problem.", min=0)] = 0,
    dtype: Annotated[Dtype, typer.Option("--dtype", help="What to compute in.")] = Dtype.bfloat16,
    threads: Annotated[int, typer.Option("--threads", help="Threads of torch.", min=1)] = 1,
) -> None:
    """Measure exact match on the held-out problems: greedy, by transformers."""
    with _one_line_errors():
        import torch

        from harness.tiny.checkpoint import FEWSHOT, HELD_OUT
        from harness.tiny.evaluate import load, score

        torch.set_num_threads(threads)
        asked = own.read_jsonl(folder / HELD_OUT)[:limit]
        shots = own.read_jsonl(folder / FEWSHOT)[:fewshot] if fewshot else []
        if len(shots) < fewshot:
            msg = f"--fewshot {fewshot}: {folder / FEWSHOT} has only {len(shots)} problems"
            raise FormatError(msg)
        model, tokenizer = load(folder, dtype.value)
        result = score(model, tokenizer, asked, shots, Console())
    typer.echo(f"exact match {result.exact_match:.2%} ({result.correct} of {result.count})")


if __name__ == "__main__":
    app()
