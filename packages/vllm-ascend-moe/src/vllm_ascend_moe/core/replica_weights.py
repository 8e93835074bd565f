# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Each copy's share of its expert's tokens, as a file says it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from expert_maps.formats.weights import read_stored

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vllm_ascend_moe.core.settings import Settings
    from vllm_ascend_moe.core.sources import PlacementSource


def fit_copies(weights: NDArray[np.float64], copies: NDArray[np.int32]) -> NDArray[np.float64]:
    """Cut or pad a layer's last axis: the most copies of a layer are fewer than those of all layers.

    Args:
        weights: [E, N].
        copies: [E, X], the layer's physical ids.

    Returns:
        float64 [E, X]; with weights beyond the copies [E, N], which the planner refuses.
    """
    width = copies.shape[1]
    if weights.shape[1] > width and not weights[:, width:].any():
        return weights[:, :width]
    missing = width - weights.shape[1]
    return np.pad(weights, ((0, 0), (0, missing))) if missing > 0 else weights


def settings_weights(settings: Settings, source: PlacementSource | None) -> NDArray[np.float64] | None:
    """Return the weights that the settings name, or None.

    Args:
        settings: the plugin's.
        source: the placement that is served; None only where the settings name no weights.

    Raises:
        ExpertMapsError: see `read_replica_weights`.
    """
    path = settings.replica_weights_path
    if path is None:
        return None
    assert source is not None
    return read_replica_weights(path, source)


def read_replica_weights(path: str, source: PlacementSource) -> NDArray[np.float64]:
    """Read each copy's share of its expert's tokens, float64 [L, E, X].

    Args:
        path: what ``expert-maps weights`` wrote.
        source: the placement that is served. A layout whose number of layers is not known is compared for as many as
            there are weights for.

    Raises:
        ExpertMapsError: the file is unreadable, of another form, or for another placement.
    """
    stored = read_stored(path)
    if source.is_file or source.num_layers is not None:
        total = source.num_layers or source.placement.num_layers
    else:
        total = len(stored.weights)
    return stored.require(source.layers(0, total, total))
