# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The released vllm-ascend on an emulated NPU: nothing here is hardware.

Without a command: the releases of CI are served in every case, and compared with one rank without the plugin.
Exit code 0: all right. 1: something is wrong. 2: bad input, or refused.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path  # noqa: TC003 - typer reads annotations at run time
from typing import Annotated

import typer
from rich.console import Console

from expert_maps import ExpertMapsError
from expert_maps.files import write_text
from harness.ascend import accuracy, ending, engine, page
from harness.ascend import rehearse as rehearsal
from harness.ascend.models import TINY_MOE
from harness.ascend.prompts import read_prompts
from harness.ascend.session import SessionError, run_releases, write_record
from harness.ascend.stage import ROOT, stage
from harness.contract.fetching import ContractError
from harness.emulated_npu import CHIPS
from vllm_ascend_moe import hardware, releases

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)
_BAD_INPUT = 2
# As `timeout` says it.
_LATE = 124
_SHOWN = 20


@app.callback(invoke_without_command=True)
def session(
    context: typer.Context,
    *,
    every: Annotated[bool, typer.Option("--all", help="Serve beside every release that runs.")] = False,
    record: Annotated[
        bool, typer.Option("--record", help="With --all: write the page, which git has.")
    ] = False,
    release: Annotated[
        list[str] | None, typer.Option("--release", help="Only this release; may be repeated.")
    ] = None,
) -> None:
    """Serve the releases of CI."""
    if context.invoked_subcommand is not None:
        return
    if record and not every:
        typer.echo(
            "error: --record is given without --all; expected both, as the page has every release", err=True
        )
        raise typer.Exit(_BAD_INPUT)
    try:
        chosen = [_release(name) for name in release or []] or [
            found for found in releases.RELEASES if found.checked in ({"ci", "all"} if every else {"ci"})
        ]
    except ExpertMapsError as error:
        raise _refuse(error) from error
    begin = time.monotonic()
    try:
        rows = run_releases(
            chosen, lambda line: typer.echo(f"emulated: {line}"), every=every or release is not None
        )
    except (ContractError, SessionError) as error:
        typer.echo(f"FAILED {error}", err=True)
        raise typer.Exit(1) from error
    seconds = time.monotonic() - begin
    Console(width=160).print(page.rich_table(rows))
    write_record(ROOT / "record.json", rows, seconds)
    failed = [row for row in rows if row.judged.problems]
    if record and not failed:
        page.write(rows)
    typer.echo(
        f"emulated, not hardware: {len(rows) - len(failed)} of {len(rows)} as expected, {seconds:.0f} s"
    )
    if failed:
        raise typer.Exit(1)


