# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps load`: what a load file holds; choose from it, convert it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expert_maps.cli.loading import LoadOptions, LoadsArgument
from expert_maps.cli.options import Inputs, JsonOption, refuse_two_stdins

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expert_maps.cli.writing import Output
    from expert_maps.formats.loads import LoadFile


def load(
    loads: LoadsArgument,
    said: LoadOptions,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Where to write the load; the name ends in .npz, .npy, .json or .csv. - for standard output, as .npz.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Say what a load file holds, choose from it, and convert it.

    What the file was recognised as, and what looks wrong, is said on standard error; what cannot be told is refused with
    the option that says it.
    """
    from expert_maps.cli.loading import inspect_loads
    from expert_maps.cli.output import print_json, say
    from expert_maps.cli.writing import check_output
    from expert_maps.formats.loads.writing import EXPORT_SUFFIXES, content_of

    inputs: Inputs = {"LOAD": loads, "--map": said.map, "--model": said.model}
    refuse_two_stdins(inputs)
    target = check_output(output, inputs, endings=EXPORT_SUFFIXES, json=json)
    found = inspect_loads(loads, said).file
    if target.path is not None:
        suffix = ".npz" if target.is_stdout else target.path.suffix
        target.write(content_of(found.load, suffix, found.layers))
    if json:
        print_json(_document(found, loads, target))
        return
    say(
        [*_lines(found), *([target.line] if target.path is not None else [])], err=target.is_stdout, wrap=True
    )


def _document(found: LoadFile, loads: Sequence[Path], output: Output) -> dict[str, object]:
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
        "output": output.name,
        "replaced": output.replaces,
    }


def _lines(found: LoadFile) -> list[str]:
    import numpy as np

    from expert_maps._layers import LayerNames
    from expert_maps._words import counted

    trace = found.load
    totals = trace.total.sum(axis=1)
    ratios = trace.peak_to_mean()
    worst = int(np.argmax(ratios))
    expert = int(trace.total[worst].argmax())
    idle = int((trace.total == 0).sum())
    axes = ((trace.num_steps, "step"), (trace.num_layers, "layer"), (trace.num_experts, "expert"))
    shape = "shape: " + " × ".join(counted(count, what) for count, what in axes)
    return [
        shape,
        f"tokens of a layer: {_number(totals.min())} to {_number(totals.max())}, {_number(totals.sum())} in all",
        f"hottest expert over mean: {ratios.min():.3f} to {ratios.max():.3f}, mean {ratios.mean():.3f}",
        f"hottest of all: {LayerNames(found.layers).one(worst)}, expert {expert}, {counted(_number(trace.total[worst, expert]), 'token')}",
        f"experts without a token: {idle} of {trace.total.size}",
    ]


def _number(value: float) -> str:
    return f"{value:.15g}"
