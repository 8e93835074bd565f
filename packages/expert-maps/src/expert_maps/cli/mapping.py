# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What the subcommands that read a map share: the options that say what a file does not, and the reading."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from expert_maps._layers import LayerNames, layers_text
from expert_maps.cli.model import MODEL_HELP, read_model
from expert_maps.cli.options import AllowDuplicatesOption, AllowUnevenOption, as_choice
from expert_maps.cli.output import warn
from expert_maps.cli.reading import as_input
from expert_maps.errors import ExpertMapsError, FormatError, PlacementError
from expert_maps.files import describe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expert_maps._layers import Layers
    from expert_maps.files import AnyPath
    from expert_maps.formats.mapfile import MapFile
    from expert_maps.models import ModelCounts
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
class FormOptions:
    """What the command line says of the form of a map file. The fields are the options' names."""

    source: FromOption = None
    key: MapKeyOption = None
    allow_uneven: AllowUnevenOption = False
    allow_duplicates: AllowDuplicatesOption = False


@dataclass(frozen=True)
class MapOptions(FormOptions):
    """What the command line says of a map file; None where it says nothing."""

    ep_size: RanksOption = None
    experts: ExpertsOption = None
    layers: LayersOption = None
    model: MapModelOption = None
    ignore_digest: IgnoreDigestOption = False


@dataclass(frozen=True)
class MapOfModel(MapOptions):
    """What is said of a map, with a model that has been read already.

    Attributes:
        counts: what `model` names; None where none was given.
    """

    counts: ModelCounts | None = None

    @classmethod
    def of(cls, said: MapOptions, counts: ModelCounts | None = None) -> MapOfModel:
        """Take over options, and read the model that they name, if it has not been read."""
        if isinstance(said, cls):
            return said
        if counts is None and said.model is not None:
            counts = read_model(
                said.model, if_untold=None if said.layers is None else _layers_of(said.layers)
            )
        return cls(**{name: getattr(said, name) for name in said.__dataclass_fields__}, counts=counts)


def names_of_both(
    first: tuple[int, ...] | None, what: str, second: tuple[int, ...] | None, other: str
) -> LayerNames:
    """Say how the layers of two are named that are taken together row by row; a warning where they differ.

    Args:
        first: the model's number of each row; None where unknown.
        what: whose they are.
        second: as first, of the other.
        other: whose those are.
    """
    if first is None or second is None:
        return LayerNames(second if first is None else first)
    if len(first) == len(second) and first != second:
        warn(
            f"{what} is of layers {layers_text(first)}, {other} of layers {layers_text(second)}: they are taken together "
            "row by row"
        )
    return LayerNames(first)


def read_slot_map(
    path: AnyPath, counts: ModelCounts | None = None, layers: Layers | None = None
) -> Placement:
    """Read the map whose slots were counted: on which rank a slot is does not matter, which of them it is does.

    Args:
        path: the map.
        counts: the model, whose MoE layers are taken of a map whose rows are all layers.
        layers: the rows of the load that are taken; without a model the same are taken of such a map.

    Raises:
        ExpertMapsError: as `read_any_map`, or its format does not keep the order of slots.
    """
    from expert_maps.formats.mapfile import RanksUnsaidError

    by_slot = MapOptions(allow_uneven=True, allow_duplicates=True)
    chosen: MapOptions | None = None
    if counts is not None and counts.moe_layers:
        chosen = MapOfModel.of(by_slot, counts)
    elif layers is not None:
        chosen = replace(by_slot, layers=layers_text(layers))
    source = as_input(path)
    try:
        found = read_any_map(source, by_slot, chosen)
    except RanksUnsaidError:
        on_one = None if chosen is None else replace(chosen, ep_size=1)
        found = read_any_map(source, replace(by_slot, ep_size=1), on_one)
    if found.form == "omni":
        msg = (
            f"--map {describe(source)}: an omni-infer pattern does not keep the "
            "order of slots, so that it cannot say whose a count is; expected the map in another format"
        )
        raise ExpertMapsError(msg)
    return alike(found, path)


def alike(found: MapFile, path: AnyPath) -> Placement:
    """Return the placement of a map whose ranks have the same slots in every layer.

    Raises:
        ExpertMapsError: they have other slots in some layers; the file is named.
    """
    from expert_maps.layered import refuse_layered

    try:
        return refuse_layered(found.placement)
    except PlacementError as error:
        msg = f"{describe(path)}: invalid placement: {error.summary}"
        raise ExpertMapsError(msg) from error


def read_any_map(
    path: AnyPath, options: MapOptions | None = None, if_dense: MapOptions | None = None
) -> MapFile:
    """Read a map of any format, also with other slots in some layers, and keep what the file says beside it.

    Its warnings go to standard error.

    Args:
        path: the map; ``-`` is standard input.
        options: what is said of it.
        if_dense: what is said of it instead where its rows are all layers, and nobody said which are MoE.

    Raises:
        ExpertMapsError: it cannot be read, or is no valid placement; the file is named.
    """
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
    if said.source is not None:
        as_choice("--from", said.source, FORMS)
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


def _layers_of(text: str) -> tuple[int, ...] | Literal["all"]:
    from expert_maps._layers import as_layers

    return as_layers(text)


def _of_model(said: MapOptions) -> tuple[int | None, Sequence[int] | str | None, int | None]:
    """Return the experts, MoE layers and all layers that the options say, by name or by numbers."""
    layers = None if said.layers is None else _layers_of(said.layers)
    counts = MapOfModel.of(said).counts
    if counts is None:
        return said.experts, layers, None
    if said.experts is not None and said.experts != counts.num_experts:
        msg = f"--experts is {said.experts}; expected {counts.num_experts}, as --model {counts.name} has"
        raise FormatError(msg)
    found = counts.moe_layers or None
    if found is None and layers is None:
        msg = f"--model {counts.name}: only the number of its MoE layers is known, {counts.num_layers}; give --layers too"
        raise FormatError(msg)
    if layers is not None and found is not None and layers != found:
        msg = f"--layers is {said.layers}; --model {counts.name} has other MoE layers: leave one of them out"
        raise FormatError(msg)
    return counts.num_experts, layers or found, counts.num_hidden_layers or None
