# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How the commands read a map that is to carry a load."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from expert_maps._layers import layers_text
from expert_maps._words import counted
from expert_maps.cli.mapping import MapOfModel, names_of_both, read_any_map
from expert_maps.errors import ExpertMapsError
from expert_maps.files import describe

if TYPE_CHECKING:
    from expert_maps._layers import LayerNames
    from expert_maps.cli.loading import Loaded
    from expert_maps.cli.mapping import MapOptions
    from expert_maps.files import AnyPath
    from expert_maps.formats.mapfile import MapFile


def read_map_for(path: AnyPath, options: MapOptions, loaded: Loaded) -> tuple[MapFile, LayerNames]:
    """Read a map that carries a load, and say how the layers of both are named.

    A map whose rows are all layers of the model has the rows of the load taken: by the model, or as SGLang numbers the
    rows of its maps and of its loads alike.

    Raises:
        ExpertMapsError: as `read_any_map`.
    """
    found = read_any_map(path, options, _of_load(options, loaded))
    rows, layers = found.placement.num_layers, loaded.load.num_layers
    if found.has_dense_rows and rows != layers:
        msg = (
            f"{describe(path)}: the map has a row for each of the model's {counted(rows, 'layer')}, dense ones too, and "
            f"the load has {counted(layers, 'layer')}; give --model, which says which layers have experts"
        )
        raise ExpertMapsError(msg)
    return found, names_of_both(loaded.file.layers, "the load", found.layers, "the map")


def _of_load(options: MapOptions, loaded: Loaded) -> MapOptions | None:
    """Say which rows of a map are MoE layers, for where its rows are all layers of the model: those of the load."""
    load, counts = loaded.file, loaded.model
    if load.form in {"sglang", "sglang-csv"} and load.layers is not None:
        return replace(options, layers=layers_text(load.layers))
    if counts is None:
        return None
    return MapOfModel.of(options, counts)
