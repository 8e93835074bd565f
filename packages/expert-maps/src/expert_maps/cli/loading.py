# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How every command reads a load: its options, and what it says on standard error."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from expert_maps.cli.common import as_input, read_map
from expert_maps.cli.notes import note
from expert_maps.errors import ExpertMapsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expert_maps.files import AnyPath
    from expert_maps.formats.loads import LoadFile
    from expert_maps.load import ExpertLoad

_GROUP = "How the load is read"

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
        metavar="LOAD…",
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
        rich_help_panel=_GROUP,
    ),
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="NAME",
        help="The array in a file of several, or the key in a JSON object.",
        rich_help_panel=_GROUP,
    ),
]
LayersOption = Annotated[
    str | None,
    typer.Option(
        "--layers",
        metavar="LIST",
        help="The layers to take, like 3-60 or 3,5,7-9, as the file numbers them, else by row from 0.",
        rich_help_panel=_GROUP,
    ),
]
SlotMapOption = Annotated[
    Path | None,
    typer.Option(
        "--map",
        metavar="MAP",
        help="The map in use when the load was recorded, for counts by physical slot.",
        rich_help_panel=_GROUP,
    ),
]
FilesOption = Annotated[
    str | None,
    typer.Option(
        "--files",
        metavar="ranks|steps",
        help="What several files are: counts of ranks, to be added, or of steps, one after another.",
        rich_help_panel=_GROUP,
    ),
]
StepsOption = Annotated[
    str | None,
    typer.Option(
        "--steps",
        metavar="RANGE",
        help="The steps to take, like 10-99, 10- or all; says that the first of three axes is steps.",
        rich_help_panel=_GROUP,
    ),
]
LoadModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="Take the MoE layers of this model and check the load: its config.json, or the name of a known one.",
        rich_help_panel=_GROUP,
    ),
]
LoadExpertsOption = Annotated[
    int | None,
    typer.Option(
        "--experts",
        min=1,
        help="Routed experts of a layer; the load is checked for them.",
        rich_help_panel=_GROUP,
    ),
]
MoeLayersOption = Annotated[
    int | None,
    typer.Option(
        "--moe-layers", min=1, help="MoE layers; the load is checked for them.", rich_help_panel=_GROUP
    ),
]
WindowOption = Annotated[
    int | None,
    typer.Option(
        "--window",
        min=1,
        help="Tokens counted together as one step, of a trace of routed experts; all if not given.",
        rich_help_panel=_GROUP,
    ),
]


def inspect_loads(
    paths: Sequence[Path],
    *,
    key: str | None = None,
    format: str | None = None,
    layers: str | None = None,
    map: Path | None = None,
    files: str | None = None,
    steps: str | None = None,
    model: str | None = None,
    experts: int | None = None,
    moe_layers: int | None = None,
    window: int | None = None,
) -> LoadFile:
    """Read load files as the options say; print what they were recognised as, and warnings, on standard error.

    Raises:
        ExpertMapsError: unreadable, ambiguous, or not as the options say.
    """
    from expert_maps.formats.loads import inspect_load
    from expert_maps.formats.loads.values import shown

    if sum(os.fspath(path) == "-" for path in paths) + (map is not None and os.fspath(map) == "-") > 1:
        msg = "- stands twice; expected standard input to be read for one file"
        raise ExpertMapsError(msg)
    if files not in {None, "ranks", "steps"}:
        msg = f"--files is {files!r}; expected ranks or steps"
        raise ExpertMapsError(msg)
    sources: list[AnyPath] = [as_input(path) for path in paths]
    found = inspect_load(
        sources,
        key,
        format=format,
        layers=layers,
        placement=None if map is None else read_map(map, allow_uneven=True, allow_duplicates=True),
        files=cast('Literal["ranks", "steps"] | None', files),
        steps=steps,
        model=model,
        num_experts=experts,
        num_layers=moe_layers,
        window=window,
    )
    name = shown("standard input" if os.fspath(paths[0]) == "-" else paths[0])
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    note(f"{name}{more}: {found.description}")
    for warning in found.warnings:
        note(f"warning: {name}: {warning}")
    return found


def read_loads(
    paths: Sequence[Path],
    *,
    key: str | None = None,
    format: str | None = None,
    layers: str | None = None,
    map: Path | None = None,
    files: str | None = None,
    steps: str | None = None,
    model: str | None = None,
    experts: int | None = None,
    moe_layers: int | None = None,
    window: int | None = None,
) -> ExpertLoad:
    """Read load files as `inspect_loads` does, and return just the load.

    Raises:
        ExpertMapsError: as `inspect_loads`.
    """
    return inspect_loads(
        paths,
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
    ).load
