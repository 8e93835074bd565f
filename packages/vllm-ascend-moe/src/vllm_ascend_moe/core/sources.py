# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Where a served placement comes from: a map file, or a layout by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from expert_maps import FormatError, Placement, PlacementError, generate_placement, read_placement
from expert_maps.models import counts_from_config
from vllm_ascend_moe.eplb import EplbConfigError, read_expert_map

if TYPE_CHECKING:
    from vllm_ascend_moe.core.settings import Settings


@dataclass(frozen=True)
class PlacementSource:
    """The placement that the settings ask for, on a model and a number of ranks.

    Attributes:
        name: the file, or the layout.
        placement: a row for each MoE layer where it is a file's; a layout has one row, which holds for all.
        is_file: whether the rows are a file's.
        num_layers: MoE layers of the model, as its configuration counts them; None for not known.
    """

    name: str
    placement: Placement
    is_file: bool
    num_layers: int | None = None

    @property
    def digest(self) -> str:
        """The digest of all layers, equal exactly where placements are; of one where their number is not known."""
        if self.is_file or self.num_layers is None:
            return self.placement.digest
        return self.layers(0, self.num_layers, self.num_layers).digest

    @property
    def is_linear(self) -> bool:
        """Whether this is what vLLM does by itself: consecutive experts, none twice."""
        rows = self.placement.physical_to_logical
        return rows.shape[1] == self.placement.num_logical_experts and bool(
            (rows == np.arange(rows.shape[1])).all()
        )

    def require_even(self, wanted: str) -> None:
        """Refuse ranks of unequal numbers of slots.

        Args:
            wanted: what for, or by whom and why.

        Raises:
            EplbConfigError: see above.
        """
        placement = self.placement
        if placement.is_even:
            return
        lacking = -placement.num_logical_experts % placement.ep_size
        way = "take a number of ranks that divides the experts"
        way += f", or num_redundant_experts {lacking}" if lacking else ""
        msg = (
            f"{self.name} gives {placement.ep_size} ranks {sorted(set(placement.slots_per_rank.tolist()))} slots; "
            f"expected equally many {wanted}: {'plan the map so' if self.is_file else way}"
        )
        raise EplbConfigError(msg)

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
            allow_duplicates=True,  # whether it may was decided where it was read
        )


def count_layers(model_config: Any) -> int | None:
    """Return how many MoE layers a model has, before it is loaded; None where its configuration does not say.

    Args:
        model_config: vLLM's.
    """
    text = getattr(model_config, "hf_text_config", None)
    if text is None:
        return None
    try:
        counts = counts_from_config("the model", text.to_dict())
    except FormatError:
        return None
    # Counted by a key that is not the one vLLM goes by: the layers may be, too.
    return counts.num_layers if counts.num_experts == model_config.get_num_experts() else None


def find_source(
    settings: Settings,
    num_experts: int,
    ep_size: int,
    num_layers: int | None = None,
    *,
    allow_duplicates: bool = False,
) -> PlacementSource:
    """Read or generate the placement.

    Args:
        settings: the plugin's.
        num_experts: E, logical.
        ep_size: R.
        num_layers: MoE layers of the model; None for not known.
        allow_duplicates: take an expert twice on a rank.

    Raises:
        ExpertMapsError: see `read_expert_map` and `expert_maps.generate_placement`.
    """
    redundant = settings.num_redundant_experts or 0
    if settings.expert_map_path is not None:
        path = settings.expert_map_path
        try:
            placement = read_expert_map(
                path, num_experts, ep_size, redundant, allow_duplicates=allow_duplicates
            )
        except PlacementError as error:
            raise EplbConfigError(_explain(path, num_experts, error)) from error
        return PlacementSource(path, placement, is_file=True, num_layers=len(placement.physical_to_logical))
    layout = settings.layout or ("ring" if redundant else "linear")
    name = f"layout {layout}" + (f" with {redundant} redundant experts" if redundant else "")
    try:
        placement = generate_placement(
            layout,
            num_experts=num_experts,
            ep_size=ep_size,
            num_redundant_experts=redundant,
            allow_duplicates=allow_duplicates,
        )
    except PlacementError as error:
        way = f"take {num_experts * (ep_size - 1)} at most, by which every rank has every expert"
        msg = f"{name} is no placement: {_twice(error)}; {way}"
        raise EplbConfigError(msg) from error
    return PlacementSource(name, placement, is_file=False, num_layers=num_layers)


def _twice(error: PlacementError) -> str:
    """Say what is wrong with a placement; of an expert twice on a rank, who takes that."""
    if {error.violations[end].kind for end in (0, -1)} != {"duplicate"}:  # they are ordered by kind
        return error.summary
    return f"{error.summary}; expected each expert once on a rank: only vllm-ascend's runner V2 serves both"


def _explain(path: str, num_experts: int, error: PlacementError) -> str:
    """Say what is wrong with a map in one line: it may just be another model's."""
    try:
        found = read_placement(path).num_logical_experts
    except PlacementError:
        return f"{path} is no placement of the model's {num_experts} experts: {_twice(error)}; plan it anew"
    return f"{path} is a map for {found} experts; expected {num_experts}, as the model has: plan it for this model"
