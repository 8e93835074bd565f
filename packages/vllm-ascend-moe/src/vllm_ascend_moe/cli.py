# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The command line ``vllm-ascend-moe``."""

from __future__ import annotations

import dataclasses
import json as json_
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from expert_maps import ExpertMapsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm_ascend_moe.doctor import Diagnosis

_PROBLEMS, _BAD_INPUT = 1, 2
# Columns of the table of releases that a terminal has no room for.
_WIDE = {"torch / torch-npu", "maps are asked for in", "refused besides"}

app = typer.Typer(
    name="vllm-ascend-moe",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Expert maps and EPLB for vLLM on Ascend NPUs, and wherever else vLLM runs.",
)


doctor_app = typer.Typer(no_args_is_help=False, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(doctor_app, name="doctor")


@doctor_app.callback(invoke_without_command=True)
def doctor(
    context: typer.Context,
    additional_config: Annotated[
        str | None,
        typer.Option(
            "--additional-config",
            metavar="JSON",
            help="What you would give vLLM: its options and its map file are checked too.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
    npu: Annotated[
        bool,
        typer.Option(
            "--npu", help="Print what to run where there is an NPU: ten commands, from here to accuracy."
        ),
    ] = False,
) -> None:
    """Say what is installed, what would be active in vLLM and why, and what would not work.

    Exit codes: 0 all would work, 1 something would not, 2 bad input.
    """
    if context.invoked_subcommand is not None:
        return
    if npu:
        from vllm_ascend_moe import hardware

        typer.echo(hardware.commands(), nl=False)
        return
    from vllm_ascend_moe.doctor import diagnose

    try:
        config = None if additional_config is None else json_.loads(additional_config)
    except ValueError as error:
        typer.echo(f"error: --additional-config is not valid JSON: {error}", err=True)
        raise typer.Exit(_BAD_INPUT) from error
    if config is not None and not isinstance(config, dict):
        typer.echo(f"error: --additional-config is {additional_config}; expected a JSON object", err=True)
        raise typer.Exit(_BAD_INPUT)
    found = diagnose(config, os.environ)
    if json:
        typer.echo(json_.dumps(dataclasses.asdict(found)))
    else:
        _print(found)
    raise typer.Exit(_PROBLEMS if found.problems else 0)


@doctor_app.command()
def collect(
    output: Annotated[Path, typer.Option("--output", help="The file to write.")],
    model: Annotated[Path, typer.Option("--model", help="A checkpoint's folder.")],
    map_path: Annotated[
        Path | None, typer.Option("--map", help="A map for it; without one the linear layout is served.")
    ] = None,
    ranks: Annotated[int, typer.Option("--ranks", help="Tensor-parallel size: so many devices.")] = 2,
    dtype: Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = "float32",
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Generated for each of 16 prompts.")] = 16,
) -> None:
    """Serve once, and write one file: versions, chip, placement, checksums of every slot, and what was generated.

    Prompts are token ids that are drawn, the same everywhere. Exit codes: 0 written, 2 bad input or refused.
    """
    from vllm_ascend_moe import hardware

    try:
        if not output.absolute().parent.is_dir():
            msg = f"--output is {output}; expected a file in a folder that exists"
            raise hardware.ReportError(msg)
        request = hardware.Request(model, map_path, ranks, dtype, max_tokens)
        report = hardware.collect(request)
        hardware.write(report, output)
    except ExpertMapsError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(_BAD_INPUT) from error
    what = "emulated, not hardware" if report["emulated"] else "not emulated"
    typer.echo(f"{output}: {what}, {len(report['ranks'])} ranks, {len(report['tokens'])} texts")


@doctor_app.command()
def compare(
    report: Annotated[Path, typer.Argument(help="What `doctor collect` wrote, on an NPU say.")],
    other: Annotated[Path, typer.Argument(help="The same request served elsewhere, emulated say.")],
) -> None:
    """Hold two collected files against each other: placement, the bytes of every slot, and what was generated.

    Exit codes: 0 the same, 1 something differs, 2 bad input.
    """
    from vllm_ascend_moe import hardware
    from vllm_ascend_moe.hardware_comparison import compare

    try:
        found = compare(hardware.read(report), hardware.read(other))
    except ExpertMapsError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(_BAD_INPUT) from error
    for line in found.lines:
        typer.echo(line)
    for line in found.differences:
        typer.echo(f"differs: {line}")
    typer.echo("differs" if found.differences else "the same")
    raise typer.Exit(_PROBLEMS if found.differences else 0)


@app.command("releases")
def show_releases(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table as the README has it.")
    ] = False,
) -> None:
    """Show which vllm-ascend the plugin serves beside, with which vLLM, and what it refuses there."""
    from vllm_ascend_moe import releases

    if markdown:
        typer.echo(releases.markdown(), nl=False)
        return
    shown = [index for index, name in enumerate(releases.COLUMNS) if name not in _WIDE]
    lines = [releases.COLUMNS, *map(releases.row, releases.RELEASES)]
    widths = [max(len(line[index]) for line in lines) for index in shown]
    for line in lines:
        cells = zip((line[index] for index in shown), widths, strict=True)
        typer.echo("  ".join(cell.ljust(width) for cell, width in cells).rstrip())
    typer.echo(f"without vllm-ascend: vLLM {releases.VLLM}")
    refused: dict[str, list[str]] = {}
    for release in releases.RELEASES:
        for what in release.refused:
            refused.setdefault(what, []).append(release.vllm_ascend)
    for what in releases.REFUSED:
        typer.echo(f"refused beside all: {what}")
    for what, versions in refused.items():
        typer.echo(f"refused beside {', '.join(versions)}: {what}")


@app.command("options")
def show_options(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table as docs/options.md has it.")
    ] = False,
) -> None:
    """Show which option works on which platform, and why another is refused there."""
    from vllm_ascend_moe import option_table

    if markdown:
        typer.echo(option_table.markdown(), nl=False)
        return
    for name, *cells in option_table.rows():
        typer.echo(name)
        for platform, cell in zip(option_table.COLUMNS[1:], cells, strict=True):
            typer.echo(f"  {platform}: {cell}")


@app.command("metrics")
def show_metrics(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table as docs/metrics.md has it.")
    ] = False,
    dashboard: Annotated[
        bool, typer.Option("--dashboard", help="Print the Grafana dashboard, JSON to be imported.")
    ] = False,
    alerts: Annotated[
        bool, typer.Option("--alerts", help="Print the alert rules, YAML for Prometheus.")
    ] = False,
) -> None:
    """Show what vLLM's /metrics shows of the plugin, or print the dashboard or the alert rules for it.

    Exit codes: 0 printed, 2 bad input.
    """
    from vllm_ascend_moe import monitoring
    from vllm_ascend_moe.core import metric_table

    if markdown + dashboard + alerts > 1:
        typer.echo("error: several of --markdown, --dashboard and --alerts; expected one", err=True)
        raise typer.Exit(_BAD_INPUT)
    if dashboard or alerts:
        typer.echo(
            (monitoring.DASHBOARD if dashboard else monitoring.ALERTS).read_text(encoding="utf-8"), nl=False
        )
        return
    if markdown:
        typer.echo(metric_table.markdown(), nl=False)
        return
    for samples, kind, label, meaning in metric_table.rows():
        typer.echo(f"{samples}: {kind}{label and f', by {label}'}\n  {meaning}")


