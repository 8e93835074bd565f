# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""From vLLM's own layout to the placement asked for, by vLLM's own rearrangement, with every byte checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from expert_maps import LayoutError, Placement
from expert_maps.migration import schedule
from vllm_ascend_moe._log import logger
from vllm_ascend_moe.core.agreement import DisagreementError, gather
from vllm_ascend_moe.core.checksums import each_tensor, slot_checksums, slot_tensors
from vllm_ascend_moe.eplb import EplbConfigError
from vllm_ascend_moe.hooks import table, wrapping

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vllm_ascend_moe.backends.ranks import Ranks
    from vllm_ascend_moe.core.checksums import Slots
    from vllm_ascend_moe.core.replicas import SlotRule


def move_experts(
    target: Placement, name: str, model: Any, model_state: Any, ranks: Ranks, *, checks: bool = True
) -> NDArray[np.int64] | None:
    """Move every layer's experts to where the placement says, and commit that to vLLM's EPLB state.

    Args:
        target: this pipeline stage's layers.
        name: where the placement is from, for messages.
        model: vLLM's MixtureOfExperts.
        model_state: its part of vLLM's EPLB state, in vLLM's own layout.
        ranks: this worker's.
        checks: whether bytes are compared; not where weights are dummies, which differ between copies.

    Returns:
        Each expert's checksum, int64 [L, E]; None where bytes are not compared.

    Raises:
        EplbConfigError: vLLM has set up other counts.
        DisagreementError: a slot does not hold its expert's bytes, before or after.
    """
    initial = model_state.physical_to_logical_map.cpu()
    wanted = torch.from_numpy(target.physical_to_logical.astype(np.int64))
    if wanted.shape != initial.shape:
        msg = f"{name} has [layers, slots] {list(wanted.shape)}; expected {list(initial.shape)}, as vLLM has set up"
        raise EplbConfigError(msg)
    # 1. What the loader left in the slots: copies must be alike.
    experts = expert_checksums(initial.numpy(), _all_checksums(model, ranks)) if checks else None
    # 2. Move, then commit.
    if not torch.equal(wanted, initial):
        wrapping.original(table.MOVE_WEIGHTS)(
            model_state.physical_to_logical_map,
            wanted,
            model.expert_weights,
            model_state.expert_buffer,
            ranks.ep_group.device_group,
            model_state.communicator,
        )
        wrapping.original(table.COMMIT)(model_state, wanted.to(initial.dtype))
    # 3. Every slot must now hold its expert's bytes.
    if experts is not None:
        require_checksums(wanted.numpy(), _all_checksums(model, ranks), experts)
    return experts


def say_way(before: Placement, after: Placement, slot_bytes: float, ranks: Ranks) -> None:
    """Log on the first rank what a move takes at least; what moves is vLLM's own function, layer after layer, all ranks of it together.

    Args:
        before: vLLM's own layout.
        after: what was asked for, of the same counts.
        slot_bytes: of one slot's weights, scales included.
        ranks: this rank's place, and how many servers there are.
    """
    if ranks.ep_rank != 0:
        return
    way = schedule(before, after, num_nodes=ranks.num_nodes)
    if way.num_transfers:
        logger.info(
            "experts were moved to the placement asked for: at least %.1f MiB between ranks, in disjoint pairs %s",
            way.bytes(round(slot_bytes)) / 2**20,
            way.summary(),
        )


def compare_moved(model_state: Any, layer: int, ep_rank: int, experts: NDArray[np.int64]) -> None:
    """Compare this rank's slots of one layer once its experts have moved and its tables follow.

    Args:
        model_state: the model's part of vLLM's EPLB state.
        layer: of the stage's.
        ep_rank: this rank.
        experts: each expert's checksum, as `move_experts` returned it.

    Raises:
        DisagreementError: a slot holds something else than its expert.
    """
    slots = model_state.model.num_local_physical_experts
    row = model_state.physical_to_logical_map[layer, ep_rank * slots : (ep_rank + 1) * slots].cpu().numpy()
    found = slot_checksums(_slot_tensors(model_state.model, layer), slots).numpy()
    wrong = np.flatnonzero(experts[layer, row] != found)
    if wrong.size:
        msg = (
            f"slot {wrong[0]} of MoE layer {layer} on rank {ep_rank} does not hold, after a rearrangement, the weights of "
            f"expert {row[wrong[0]]} ({wrong.size} such slots); expected the same bytes, scales included"
        )
        raise DisagreementError(msg)


def local_checksums(model: Any) -> NDArray[np.int64]:
    """Return the checksum of every slot of this rank: int64 [L, slots]."""
    slots = model.num_local_physical_experts
    sums = [slot_checksums(_slot_tensors(model, layer), slots) for layer in range(len(model.moe_layers))]
    return torch.stack(sums).numpy()


def checksums_in_hex(model: Any) -> list[list[str]]:
    """Return `local_checksums` as words: not every transport carries integers of 64 bits."""
    return [[f"{int(slot):016x}" for slot in layer] for layer in local_checksums(model).view("u8")]


def _slot_tensors(model: Any, layer: int) -> list[Slots]:
    """Return what a layer holds for each slot: all of its parameters, or else what is moved.

    vllm-ascend takes the parameters of a quantised layer away, and computes by lists of tensors, which are what is moved.
    """
    moved = list(model.expert_weights[layer])
    module = getattr(model.moe_layers[layer], "routed_experts", None)
    if module is None or any(isinstance(weights, list) for weights in moved):
        return moved
    return list(slot_tensors(module, model.num_local_physical_experts))