@app.command()
def rehearse(
    map_path: Annotated[
        Path | None, typer.Option("--map", help="A map; without it one is planned for the embedded model.")
    ] = None,
    model: Annotated[Path, typer.Option("--model", help="A checkpoint's folder.")] = TINY_MOE,
    release: Annotated[str, typer.Option("--release", help="Of vllm-ascend, or newest.")] = "0.23.0",
    chip: Annotated[str, typer.Option("--chip", help="A2 (AllGather path) or A3 (ALLTOALL, MC2).")] = "A3",
    ranks: Annotated[int, typer.Option("--ranks", help="Expert-parallel ranks: processes.")] = 2,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="A text file with a prompt a line, or .jsonl.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", help="Write the outcome as JSON.")] = None,
    *,
    without_plugin: Annotated[
        bool, typer.Option("--without-plugin", help="Let vllm-ascend read the map by itself: its own faults.")
    ] = False,
) -> None:
    """Put a map on trial beside the released vllm-ascend, emulated: tokens, slots, and the path they took."""
    try:
        _check_chip(chip)
        if output is not None and not output.parent.is_dir():
            msg = f"--output is {output}; expected a file in a folder that exists"
            raise rehearsal.BadInputError(msg)
        trial = rehearsal.Trial(
            _release(release),
            chip,
            ranks,
            model,
            map_path,
            rehearsal.default_prompts(model) if prompts is None else read_prompts(prompts),
            plugin=not without_plugin,
        )
        outcome = rehearsal.rehearse(trial)
    except (ContractError, ExpertMapsError) as error:
        raise _refuse(error) from error
    _tell(trial, outcome)
    if output is not None:
        told = {"emulated": True, "release": trial.release.vllm_ascend, "chip": chip, "ranks": ranks}
        told |= {
            "plugin": trial.plugin,
            "model": str(model),
            "map": None if map_path is None else str(map_path),
        }
        content = {**told, **dataclasses.asdict(outcome)}
        try:
            write_text(output, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        except (ExpertMapsError, OSError) as error:
            raise _refuse(error) from error
    raise typer.Exit(outcome.exit_code)


@app.command()
def collect(
    output: Annotated[Path, typer.Option("--output", help="The file to write.")],
    map_path: Annotated[
        Path | None, typer.Option("--map", help="A map; without it the linear layout.")
    ] = None,
    model: Annotated[Path, typer.Option("--model", help="A checkpoint's folder.")] = TINY_MOE,
    release: Annotated[str, typer.Option("--release", help="Of vllm-ascend, or newest.")] = "0.23.0",
    chip: Annotated[str, typer.Option("--chip", help="A2 (AllGather path) or A3 (ALLTOALL, MC2).")] = "A3",
    ranks: Annotated[int, typer.Option("--ranks", help="Tensor-parallel size: processes.")] = 2,
    dtype: Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Write, emulated, what `vllm-ascend-moe doctor collect` writes on an NPU; `doctor compare` holds both side by side."""
    try:
        _check_chip(chip)
        hardware.Request(model, map_path, ranks, dtype).check()
        found = _release(release)
        staged = stage(found)
    except (ContractError, ExpertMapsError) as error:
        raise _refuse(error) from error
    words = ["--model", str(model.absolute()), "--output", str(output.absolute())]
    words += ["--ranks", str(ranks), "--dtype", dtype]
    words += [] if map_path is None else ["--map", str(map_path.absolute())]
    folder = ROOT.absolute() / "collected"
    folder.mkdir(parents=True, exist_ok=True)
    code = ending.run_module(
        ("vllm_ascend_moe", "doctor", "collect", *words),
        folder / "log.txt",
        engine.environment(staged, chip, folder, plugin=True),
    )
    code = _LATE if code is None else code
    if code:
        said = _own_lines(folder / "log.txt") or [f"it ended with exit code {code}"]
        typer.echo(f"error: {said[-1]} (log: {folder / 'log.txt'})", err=True)
        raise typer.Exit(code)
    typer.echo(f"emulated, not hardware: vllm-ascend {found.vllm_ascend}, {chip}, {ranks} ranks: {output}")


@app.command("accuracy", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def accuracy_command(
    context: typer.Context,
    release: Annotated[str, typer.Option("--release", help="Of vllm-ascend, or newest.")] = "0.23.0",
    chip: Annotated[str, typer.Option("--chip", help="A2 (AllGather path) or A3 (ALLTOALL, MC2).")] = "A3",
    runner: Annotated[
        int, typer.Option("--runner", help="vllm-ascend's; 2: a configuration of your own sets it too.")
    ] = 1,
) -> None:
    """Run `accuracy run` with vllm-ascend's servers, emulated; what follows is for it, such as --questions 16."""
    try:
        _check_chip(chip)
        found = _release(release)
        _check_runner(runner, found)
        staged = stage(found)
    except (ContractError, ExpertMapsError) as error:
        raise _refuse(error) from error
    raise typer.Exit(accuracy.run(staged, chip, context.args, runner))


def _own_lines(log: Path) -> list[str]:
    """Return the errors that a command printed among all that vLLM logs."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]


def _tell(trial: rehearsal.Trial, outcome: rehearsal.Outcome) -> None:
    how = "with the plugin" if trial.plugin else "without the plugin"
    where = f"vllm-ascend {trial.release.vllm_ascend} with vLLM {trial.release.vllm}, {trial.chip}, {trial.ranks} ranks"
    typer.echo(f"emulated, not hardware: {where}, {how}, {outcome.seconds:.0f} s")
    if outcome.texts is not None:
        equal, count = outcome.texts
        typer.echo(f"texts: {equal} of {count} equal to those without the map")
        typer.echo(f"slots: {outcome.slots} compared with the experts that the tables name")
        typer.echo(f"path: {', '.join(outcome.paths) or 'none of those known'}")
    for line in outcome.wrong[:_SHOWN]:
        typer.echo(f"wrong: {line}")
    if len(outcome.wrong) > _SHOWN:
        typer.echo(f"wrong: … and {len(outcome.wrong) - _SHOWN} more (--output has all)")
    if outcome.verdict == "refused":
        typer.echo(f"refused: {outcome.reason}", err=True)
    else:
        typer.echo(outcome.verdict)


def _check_chip(chip: str) -> None:
    if chip not in CHIPS:
        msg = f"--chip is {chip!r}; expected {' or '.join(CHIPS)}"
        raise rehearsal.BadInputError(msg)


def _check_runner(runner: int, release: releases.Release) -> None:
    serving = [1, engine.V2] if release.serves_v2 else [1]
    if runner not in serving:
        msg = f"--runner is {runner}; expected {' or '.join(map(str, serving))} with vllm-ascend {release.vllm_ascend}"
        raise rehearsal.BadInputError(msg)


def _release(name: str) -> releases.Release:
    served = [found for found in releases.RELEASES if found.checked in {"ci", "all"}]
    found = releases.NEWEST if name == "newest" else releases.find(name)
    if found is None or found not in served:
        known = ", ".join(each.vllm_ascend for each in served)
        msg = f"--release is {name!r}; expected newest or one of {known}"
        raise rehearsal.BadInputError(msg)
    return found


def _refuse(error: Exception) -> typer.Exit:
    typer.echo(f"error: {error}", err=True)
    return typer.Exit(_BAD_INPUT)


def main() -> None:
    """Run the command line."""
    app(prog_name="nox -s ascend --")


if __name__ == "__main__":
    main()
