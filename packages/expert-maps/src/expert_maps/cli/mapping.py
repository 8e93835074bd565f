# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What the subcommands that read a map share: the options that say what a file does not, and the reading."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from expert_maps.cli.model import MODEL_HELP, read_model
from expert_maps.cli.options import AllowDuplicatesOption, AllowUnevenOption
from expert_maps.cli.output import warn
from expert_maps.cli.reading import as_input
from expert_maps.errors import ExpertMapsError, FormatError, PlacementError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expert_maps.files import AnyPath
    from expert_maps.formats.loads import LoadFile
    from expert_maps.formats.mapfile import MapFile
    from expert_maps.placement import Placement

# Kept here, so that help needs no reader; a test compares them.
FORMS = (
    "expert-maps",
    "vllm-ascend",
    "golden",
    "sglang",
    "tensorrt-llm",
    "vllm",
    "deepseek",
    "omni",
    "vllm-plugin-das",
)

FromOption = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="FORMAT",
        help=f"The map's format, if its content leaves it open: {', '.join(FORMS)}.",
    ),
]
CurrentFromOption = Annotated[
    str | None,
    typer.Option("--from", metavar="FORMAT", help="The format of --current, if its content leaves it open."),
]
RanksOption = Annotated[
    int | None,
    typer.Option(
        "--ep-size", help="Expert-parallel ranks, for a map that does not say them (SGLang, vLLM …)."
    ),
]
ExpertsOption = Annotated[
    int | None, typer.Option("--experts", help="Routed experts of a layer; by the map if not given.")
]
LayersOption = Annotated[
    str | None,
    typer.Option(
        "--layers",
        metavar="LAYERS",
        help="The model's MoE layers by absolute number, like 3-60 or 0,2,4, or all.",
    ),
]
MapModelOption = Annotated[
    str | None, typer.Option("--model", help=f"{MODEL_HELP}: take --experts and --layers from it.")
]
IgnoreDigestOption = Annotated[
    bool, typer.Option("--ignore-digest", help="Take an expert-maps file that was changed by hand.")
]
MapKeyOption = Annotated[
    str | None, typer.Option("--key", help="Which of several maps in a file of vllm-plugin-das.")
]


@dataclass(frozen=True)
class MapOptions:
    """What the command line says of a map file; None where it says nothing. The fields are the options' names."""

    source: FromOption = None
    ep_size: RanksOption = None
    experts: ExpertsOption = None
    layers: LayersOption = None
    model: MapModelOption = None
    key: MapKeyOption = None
    allow_uneven: AllowUnevenOption = False
    allow_duplicates: AllowDuplicatesOption = False
    ignore_digest: IgnoreDigestOption = False


def read_map(
    path: str | os.PathLike[str], options: MapOptions | None = None, if_dense: MapOptions | None = None
) -> Placement:
    """Read a map of any format, ``-`` for standard input; its warnings go to standard error.

    Args:
        path: the map.
        options: what is said of it.
        if_dense: what is said of it instead where its rows are all layers, and nobody said which are MoE.

    Raises:
        ExpertMapsError: it cannot be read, is no valid placement, or has other slots in some layers; the file is named.
    """
    return _alike(read_any_map(path, options, if_dense), path)


def of_load(options: MapOptions, load: LoadFile, model: str | os.PathLike[str] | None) -> MapOptions | None:
    """Say which rows of a map are MoE layers, for where its rows are all layers of the model: those of the load.

    SGLang numbers the rows of its maps and of its loads alike, by all layers of the model.

    Args:
        options: what is said of the map.
        load: the load that it is to carry, as it was read.
        model: the model that was said for the load; what standard input said is used up.
    """
    from expert_maps._layers import layers_text

    if load.form in {"sglang", "sglang-csv"} and load.layers is not None:
        return replace(options, layers=layers_text(load.layers))
    if model is None or os.fspath(model) == "-":
        return None
    return replace(options, model=os.fspath(model))


def read_slot_map(path: str | os.PathLike[str]) -> Placement:
    """Read the map whose slots were counted: on which rank a slot is does not matter, which of them it is does.

    Raises:
        ExpertMapsError: as `read_map`, or its format does not keep the order of slots.
    """
    from expert_maps.formats.mapfile import RanksUnsaidError

    by_slot = MapOptions(allow_uneven=True, allow_duplicates=True)
    source = as_input(path)
    try:
        found = read_any_map(source, by_slot)
    except RanksUnsaidError:
        found = read_any_map(source, replace(by_slot, ep_size=1))
    if found.form == "omni":
        msg = (
            f"--map {os.fspath(path)}: an omni-infer pattern does not keep the order of slots, so that it cannot say "
            "whose a count is; expected the map in another format"
        )
        raise ExpertMapsError(msg)
    return _alike(found, path)


def _alike(found: MapFile, path: str | os.PathLike[str]) -> Placement:
    from expert_maps.layered import refuse_layered

    try:
        return refuse_layered(found.placement)
    except PlacementError as error:
        msg = f"{os.fspath(path)}: invalid placement: {error.summary}"
        raise ExpertMapsError(msg) from error


def read_any_map(
    path: AnyPath, options: MapOptions | None = None, if_dense: MapOptions | None = None
) -> MapFile:
    """Read a map as `read_map`, also with other slots in some layers, and keep what the file says beside it.

    Raises:
        ExpertMapsError: it cannot be read, or is no valid placement; the file is named.
    """
    from expert_maps.files import describe

    source = as_input(path)
    try:
        found = find_map(source, options)
        if found.has_dense_rows and if_dense is not None:
            found = find_map(source, if_dense)
    except PlacementError as error:
        msg = f"{describe(source)}: invalid placement: {error.summary}"
        raise ExpertMapsError(msg) from error
    for warning in found.warnings:
        warn(f"{describe(source)}: {warning}")
    return found


def find_map(source: AnyPath, options: MapOptions | None = None) -> MapFile:
    """Read a map as the options say, and say nothing of it.

    Raises:
        FormatError: it cannot be read as a map.
        PlacementError: it is no valid placement; every violation is listed.
    """
    from expert_maps.formats.placements import inspect_map

    said = options or MapOptions()
    experts, layers, total = _of_model(said)
    return inspect_map(
        source,
        format=said.source,
        num_logical_experts=experts,
        ep_size=said.ep_size,
        layers=layers,
        num_hidden_layers=total,
        key=said.key,
        ignore_digest=said.ignore_digest,
        allow_uneven=said.allow_uneven,
        allow_duplicates=said.allow_duplicates,
    )


def _of_model(said: MapOptions) -> tuple[int | None, Sequence[int] | str | None, int | None]:
    """Return the experts, MoE layers and all layers that the options say, by name or by numbers."""
    from expert_maps._layers import as_layers

    layers = None if said.layers is None else as_layers(said.layers)
    if said.model is None:
        return said.experts, layers, None
    counts = read_model(said.model)
    if said.experts is not None and said.experts != counts.num_experts:
        msg = f"--experts is {said.experts}; expected {counts.num_experts}, as --model {said.model} has"
        raise FormatError(msg)
    found = counts.moe_layers or None
    if found is None and layers is None:
        msg = f"--model {said.model}: only the number of its MoE layers is known, {counts.num_layers}; give --layers too"
        raise FormatError(msg)
    if layers is not None and found is not None and layers != found:
        msg = f"--layers is {said.layers}; --model {said.model} has other MoE layers: leave one of them out"
        raise FormatError(msg)
    return counts.num_experts, layers or found, counts.num_hidden_layers or None