def _show_version(asked: bool) -> None:
    if asked:
        from vllm_ascend_moe._version import __version__

        typer.echo(f"vllm-ascend-moe {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Take the options that stand before a subcommand."""


def _print(found: Diagnosis) -> None:
    console = Console(soft_wrap=True, highlight=False)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column()
    table.add_column(overflow="fold")  # whole paths

    def row(name: str, value: str) -> None:
        # As text: what users wrote may look like markup.
        table.add_row(Text(name), Text(value))

    for name, version in found.versions.items():
        row(name, version or "not installed")
    for group, names in found.entry_points.items():
        row(group, ", ".join(names) or "none")
    plugins = (
        "unset, all are loaded" if found.vllm_plugins is None else ", ".join(found.vllm_plugins) or "none"
    )
    row("VLLM_PLUGINS", plugins)
    row("device", found.device or "unknown")
    for name, value in _beside(found):
        row(name, value)
    row("state", found.state)
    if found.settings:
        row("options", json_.dumps(found.settings))
    console.print(table)
    for title, lines in (("note", found.notes), ("problem", found.problems)):
        for line in lines:
            console.print(f"{title}: {line}", markup=False)
    if not found.problems:
        console.print("no problems found")


def _beside(found: Diagnosis) -> Iterator[tuple[str, str]]:
    """Yield what applies to this device: the row of the table beside vllm-ascend, or the kernels of a CPU."""
    for name, value in (found.release or {}).items():
        if name not in {"vllm-ascend", "vLLM", "refused besides"}:  # said already, or next
            yield name, value
    for what in found.refused:
        yield "refused", what
    if found.kernels is not None:
        yield "kernels", found.kernels


def main() -> None:
    """Run the command line; the console script's entry point."""
    app()