def say_redundant_bytes(model: Any) -> None:
    """Log what this rank's share of the redundant experts takes, if there are any."""
    if model.num_redundant_experts:
        size = redundant_bytes(model) / 2**20
        logger.info("redundant experts take %.1f MiB of this rank's memory", size)


def redundant_bytes(model: Any) -> int:
    """Return what this rank's share of the redundant experts takes, in bytes."""
    size = sum(
        tensor.numel() * tensor.element_size()
        for layer in range(len(model.moe_layers))
        for tensor in each_tensor(_slot_tensors(model, layer))
    )
    return int(size * model.num_redundant_experts / model.num_physical_experts)


def live_placement(model_state: Any, ep_size: int) -> Placement:
    """Return the placement in vLLM's EPLB state, which is what tokens are routed by."""
    return placement_of(model_state.physical_to_logical_map, model_state, ep_size)


def placement_of(rows: torch.Tensor, model_state: Any, ep_size: int) -> Placement:
    """Return the placement of a model's physical_to_logical, [L, P]."""
    return Placement(
        rows.cpu().numpy(),
        ep_size,
        num_logical_experts=model_state.model.num_logical_experts,
        # vLLM's own policy may put an expert twice on a rank.
        allow_duplicates=True,
    )


def write_slots(rule: SlotRule, model_state: Any, ep_size: int, first_layer: int = 0) -> None:
    """Write the replica choice over the tables that vLLM has just committed.

    Args:
        rule: the choice.
        model_state: a model's part of vLLM's EPLB state.
        ep_size: R.
        first_layer: index of the stage's first layer among the model's MoE layers.
    """
    slots, count = rule.tables(live_placement(model_state, ep_size), first_layer)
    model_state.logical_to_physical_map[:, :, : slots.shape[2]].copy_(torch.from_numpy(slots))
    model_state.logical_replica_count.copy_(torch.from_numpy(count))


def commit_layer(
    rule: SlotRule,
    model_state: Any,
    row: torch.Tensor,
    ep_size: int,
    first_layer: int = 0,
    layer: int = 0,
) -> None:
    """Commit one layer's new placement, with the replica choice, without waiting for the device.

    In place of vLLM's commit, which goes through the slots one by one.

    Args:
        rule: the choice.
        model_state: a model's part of vLLM's EPLB state.
        row: the layer's physical_to_logical, int64 [P], on the CPU.
        ep_size: R.
        first_layer: index of the stage's first layer among the model's MoE layers.
        layer: of the stage's.

    Raises:
        LayoutError: the row is of another number of slots.
        PlacementError: it is no placement.
    """
    num_experts, num_slots = (
        model_state.model.num_logical_experts,
        model_state.physical_to_logical_map.shape[1],
    )
    if len(row) != num_slots:
        msg = (
            f"the new placement of MoE layer {first_layer + layer} has {len(row)} slots; expected {num_slots}"
        )
        raise LayoutError(msg)
    placement = Placement(row.numpy()[None], ep_size, num_logical_experts=num_experts, allow_duplicates=True)
    slots, count = rule.tables(placement, first_layer + layer)
    _put(model_state.physical_to_logical_map[layer], row)
    table = model_state.logical_to_physical_map[layer]
    width = slots.shape[2]
    table[:, width:].fill_(-1)
    _put(table[:, :width], torch.from_numpy(slots[0]))
    _put(model_state.logical_replica_count[layer], torch.from_numpy(count[0]))


def _put(target: torch.Tensor, values: torch.Tensor) -> None:
    # From pinned memory the copy joins what the device does next; from other memory the host would wait for it.
    values = values.to(target.dtype)
    target.copy_(values.pin_memory() if target.is_cuda else values, non_blocking=True)


def expert_checksums(rows: NDArray[np.int64], sums: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each expert's checksum.

    Args:
        rows: physical_to_logical, [L, P].
        sums: each slot's checksum, [L, P].

    Returns:
        int64 [L, E].

    Raises:
        DisagreementError: copies differ.
    """
    experts = np.zeros((len(rows), int(rows.max()) + 1), dtype=np.int64)
    np.put_along_axis(experts, rows, sums, axis=1)
    _compare(rows, sums, experts, "does not hold, after loading, what another copy holds: the weights of")
    return experts


def require_checksums(rows: NDArray[np.int64], sums: NDArray[np.int64], experts: NDArray[np.int64]) -> None:
    """Compare every slot with its expert.

    Args:
        rows: physical_to_logical, [L, P].
        sums: each slot's checksum, [L, P].
        experts: each expert's checksum, [L, E].

    Raises:
        DisagreementError: a slot holds something else.
    """
    _compare(rows, sums, experts, "does not hold, after vLLM's rearrangement, the weights of")


def _compare(rows: NDArray[np.int64], sums: NDArray[np.int64], experts: NDArray[np.int64], what: str) -> None:
    found = np.argwhere(np.take_along_axis(experts, rows, axis=1) != sums)
    if found.size:
        layer, slot = found[0]
        msg = (
            f"slot {slot} of MoE layer {layer} {what} expert {rows[layer, slot]} ({len(found)} such slots); "
            "expected the same bytes, scales included"
        )
        raise DisagreementError(msg)


def _all_checksums(model: Any, ranks: Ranks) -> NDArray[np.int64]:
    """Return the checksum of every slot of every rank: int64 [L, P]."""
    found = gather(local_checksums(model), ranks.cpu_group)
    return np.concatenate([np.asarray(sums) for sums in found], axis=1)
