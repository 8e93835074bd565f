# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The main job on real input, by the commands that a user types: load → plan → map → check."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expert_maps import ExpertMapsError, LoadError, read_load
from expert_maps.formats.loads import load_keys
from expert_maps.policies import DEFAULT_POLICY

if TYPE_CHECKING:
    from collections.abc import Sequence

EMBEDDED_LOAD = Path("accuracy/loads/tiny_moe.npz")
_LARGEST_EP = 16


def choose_counts(num_experts: int) -> tuple[int, int]:
    """Choose a believable cluster for a model: ranks of at least four experts, one redundant slot each.

    Returns:
        (ep_size, num_physical_experts).
    """
    ep_size = max(size for size in (1, 2, 4, 8, _LARGEST_EP) if size == 1 or size * 4 <= num_experts)
    if ep_size == 1:
        ep_size = min(2, num_experts)
        return ep_size, num_experts + -num_experts % ep_size
    slots = -(-num_experts // ep_size) + 1
    return ep_size, slots * ep_size


def main(
    load: Annotated[Path, typer.Option("--load", help="A load file of your own.")] = EMBEDDED_LOAD,
    key: Annotated[str | None, typer.Option("--key", help="The array in it, where it holds several.")] = None,
    physical: Annotated[
        int | None, typer.Option("--physical", help="Slots of a layer, over all ranks.")
    ] = None,
    ep_size: Annotated[int | None, typer.Option("--ep-size", help="Expert-parallel ranks.")] = None,
    groups: Annotated[int, typer.Option("--groups", help="The router's expert groups.")] = 1,
    nodes: Annotated[int, typer.Option("--nodes", help="Servers.")] = 1,
    policy: Annotated[str, typer.Option("--policy", help="A policy of `expert-maps plan`.")] = DEFAULT_POLICY,
    output: Annotated[Path, typer.Option("--output", help="The map to write.")] = Path("expert_map.json"),
) -> None:
    """Plan a load, write the map, check it and show a rank of it."""
    try:
        key = key or _first_key(load)
        trace = read_load(load, key)
    except ExpertMapsError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    chosen_ep, chosen_physical = choose_counts(trace.num_experts)
    if ep_size is not None and physical is None:
        physical = (-(-trace.num_experts // max(ep_size, 1)) + (ep_size > 1)) * ep_size
    ep_size, physical = ep_size or chosen_ep, physical or chosen_physical
    counts = ["--ep-size", str(ep_size)]
    plan = ["plan", str(load), "--physical", str(physical), *counts, "--policy", policy]
    if groups != 1 or nodes != 1:
        plan += ["--groups", str(groups), "--nodes", str(nodes)]
    _run([*plan, *(["--key", key] if key else []), "--output", str(output)])
    sizes = ["--experts", str(trace.num_experts), "--layers", str(trace.num_layers), *counts]
    _run(["check", str(output), *sizes, "--redundant", str(physical - trace.num_experts)])
    _run(["show", str(output), "--layer", "0", "--rank", str(ep_size - 1), "--compact"])


def _first_key(load: Path) -> str | None:
    """Name the array to take where a file holds loads of several models; None where they go together."""
    try:
        read_load(load)
    except LoadError:
        keys = load_keys(load) if load.suffix == ".npz" else {}
        if len({shape[-2:] for shape in keys.values()}) <= 1:
            raise
        first = next(iter(keys))
        typer.echo(
            f"{load} holds {len(keys)} loads of different shapes; taking {first!r} (--key takes another)"
        )
        return first
    return None


def _run(arguments: Sequence[str]) -> None:
    typer.echo(f"\n$ expert-maps {shlex.join(arguments)}")
    sys.stdout.flush()
    finished = subprocess.run([sys.executable, "-m", "expert_maps", *arguments], check=False)  # noqa: S603 - no shell, this interpreter
    if finished.returncode:
        raise typer.Exit(finished.returncode)


if __name__ == "__main__":
    typer.run(main)
