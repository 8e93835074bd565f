# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m harness.golden [check | regenerate] [--root golden]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.golden import vllm_peer
from harness.golden.check import GoldenError, check_case, check_set, read_manifest
from harness.golden.regenerate import regenerate as rewrite

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

RootOption = Annotated[Path, typer.Option("--root", help="The folder with manifest.json.")]
_ROOT = Path("golden")


@app.command()
def check(root: RootOption = _ROOT) -> None:
    """Check every golden case; exit 1 and name the first difference of each that fails."""
    failures = 0
    try:
        entries = read_manifest(root)
        problems = check_set(root)
    except GoldenError as error:
        typer.echo(f"FAILED {error}", err=True)
        raise typer.Exit(1) from error
    for problem in problems:
        typer.echo(f"FAILED {problem}", err=True)
        failures += 1
    for entry in entries:
        try:
            typer.echo(f"ok {entry['name']}: {', '.join(check_case(entry, root))}")
        except GoldenError as error:
            typer.echo(f"FAILED {error}", err=True)
            failures += 1
    if not vllm_peer.is_installed():
        typer.echo("vLLM is not installed here: nothing was compared with its own functions")
    typer.echo(f"{len(entries)} golden cases, {failures} failures")
    if failures or not entries:
        raise typer.Exit(1)


@app.command()
def regenerate(root: RootOption = _ROOT) -> None:
    """Rewrite the golden data from the cases and print what changed."""
    try:
        changes = rewrite(root)
    except GoldenError as error:
        typer.echo(f"nothing written: {error}", err=True)
        raise typer.Exit(1) from error
    for change in changes:
        typer.echo(change)
    typer.echo(f"{len(changes)} files changed" if changes else "nothing changed")


app()
