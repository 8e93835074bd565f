# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps load`: what a load file holds; choose from it, convert it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from expert_maps.cli.common import JsonOption, bad_input, print_json
from expert_maps.cli.loading import (
    FilesOption,
    FormatOption,
    KeyOption,
    LayersOption,
    LoadExpertsOption,
    LoadModelOption,
    LoadsArgument,
    MoeLayersOption,
    SlotMapOption,
    StepsOption,
    WindowOption,
    inspect_loads,
)
from expert_maps.errors import ExpertMapsError
from expert_maps.formats.loads.values import counted
from expert_maps.formats.loads.writing import EXPORT_SUFFIXES, check_export_name, export_load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expert_maps.formats.loads import LoadFile


def load(
    loads: LoadsArgument,
    format: FormatOption = None,
    key: KeyOption = None,
    layers: LayersOption = None,
    map: SlotMapOption = None,
    files: FilesOption = None,
    steps: StepsOption = None,
    window: WindowOption = None,
    model: LoadModelOption = None,
    experts: LoadExpertsOption = None,
    moe_layers: MoeLayersOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help=f"Where to write the load; the name ends in {', '.join(EXPORT_SUFFIXES)}."
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Say what a load file holds, choose from it, and convert it.

    What the file was recognised as, and what looks wrong, is said on standard error; what cannot be told is refused with
    the option that says it.

    Examples: expert-maps load dump.json --model deepseek-r1 · expert-maps load rank*.safetensors -o load.npz · expert-maps
    load moe_load_600.npy --map map.json
    """
    with bad_input():
        if output is not None:
            check_export_name(output)
            _refuse_input(output, [*loads, *([map] if map else [])])
        found = inspect_loads(
            loads,
            key=key,
            format=format,
            layers=layers,
            map=map,
            files=files,
            steps=steps,
            model=model,
            experts=experts,
            moe_layers=moe_layers,
            window=window,
        )
        replaced = output is not None and output.exists()
        if output is not None:
            export_load(found.load, output, found.layers)
    if json:
        print_json(_document(found, loads, output))
        return
    for line in _lines(found):
        typer.echo(line)
    if output is not None:
        typer.echo(f"{'replaced' if replaced else 'written'}: {output}")


def _refuse_input(output: Path, inputs: Sequence[Path]) -> None:
    for path in inputs:
        is_same = output.exists() and path.exists() and os.path.samefile(output, path)  # noqa: PTH121 - both may be links
        if is_same or output.absolute() == path.absolute():
            msg = f"--output is {str(output)!r}, which is read; expected another name"
            raise ExpertMapsError(msg)


def _document(found: LoadFile, loads: Sequence[Path], output: Path | None) -> dict[str, object]:
    trace = found.load
    return {
        "files": [str(path) for path in loads],
        "form": found.form,
        "description": found.description,
        "num_steps": trace.num_steps,
        "num_layers": trace.num_layers,
        "num_experts": trace.num_experts,
        "layers": None if found.layers is None else list(found.layers),
        "layer_totals": trace.total.sum(axis=1).tolist(),
        "hottest_expert": trace.total.argmax(axis=1).tolist(),
        "peak_to_mean": trace.peak_to_mean().tolist(),
        "warnings": list(found.warnings),
        "output": None if output is None else str(output),
    }


def _lines(found: LoadFile) -> list[str]:
    trace = found.load
    totals = trace.total.sum(axis=1)
    ratios = trace.peak_to_mean()
    worst = int(np.argmax(ratios))
    name = worst if found.layers is None else found.layers[worst]
    expert = int(trace.total[worst].argmax())
    idle = int((trace.total == 0).sum())
    axes = ((trace.num_steps, "step"), (trace.num_layers, "layer"), (trace.num_experts, "expert"))
    shape = "shape: " + " × ".join(counted(count, what) for count, what in axes)
    return [
        shape,
        f"tokens of a layer: {_number(totals.min())} to {_number(totals.max())}, {_number(totals.sum())} in all",
        f"hottest expert over mean: {ratios.min():.3f} to {ratios.max():.3f}, mean {ratios.mean():.3f}",
        f"hottest of all: layer {name}, expert {expert}, {_number(trace.total[worst, expert])} tokens",
        f"experts without a token: {idle} of {trace.total.size}",
    ]


def _number(value: float) -> str:
    return f"{value:.15g}"
