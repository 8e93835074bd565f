# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Find a model: its configuration in a file, or a known one by its name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from expert_maps.errors import FormatError
from expert_maps.files import Source, describe, read_json
from expert_maps.models import sizes
from expert_maps.models.known import find_known
from expert_maps.models.reading import counts_from_config, with_layers

if TYPE_CHECKING:
    from typing import Literal

    from expert_maps.files import AnyPath
    from expert_maps.models.counts import ModelCounts
    from expert_maps.models.reading import LayersSaid


def model_counts(
    model: AnyPath, *, layers: LayersSaid | None = None, if_untold: LayersSaid | Literal["all"] | None = None
) -> ModelCounts:
    """Read a model's ``config.json`` (or the folder that holds it), or look a model up by name.

    A file or folder of that name comes first. Names are found whatever their case, organisation and training
    (``deepseek-ai/DeepSeek-R1-0528``).

    Args:
        model: a path, a source that has been read already, or a name.
        layers: the MoE layers, as the caller knows them: their indices, or only how many; None takes the model's.
        if_untold: the same, or all, where nothing known here tells the model's, and they would be refused or assumed.

    Raises:
        FormatError: neither a known name nor a readable configuration of an MoE model.
    """
    if not isinstance(model, Source):
        text = os.fspath(model)
        path = Path(text)
        try:
            path = path / "config.json" if path.is_dir() else path
            exists = bool(text) and path.exists()
        except (OSError, ValueError):  # a name that no file can have
            exists = False
        if not exists:
            known = find_known(text)
            return known if layers is None else with_layers(known, layers)
        model = path
    config = read_json(model)
    if not isinstance(config, dict):
        msg = f"{describe(model)}: expected a JSON object with the model's configuration"
        raise FormatError(msg)
    counts = counts_from_config(
        str(model) if not isinstance(model, Source) else model.name,
        config,
        layers=layers,
        if_untold=if_untold,
    )
    return counts if isinstance(model, Source) else sizes.with_other_files(counts, config, Path(model).parent)
