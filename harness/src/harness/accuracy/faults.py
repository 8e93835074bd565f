# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with a replica, done on purpose to one MoE layer of a running model, and undone again.

| fault | what is changed |
|---|---|
| neighbour | one replica holds the weights of the slot beside it, another expert's |
| zeroed | one replica holds zeros |
| noise | one replica's weights are off by 5 % of their standard deviation |
| stale scale | one replica's scales (int8 only) are those of the slot beside it |
| log2phy shifted by one | every token goes to the slot after the one that it should go to |
| physical-length map | logical ids are looked up as they are in the expert map, which is indexed by physical ids |
| physical-length map, past its end | ids of replicas are counted with a rank's slots too many: some do not exist |
| dropped slot | the routing still names a replica, whose rank no longer takes its tokens |

`ServedLayer` and `inject` are plain torch. `FaultyWorker` is the part that a worker of vLLM's runs.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from vllm_ascend_moe.core.checksums import slot_tensors
from vllm_ascend_moe.report import WorkerReport

if TYPE_CHECKING:
    from expert_maps import Placement

Kind = Literal[
    "neighbour",
    "zeroed",
    "noise",
    "stale scale",
    "log2phy shifted by one",
    "physical-length map",
    "physical-length map, past its end",
    "dropped slot",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
NOISE = 0.05
_TABLE_FAULTS = {"log2phy shifted by one", "physical-length map", "physical-length map, past its end"}


@dataclass(frozen=True)
class Fault:
    """A fault and its place.

    Attributes:
        kind: see the module.
        layer: index of the MoE layer.
        slot: physical id of the replica; of no meaning for a fault of the whole table.
        seed: of the noise.
    """

    kind: Kind
    layer: int
    slot: int
    seed: int


@dataclass(frozen=True)
class ServedLayer:
    """What a rank serves a layer from; all of it is changed in place.

    Attributes:
        tensors: weights and scales, [slots, …].
        slots: int64 [E, N], each expert's physical ids in the order that tokens take them, −1 past the count.
        count: int64 [E].
        expert_map: int [P], physical id → slot of this rank, −1 elsewhere.
        physical_to_logical: int64 [P].
    """

    tensors: tuple[torch.Tensor, ...]
    slots: torch.Tensor
    count: torch.Tensor
    expert_map: torch.Tensor
    physical_to_logical: torch.Tensor

    @property
    def mutable(self) -> tuple[torch.Tensor, ...]:
        """Everything that a fault may change."""
        return (*self.tensors, self.slots, self.count, self.expert_map)

    @property
    def scales(self) -> tuple[torch.Tensor, ...]:
        """The scales beside int8 weights; none where weights are not quantised."""
        quantised = any(tensor.dtype == torch.int8 for tensor in self.tensors)
        return tuple(one for one in self.tensors if quantised and one.is_floating_point())

    def copy(self) -> list[torch.Tensor]:
        """Return copies, for `restore`."""
        return [tensor.clone() for tensor in self.mutable]

    def restore(self, copies: list[torch.Tensor]) -> None:
        """Set everything back."""
        for tensor, kept in zip(self.mutable, copies, strict=True):
            tensor.copy_(kept)

    def digest(self) -> str:
        """Return the SHA-256 over everything that a fault may change, in hex."""
        found = hashlib.sha256()
        for tensor in self.mutable:
            found.update(tensor.contiguous().reshape(-1).view(torch.uint8).cpu().numpy().tobytes())
        return found.hexdigest()


def inject(layer: ServedLayer, fault: Fault) -> None:
    """Change a rank's part of a layer; a fault of one replica changes only the rank that holds it.

    Raises:
        ValueError: the layer has nothing that the fault could change.
    """
    if not is_of_a_replica(fault.kind):
        _change_tables(layer, fault.kind)
        return
    local = int(layer.expert_map[fault.slot])
    if local < 0:
        return
    if fault.kind == "dropped slot":
        layer.expert_map[fault.slot] = -1
        return
    changed = layer.scales if fault.kind == "stale scale" else layer.tensors
    if not changed:
        msg = f"the weights are {layer.tensors[0].dtype}; expected int8 for the fault {fault.kind!r}"
        raise ValueError(msg)
    if fault.kind == "zeroed":
        for tensor in changed:
            tensor[local] = 0
    elif fault.kind == "noise":
        generator = torch.Generator().manual_seed(fault.seed)
        for tensor in changed:
            noise = torch.randn(tensor[local].shape, generator=generator, dtype=torch.float32)
            tensor[local] += (noise * NOISE * tensor[local].float().std()).to(tensor)
    else:
        source = _beside(layer, fault.slot)
        for tensor in changed:
            tensor[local] = tensor[source].clone()


def is_of_a_replica(kind: Kind) -> bool:
    """Say whether a fault is one replica's, so that it matters which."""
    return kind not in _TABLE_FAULTS


def _change_tables(layer: ServedLayer, kind: Kind) -> None:
    slots, physical = layer.slots, len(layer.physical_to_logical)
    used = slots >= 0
    if kind == "log2phy shifted by one":
        slots.copy_(torch.where(used, (slots + 1) % physical, slots))
    elif kind == "physical-length map":
        slots.copy_(torch.where(used, torch.arange(len(slots))[:, None], slots))
    else:
        # The ids of an expert's further copies, past the slots of one more rank.
        later = used & (slots != slots.masked_fill(~used, physical).amin(1, keepdim=True))
        width = int((layer.expert_map >= 0).sum())
        slots.copy_(torch.where(later, slots + width, slots))


def _beside(layer: ServedLayer, slot: int) -> int:
    """Return the nearest slot of the same rank that holds another expert."""
    own = int(layer.physical_to_logical[slot])
    here = torch.nonzero(layer.expert_map >= 0).flatten().tolist()
    others = [one for one in here if int(layer.physical_to_logical[one]) != own]
    if not others:
        msg = f"slot {slot} is the only one of its rank with expert {own}; expected another expert beside it"
        raise ValueError(msg)
    return int(layer.expert_map[min(others, key=lambda one: (abs(one - slot), one))])


def choose(placement: Placement, kind: Kind, layer: int, seed: int) -> Fault:
    """Choose the replica of a layer that a seed stands for: a copy of an expert that has several.

    Other seeds stand for other copies, until there are no more.

    Raises:
        ValueError: the layer has no replicas.
    """
    experts = placement.physical_to_logical[layer]
    copies = [slot for slot, expert in enumerate(experts) if placement.replica_count[layer, expert] > 1]
    if not copies:
        msg = f"layer {layer} has no expert with several copies; expected redundant experts"
        raise ValueError(msg)
    order = torch.randperm(len(copies), generator=torch.Generator().manual_seed(layer))
    return Fault(kind, layer, copies[int(order[seed % len(copies)])], seed)


class FaultyWorker(WorkerReport):
    """Mixed into vLLM's worker in place of the plugin's own report; called by `collective_rpc`."""

    def inject_fault(self, kind: Kind, layer: int, slot: int, seed: int) -> None:
        """Break one layer on purpose, after keeping what was there."""
        found = self._served_layer(layer)
        self._kept = (layer, found.copy())
        inject(found, Fault(kind, layer, slot, seed))

    def restore_fault(self) -> None:
        """Set everything back to what it was before the last fault."""
        layer, copies = self._kept
        self._served_layer(layer).restore(copies)

    def serving_digests(self) -> list[str]:
        """Return the SHA-256 of each layer's weights, scales and tables on this rank."""
        return [
            self._served_layer(layer).digest() for layer in range(len(self._model_state.model.moe_layers))
        ]

    def place_experts(self, rows: list[list[int]], choice: str, weights: list[Any] | None) -> str:
        """Move the experts to another placement, by the plugin's own code, and write a replica choice.

        Args:
            rows: physical_to_logical, [L, P].
            choice: see `vllm_ascend_moe.core.replicas`.
            weights: [L, E, X], for the choice ``weighted``.

        Returns:
            The digest of the placement that is served then.
        """
        import numpy as np

        from expert_maps import Placement
        from vllm_ascend_moe.backends import moving
        from vllm_ascend_moe.core.replicas import SlotRule
        from vllm_ascend_moe.core.session import session_of

        served, state = session_of(self), self._model_state
        assert served is not None
        ranks = served.ranks
        target = Placement(rows, ranks.ep_size, num_logical_experts=state.model.num_logical_experts)
        moving.move_experts(target, "a drawn placement", state.model, state, ranks)
        shares = None if weights is None else np.asarray(weights, dtype=np.float64)
        rule = SlotRule(
            choice,  # type: ignore[arg-type] # checked where it is used
            tp_size=ranks.tp_size,
            ranks_must_agree=ranks.share_all_tokens,
            weights=shares,
        )
        moving.write_slots(rule, state, ranks.ep_size)
        return str(served.backend.live_placement().digest)

    @property
    def _model_state(self) -> Any:  # noqa: ANN401 - vLLM's
        runner = self.model_runner  # type: ignore[attr-defined] # of the worker that this is mixed into
        return next(iter(runner.eplb_state.model_states.values()))

    def _served_layer(self, layer: int) -> ServedLayer:
        state = self._model_state
        module = state.model.moe_layers[layer].routed_experts
        return ServedLayer(
            tuple(slot_tensors(module, state.model.num_local_physical_experts)),
            state.logical_to_physical_map[layer],
            state.logical_replica_count[layer],
            module.expert_map,
            state.physical_to_logical_map[layer],
        )
