# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A model on one rank: its layers, the maps that they asked for, and the watch over their loading."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from vllm_ascend_moe.backends.ascend.filling import fill_by_map
from vllm_ascend_moe.backends.ascend.layers import find_layers, placed
from vllm_ascend_moe.backends.ascend.loading import LoadWatch
from vllm_ascend_moe.eplb import EplbConfigError
from vllm_ascend_moe.hooks import table, wrapping

if TYPE_CHECKING:
    from vllm_ascend_moe.backends.ascend.answers import Question
    from vllm_ascend_moe.eplb import EplbMaps

# The expert in each slot of each rank, of one layer.
Rows = list[list[int]]


class AskedModel:
    """One model on this rank.

    Attributes:
        layers: its MoE layers.
        first: index of the first among those of all pipeline stages.
        watch: over their loading.
    """

    def __init__(
        self, model: Any, asked: list[tuple[Question, Rows | None]], *, fills_by_map: bool = True
    ) -> None:
        """Find its layers.

        Args:
            model: as it was made.
            asked: what each of its layers asked, in order, and the rows that it was answered by.
            fills_by_map: whether the release's loader goes by the layer's map itself.

        Raises:
            EplbConfigError: as many layers as asked were not found.
        """
        self.layers = find_layers(model)
        if len(self.layers) != len(asked):
            msg = (
                f"{type(model).__name__} has {len(self.layers)} MoE layers, and {len(asked)} asked for their maps; "
                "expected as many"
            )
            raise EplbConfigError(msg)
        self._asked = asked
        self.first = 0
        self.watch = LoadWatch(model, self.layers)
        if not fills_by_map:
            # Outside of the watch, which sees what is really written.
            fill_by_map(self.layers)

    def take_rows(self, first: int) -> None:
        """Write the maps of a later pipeline stage over those of the first; shapes are the same in all rows."""
        self.first = first
        for index, (layer, (question, _)) in enumerate(zip(self.layers, list(self._asked), strict=True)):
            maps = question.maps(first + index)
            layer.write(maps)
            self._asked[index] = (question, rows_of(maps))

    def tp_sizes(self) -> list[int]:
        """Return by which tensor-parallel size each layer chooses among copies."""
        return [question.sizes.tp_size for question, _ in self._asked]

    @property
    def num_experts(self) -> int:
        """E, logical; 0 without MoE layers."""
        return int(self._asked[0][0].sizes.num_experts) if self._asked else 0

    def wanted(self, index: int) -> Rows | None:
        """Return the expert in each slot of each rank, as the placement has it; None without expert parallelism."""
        return self._asked[index][1]


def rows_of(maps: EplbMaps) -> Rows | None:
    """Read the maps at once: the layer may get these very tensors, and change them."""
    everywhere = maps.global_expert_map
    return None if everywhere is None else [placed(row) for row in everywhere]


def initialize_hooks() -> list[table.Hook]:
    """Return every place where a loader may find vLLM's initialize_model: some import it by its name."""
    name, parameters = table.INITIALIZE_MODEL.name, table.INITIALIZE_MODEL.parameters
    found = {table.INITIALIZE_MODEL, table.INITIALIZE_MODEL_UTIL}
    made = {wrapping.original(hook) for hook in found}
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith(("vllm.", "vllm_ascend.")) and name in getattr(module, "__dict__", {}):
            hook = table.Hook(module_name, name, parameters)
            if wrapping.original(hook) in made:
                found.add(hook)
    return sorted(found, key=str)


__all__ = ["AskedModel", "Rows", "initialize_hooks", "rows_of"]
