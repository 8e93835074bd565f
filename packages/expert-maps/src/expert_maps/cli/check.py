# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps check`: is this map a valid placement, and the one that was meant?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from expert_maps.cli.common import (
    CHECK_FAILED,
    AllowDuplicatesOption,
    AllowUnevenOption,
    FileArgument,
    JsonOption,
    bad_input,
    print_json,
    read_map,
)
from expert_maps.cli.model import MODEL_HELP, read_model
from expert_maps.errors import PlacementError
from expert_maps.formats import read_placement
from expert_maps.validation import as_count

if TYPE_CHECKING:
    from expert_maps.placement import Placement


def check(
    file: FileArgument,
    experts: Annotated[int | None, typer.Option("--experts", help="Expect this many experts.")] = None,
    layers: Annotated[int | None, typer.Option("--layers", help="Expect this many MoE layers.")] = None,
    ep_size: Annotated[int | None, typer.Option("--ep-size", help="Expect this many ranks.")] = None,
    redundant: Annotated[
        int | None, typer.Option("--redundant", help="Expect this many redundant experts a layer.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help=f"{MODEL_HELP}: expect its layers and experts.",
        ),
    ] = None,
    golden: Annotated[
        Path | None, typer.Option("--golden", help="Expect exactly this map: an expert map or a golden map.")
    ] = None,
    allow_uneven: AllowUnevenOption = False,
    allow_duplicates: AllowDuplicatesOption = False,
    json: JsonOption = False,
) -> None:
    """Check a map; exit 1 and list every violation by layer, rank and slot if it is not valid.

    Exit 2 where the file cannot be read as a placement at all: no JSON, keys missing, ranks with
    unequally many slots, ids that can be no expert.
    """
    with bad_input():
        expected = _expected_counts(experts, layers, ep_size, redundant, model)
        reference = None if golden is None else read_map(golden, allow_uneven=True, allow_duplicates=True)
        placement, failures = _read(file, allow_uneven=allow_uneven, allow_duplicates=allow_duplicates)
        if placement is not None:
            failures += [
                f"{name} is {getattr(placement, name)}; expected {count}"
                for name, count in expected.items()
                if getattr(placement, name) != count
            ]
            if reference is not None:
                failures += _differences(placement, reference)
    _report(file, placement, failures, json=json)


def _expected_counts(
    experts: int | None, layers: int | None, ep_size: int | None, redundant: int | None, model: str | None
) -> dict[str, int]:
    expected: dict[str, int] = {}
    if model is not None:
        counts = read_model(model, layers)
        expected = {"num_logical_experts": counts.num_experts, "num_layers": counts.num_layers}
    for name, option, value, minimum in (
        ("num_logical_experts", "--experts", experts, 1),
        ("num_layers", "--layers", layers, 1),
        ("ep_size", "--ep-size", ep_size, 1),
        ("num_redundant_experts", "--redundant", redundant, 0),
    ):
        if value is not None:
            expected[name] = as_count(option, value, minimum)
    return expected


def _read(file: Path, *, allow_uneven: bool, allow_duplicates: bool) -> tuple[Placement | None, list[str]]:
    """Return the placement, or the violations; what is no placement at all is raised as bad input."""
    try:
        return (
            read_placement(file, allow_uneven=allow_uneven, allow_duplicates=allow_duplicates),
            [],
        )
    except PlacementError as error:
        if any(violation.kind in {"uneven", "out_of_range"} for violation in error.violations):
            read_map(file, allow_uneven=allow_uneven, allow_duplicates=allow_duplicates)
        return None, [violation.message for violation in error.violations]


def _differences(placement: Placement, golden: Placement) -> list[str]:
    """Name the first slot that differs from the golden map, and how many do."""
    for name in ("num_layers", "num_logical_experts", "ep_size", "num_physical_experts"):
        if getattr(placement, name) != getattr(golden, name):
            return [f"{name} is {getattr(placement, name)}; expected {getattr(golden, name)} (golden)"]
    if not np.array_equal(placement.slots_per_rank, golden.slots_per_rank):
        return ["slots_per_rank differs from the golden map's"]
    different = np.argwhere(placement.physical_to_logical != golden.physical_to_logical)
    if not different.size:
        return []
    layer, physical = (int(index) for index in different[0])
    return [
        (
            f"layer {layer}, rank {placement.slot_rank[physical]}, slot {placement.slot_index[physical]}: "
            f"expert {placement.physical_to_logical[layer, physical]}; expected "
            f"{golden.physical_to_logical[layer, physical]} (golden; {len(different)} slots differ)"
        )
    ]


def _report(file: Path, placement: Placement | None, failures: list[str], *, json: bool) -> None:
    if json:
        summary: dict[str, object] = {"file": str(file), "ok": not failures, "failures": failures}
        if placement is not None:
            summary |= {
                "num_layers": placement.num_layers,
                "num_logical_experts": placement.num_logical_experts,
                "num_redundant_experts": placement.num_redundant_experts,
                "ep_size": placement.ep_size,
                "digest": placement.digest,
            }
        print_json(summary)
    elif failures:
        typer.echo(f"{file}: {len(failures)} violation{'s' * (len(failures) > 1)}", err=True)
        for failure in failures:
            typer.echo(f"  {failure}", err=True)
    elif placement is not None:
        typer.echo(
            f"{file}: ok, {placement.num_layers} layers, {placement.num_logical_experts} experts, "
            f"{placement.num_redundant_experts} redundant, {placement.ep_size} ranks, "
            f"digest {placement.digest[:12]}"
        )
    if failures:
        raise typer.Exit(CHECK_FAILED)
