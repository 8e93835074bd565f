# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A loader that fills slots in vLLM's own order is given the map: each weight goes to the slots of its expert.

From 0.24 on vllm-ascend leaves loading to vLLM, which hands an expert's weight to the layer with the number of a physical
expert in vLLM's order, whatever map the layer was made with. Every weight of an expert comes that way, scales among
them, so here the number is read as the expert's and replaced by those of the slots that the layer's map gives it. No
weight is moved or held twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_ascend_moe.backends.ascend.loading import ARGUMENTS, instead_of
from vllm_ascend_moe.eplb import EplbConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_ascend_moe.backends.ascend.layers import MoELayer

# Of vLLM's weight_loader, after those that name the weight.
_RETURNS = "return_success"
# An expert's weight; one axis more are all experts.
_MATRIX = 2


class Filling:
    """One layer being loaded by its map."""

    def __init__(self, layer: MoELayer) -> None:
        """Put itself between the loader and the layer, on this object alone."""
        self._layer = layer
        # Read when the first weight comes: a later pipeline stage gets its rows after it was made.
        self._numbers: dict[int, list[int]] | None = None
        for holder in (*layer.weights.parameters(), layer.weights):
            loader = getattr(holder, "weight_loader", None)
            if loader is not None:
                holder.weight_loader = instead_of(loader, self._write)

    def _write(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = dict(zip((*ARGUMENTS, _RETURNS), args, strict=False)) | kwargs
        number = given.get("expert_id")
        if number is None:
            return original(*args, **kwargs)
        if given["loaded_weight"].dim() > _MATRIX:
            msg = (
                f"{given.get('weight_name')} of the checkpoint has shape {list(given['loaded_weight'].shape)}, all experts "
                "in one; expected a tensor for each expert, as a map needs with this vllm-ascend, whose loader fills "
                "slots in vLLM's order"
            )
            raise EplbConfigError(msg)
        numbers = self._numbers = self._numbers or self._of_slots()
        # The numbers past the experts' are vLLM's copies; the map's were written with the expert itself.
        written = [bool(original(**{**given, "expert_id": own})) for own in numbers.get(number, ())]
        return any(written) if given.get(_RETURNS) else None

    def _of_slots(self) -> dict[int, list[int]]:
        """Return for each expert the loader's numbers of its slots on this rank."""
        layer = self._layer
        assert layer.global_expert_map is not None
        row = layer.row()
        places = (
            (number, int(layer.weights._map_global_expert_id_to_local_expert_id(number)))  # noqa: SLF001 - vLLM's loader asks it
            for number in range(len(row) * len(layer.global_expert_map))
        )
        found: dict[int, list[int]] = {}
        for number, slot in places:
            if slot >= 0:
                found.setdefault(row[slot], []).append(number)
        return found


def fill_by_map(layers: list[MoELayer]) -> None:
    """Let the layers that have a map be filled by it, whatever order the loader goes by."""
    for layer in layers:
        if layer.global_expert_map is not None:
            Filling(layer)


__all__ = ["Filling", "fill_by_map"]
