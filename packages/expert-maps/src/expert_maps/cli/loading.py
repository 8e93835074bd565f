# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How every command reads a load: its options, and what it says on standard error."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from expert_maps._layers import LayerNames
from expert_maps.cli.options import as_choice
from expert_maps.errors import LoadError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expert_maps.formats.loads import LoadFile
    from expert_maps.load import ExpertLoad
    from expert_maps.models import ModelCounts

# Kept here, so that help needs no reader; a test compares them.
FORMS = [
    "sglang",
    "vllm",
    "vllm-ascend",
    "routed-experts",
    "tensorrt-llm",
    "mindspeed",
    "esft",
    "mindie",
    "sglang-csv",
    "csv",
    "csv-rows",
    "array",
]

LoadsArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="LOAD",
        help="Tokens routed to each expert: a load file of any known form (also .gz), several of the same form, or - for "
        "standard input.",
    ),
]
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="FORM",
        help=f"The form of the files, where it is not recognised: {', '.join(FORMS)}.",
    ),
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="NAME",
        help="The array in a file of several, or the key in a JSON object.",
    ),
]
LayersOption = Annotated[
    str | None,
    typer.Option(
        "--layers",
        metavar="LIST",
        help="The layers to take, like 3-60, 3,5,7-9 or all, as the file numbers them, else by row from 0; rows of the result are counted from 0 again.",
    ),
]
SlotMapOption = Annotated[
    Path | None,
    typer.Option(
        "--map",
        metavar="MAP",
        help="The map in use when the load was recorded, for counts by physical slot.",
    ),
]
FilesOption = Annotated[
    str | None,
    typer.Option(
        "--files",
        metavar="ranks|steps",
        help="What several files are: counts of ranks, to be added, or of steps, one after another.",
    ),
]
StepsOption = Annotated[
    str | None,
    typer.Option(
        "--steps",
        metavar="RANGE",
        help="The steps to take, like 10-99, 10- or all; says that the first of three axes is steps.",
    ),
]
LoadModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="Take the MoE layers of this model and check the load: its config.json, or the name of a known one.",
    ),
]
LoadExpertsOption = Annotated[
    int | None,
    typer.Option(
        "--experts",
        min=1,
        help="Routed experts of a layer; the load is checked for them.",
    ),
]
MoeLayersOption = Annotated[
    int | None,
    typer.Option("--moe-layers", min=1, help="MoE layers; the load is checked for them."),
]
WindowOption = Annotated[
    int | None,
    typer.Option(
        "--window",
        min=1,
        help="Tokens counted together as one step, of a trace of routed experts; all if not given.",
    ),
]


@dataclass(frozen=True)
class LoadOptions:
    """What the command line says of load files; None where it says nothing. The fields are the options' names."""

    format: FormatOption = None
    key: KeyOption = None
    layers: LayersOption = None
    map: SlotMapOption = None
    files: FilesOption = None
    steps: StepsOption = None
    window: WindowOption = None
    model: LoadModelOption = None
    experts: LoadExpertsOption = None
    moe_layers: MoeLayersOption = None


@dataclass(frozen=True)
class Loaded:
    """A load as the command line said it, with the model that was said beside it.

    Attributes:
        file: what was read.
        model: what `--model` names, read once; None where it was not given.
    """

    file: LoadFile
    model: ModelCounts | None

    @property
    def load(self) -> ExpertLoad:
        """The counts."""
        return self.file.load

    @property
    def layers(self) -> LayerNames:
        """How its layers are named."""
        return LayerNames(self.file.layers)


def inspect_loads(paths: Sequence[Path], said: LoadOptions) -> Loaded:
    """Read load files as the options say; what they were recognised as, and warnings, go to standard error.

    Raises:
        ExpertMapsError: unreadable, ambiguous, or not as the options say.
    """
    from expert_maps._layers import as_layers
    from expert_maps.cli.mapping import read_slot_map
    from expert_maps.cli.model import read_model
    from expert_maps.cli.output import note, warn
    from expert_maps.cli.reading import as_input
    from expert_maps.formats.loads import inspect_load
    from expert_maps.formats.loads.options import layers_if_untold
    from expert_maps.formats.loads.values import shown

    if said.files is not None:
        as_choice("--files", said.files, ("ranks", "steps"))
    if said.format is not None:
        as_choice("--format", said.format, FORMS)
    taken = None if said.layers is None else as_layers(said.layers, LoadError)
    model = said.model
    counts = None if model is None else read_model(model, if_untold=layers_if_untold(taken, said.moe_layers))
    found = inspect_load(
        [as_input(path) for path in paths],
        said.key,
        format=said.format,
        layers=said.layers,
        placement=None if said.map is None else read_slot_map(said.map, counts, taken),
        files=cast('Literal["ranks", "steps"] | None', said.files),
        steps=said.steps,
        model=counts,
        num_experts=said.experts,
        num_layers=said.moe_layers,
        window=said.window,
    )
    name = shown("standard input" if os.fspath(paths[0]) == "-" else paths[0])
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    note(f"{name}{more}: {found.description}")
    for warning in found.warnings:
        warn(f"{name}: {warning}")
    return Loaded(found, counts)
