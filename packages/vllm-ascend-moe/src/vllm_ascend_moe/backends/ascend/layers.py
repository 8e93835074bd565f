# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The MoE layers of vllm-ascend as they are: their maps and what they hold for each slot, read live.

Which object of a model carries the maps differs from release to release; what they are called hardly does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm_ascend_moe.core.checksums import named_slot_tensors
from vllm_ascend_moe.eplb import EplbConfigError

if TYPE_CHECKING:
    import torch

    from vllm_ascend_moe.eplb import EplbMaps

# vllm-ascend numbers its layers by this attribute, on the object that carries the maps.
_MARK = "moe_instance_id"
# What the map of experts to this rank's slots is called, the newest release first.
_EXPERT_MAP = ("ascend_expert_map", "_expert_map")


@dataclass(frozen=True, eq=False)
class MoELayer:
    """One MoE layer on this rank.

    Attributes:
        owner: what carries the maps.
        weights: what carries the experts' parameters; in some releases the same object.
    """

    owner: Any
    weights: Any

    @property
    def expert_map(self) -> torch.Tensor | None:
        """[E], logical expert → local slot, −1 where absent; None without expert parallelism."""
        for name in _EXPERT_MAP:
            if hasattr(self.owner, name):
                found: torch.Tensor | None = getattr(self.owner, name)
                return found
        return None

    @property
    def log2phy(self) -> torch.Tensor | None:
        """[E], logical expert → the physical one that this rank sends to; None without EPLB."""
        found: torch.Tensor | None = getattr(self.owner, "log2phy", None)
        return found

    @property
    def global_expert_map(self) -> torch.Tensor | None:
        """[R, E], `expert_map` of every rank; None without EPLB."""
        found: torch.Tensor | None = getattr(self.owner, "global_expert_map", None)
        return found

    @property
    def is_linear(self) -> bool:
        """Whether consecutive experts are on consecutive ranks, as where nothing is mapped."""
        everywhere = self.global_expert_map
        if everywhere is None:
            return True
        rows = [placed(row) for row in everywhere]
        return [expert for row in rows for expert in row] == list(range(len(everywhere[0])))

    def row(self) -> list[int]:
        """Return the expert in each of this rank's slots, as the layer's map names them; empty without a map."""
        return [] if self.expert_map is None else placed(self.expert_map)

    def slots(self) -> dict[str, list[torch.Tensor]]:
        """Return what the layer holds for each slot, by name: parameters, and lists of tensors."""
        return named_slot_tensors(self.weights, len(self.row()))

    def write(self, maps: EplbMaps) -> None:
        """Write other maps into the tensors that the layer holds, wherever else they are held.

        Raises:
            EplbConfigError: they have other shapes: the layer has been built for another number of slots.
        """
        for name, held, wanted in (
            ("expert_map", self.expert_map, maps.expert_map),
            ("log2phy", self.log2phy, maps.log2phy),
            ("global_expert_map", self.global_expert_map, maps.global_expert_map),
        ):
            if held is None or wanted is None:
                continue
            if held.shape != wanted.shape or (name == "expert_map" and _held(held) != _held(wanted)):
                msg = (
                    f"{name} of a layer has shape {list(held.shape)} with {_held(held)} slots here; expected "
                    f"{list(wanted.shape)} with {_held(wanted)}, as its row of the map has"
                )
                raise EplbConfigError(msg)
            held.copy_(wanted)


def find_layers(model: Any) -> list[MoELayer]:
    """Return a model's MoE layers, in their order; those of other pipeline stages are not among them."""
    owners = [module for module in model.modules() if _MARK in vars(module)]
    owners.sort(key=lambda owner: int(getattr(owner, _MARK)))
    return [MoELayer(owner, getattr(owner, "routed_experts", owner)) for owner in owners]


def placed(expert_map: torch.Tensor) -> list[int]:
    """Return the expert in each local slot.

    Args:
        expert_map: [E], logical expert → local slot, −1 where absent.

    Raises:
        EplbConfigError: slots are named twice or left out.
    """
    by_slot = sorted((slot, expert) for expert, slot in enumerate(expert_map.tolist()) if slot >= 0)
    if [slot for slot, _ in by_slot] != list(range(len(by_slot))):
        msg = f"expert_map names the slots {[slot for slot, _ in by_slot]}; expected each of 0 … {len(by_slot) - 1} once"
        raise EplbConfigError(msg)
    return [expert for _, expert in by_slot]


def _held(expert_map: torch.Tensor) -> int:
    return int((expert_map >= 0).sum())


__all__ = ["MoELayer", "find_layers", "placed"]
