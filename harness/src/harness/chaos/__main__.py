# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Serve the embedded model under chaos: `python -m harness.chaos`, `--minutes N`, `--seed N`, `--record`.

Exit code 0: every answer was right and nothing grew. 1: something was not as it must be. 2: bad input, or no server.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expert_maps import ExpertMapsError
from harness.chaos import running
from harness.record import history
from harness.record.provenance import checkpoint_of, describe
from harness.record.schema import RunRecord

if TYPE_CHECKING:
    from harness.chaos.running import Options, Outcome

_FOUND, _UNUSABLE = 1, 2
# A run that is kept; others go below build/.
KEPT = Path("harness/bench/records/chaos.jsonl")


def main(
    minutes: Annotated[float, typer.Option(min=0.5, max=24 * 60, help="Of asking.")] = 30.0,
    seed: Annotated[int, typer.Option(help="Of faults, prompts and clients.")] = 0,
    clients: Annotated[int, typer.Option(min=1, max=256, help="At a time.")] = 6,
    ranks: Annotated[int, typer.Option(min=2, max=8, help="Over which experts are spread.")] = 2,
    model: Annotated[Path, typer.Option(help="Folder of a small checkpoint.")] = Path("accuracy/tiny-moe"),
    output: Annotated[Path, typer.Option(help="For logs and the record.")] = Path("build/chaos"),
    record: Annotated[bool, typer.Option("--record", help=f"Append the figures to {KEPT}.")] = False,  # noqa: FBT002
) -> None:
    """Serve under chaos and compare every answer with one rank's without the plugin."""
    options = running.Options(model, minutes, seed, clients, ranks, output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        found = running.run(options, typer.echo)
        kept = KEPT if record else output / "chaos.jsonl"
        history.append(kept, record_of(options, found))
    except (ExpertMapsError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(_UNUSABLE) from error
    for line in lines(found):
        typer.echo(line)
    typer.echo(f"figures: {kept}")
    if found.problems:
        typer.echo("\n".join(f"FAILED: {problem}" for problem in found.problems), err=True)
        typer.echo(f"again: python -m harness.chaos --seed {seed} --minutes {minutes:g}", err=True)
        raise typer.Exit(_FOUND)


def lines(found: Outcome) -> list[str]:
    """Return the figures, for a person."""
    tally, faults = found.tally, found.faults
    plans = sum(faults[kind] for kind in ("none", "stirred", "raises", "rubbish"))
    shown = [
        f"{tally.sent:,} requests in {found.seconds:.0f} s: {tally.right:,} right, {tally.wrong} wrong, {tally.lost} lost",
        f"{tally.tokens:,} tokens computed, slowest answer {tally.slowest:.1f} s",
        f"{plans:,} plans: {faults['moved']:,} moved experts, {faults['raises']} raised, {faults['rubbish']} were rubbish",
        f"{faults['late']} times a rank was late; slots compared {found.looks} times",
    ]
    shown += [
        f"{one.name}: {one.mib:.0f} MiB ({one.mib_grown:+.1f} in {one.seconds:.0f} s), {one.descriptors:.0f} descriptors "
        f"({one.descriptors_grown:+.1f})"
        for one in found.growths
    ]
    return shown


def record_of(options: Options, found: Outcome) -> RunRecord:
    """Return the run as a record."""
    tally = found.tally
    quality = {
        "right": tally.right,
        "wrong": tally.wrong,
        "lost": tally.lost,
        "problems": len(found.problems),
    }
    proof = {
        "plans": dict(found.faults),
        "prompts": found.answers,
        "looks": found.looks,
        "problems": found.problems,
    }
    performance = {
        "seconds": round(found.seconds, 1),
        "requests": tally.sent,
        "tokens": tally.tokens,
        "slowest_s": round(tally.slowest, 2),
        "processes": [{"benchmark": one.name, **asdict(one)} for one in found.growths],
    }
    settings = {
        "minutes": options.minutes,
        "seed": options.seed,
        "clients": options.clients,
        "ranks": options.ranks,
        "step_interval": running.STEP_INTERVAL,
        "redundant_experts": running.REDUNDANT,
    }
    provenance = describe(
        checkpoint=checkpoint_of(str(options.model)), environment=running.acting_environment()
    )
    return RunRecord(
        kind="chaos",
        name="plans that fail and ranks that are late, vLLM CPU build, float32, eager",
        settings=settings,
        provenance=provenance,
        proof=proof,
        quality=quality,
        performance=performance,
    )


if __name__ == "__main__":
    typer.run(main)
