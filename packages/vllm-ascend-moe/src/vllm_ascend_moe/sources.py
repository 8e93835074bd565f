# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Where a served placement comes from: a map file, or a layout by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from expert_maps import Placement, PlacementError, generate_placement, read_placement
from vllm_ascend_moe.eplb import EplbConfigError, read_expert_map

if TYPE_CHECKING:
    from vllm_ascend_moe.settings import Settings


@dataclass(frozen=True)
class PlacementSource:
    """The placement that the settings ask for, on a model and a number of ranks.

    Attributes:
        name: the file, or the layout.
        placement: a row for each MoE layer where it is a file's; a layout has one row, which holds for all.
        is_file: whether the rows are a file's.
    """

    name: str
    placement: Placement
    is_file: bool

    @property
    def digest(self) -> str:
        """The placement's digest: equal exactly where placements are."""
        return self.placement.digest

    @property
    def is_linear(self) -> bool:
        """Whether this is what vLLM does by itself: consecutive experts, none twice."""
        rows = self.placement.physical_to_logical
        return rows.shape[1] == self.placement.num_logical_experts and bool(
            (rows == np.arange(rows.shape[1])).all()
        )

    def layers(self, first: int, count: int, total: int) -> Placement:
        """Return the placement of some MoE layers: those of one pipeline stage.

        Args:
            first: index of the first, among the model's MoE layers.
            count: how many.
            total: how many the model has.

        Raises:
            EplbConfigError: the file has another number of layers than the model.
        """
        rows = self.placement.physical_to_logical
        if self.is_file and len(rows) != total:
            msg = f"{self.name} has {len(rows)} layers; expected {total}, as many as the model has MoE layers"
            raise EplbConfigError(msg)
        chosen = rows[first : first + count] if self.is_file else np.repeat(rows, count, axis=0)
        return Placement(
            chosen,
            self.placement.ep_size,
            num_logical_experts=self.placement.num_logical_experts,
            slots_per_rank=self.placement.slots_per_rank,
        )


def find_source(settings: Settings, num_experts: int, ep_size: int) -> PlacementSource:
    """Read or generate the placement.

    Args:
        settings: the plugin's.
        num_experts: E, logical.
        ep_size: R.

    Raises:
        ExpertMapsError: see `read_expert_map` and `expert_maps.generate_placement`.
    """
    redundant = settings.num_redundant_experts or 0
    if settings.expert_map_path is not None:
        path = settings.expert_map_path
        try:
            placement = read_expert_map(path, num_experts, ep_size, redundant)
        except PlacementError as error:
            raise EplbConfigError(_explain(path, num_experts, error)) from error
        return PlacementSource(path, placement, is_file=True)
    layout = settings.layout or ("ring" if redundant else "linear")
    placement = generate_placement(
        layout, num_experts=num_experts, ep_size=ep_size, num_redundant_experts=redundant
    )
    name = f"layout {layout}" + (f" with {redundant} redundant experts" if redundant else "")
    return PlacementSource(name, placement, is_file=False)


def _explain(path: str, num_experts: int, error: PlacementError) -> str:
    """Say what is wrong with a map in one line: it may just be another model's."""
    try:
        found = read_placement(path).num_logical_experts
    except PlacementError:
        return f"{path} is no placement of the model's {num_experts} experts: {error.summary}; plan it anew"
    return f"{path} is a map for {found} experts; expected {num_experts}, as the model has: plan it for this model"
