# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""From vLLM's own layout to the placement asked for, by vLLM's own rearrangement, with every byte checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from expert_maps import Placement
from vllm_ascend_moe.core.agreement import DisagreementError, gather
from vllm_ascend_moe.core.checksums import slot_checksums, slot_tensors
from vllm_ascend_moe.eplb import EplbConfigError
from vllm_ascend_moe.hooks import table, wrapping

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vllm_ascend_moe.backends.ranks import Ranks
    from vllm_ascend_moe.core.slots import SlotRule


def move_experts(
    target: Placement, name: str, model: Any, model_state: Any, ranks: Ranks, *, checks: bool = True
) -> None:
    """Move every layer's experts to where the placement says, and commit that to vLLM's EPLB state.

    Args:
        target: this pipeline stage's layers.
        name: where the placement is from, for messages.
        model: vLLM's MixtureOfExperts.
        model_state: its part of vLLM's EPLB state, in vLLM's own layout.
        ranks: this worker's.
        checks: whether bytes are compared; not where weights are dummies, which differ between copies.

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


def local_checksums(model: Any) -> NDArray[np.int64]:
    """Return the checksum of every slot of this rank: int64 [L, slots]."""
    slots = model.num_local_physical_experts
    sums = [slot_checksums(_slot_tensors(model, layer), slots) for layer in range(len(model.moe_layers))]
    return torch.stack(sums).numpy()


def _slot_tensors(model: Any, layer: int) -> list[torch.Tensor]:
    """Return what a layer holds for each slot: all of its parameters, or else what vLLM moves."""
    module = getattr(model.moe_layers[layer], "routed_experts", None)
    if module is None:
        return list(model.expert_weights[layer])
    return list(slot_tensors(module, model.num_local_physical_experts))


def redundant_bytes(model: Any) -> int:
    """Return what this rank's share of the redundant experts takes, in bytes."""
    size = sum(
        tensor.numel() * tensor.element_size()
        for layer in range(len(model.moe_layers))
        for tensor in _slot_tensors(model, layer)
    )
    return int(size * model.num_redundant_experts / model.num_physical_experts)


def live_placement(model_state: Any, ep_size: int, layers: slice = slice(None)) -> Placement:
    """Return the placement in vLLM's EPLB state, which is what tokens are routed by."""
    return Placement(
        model_state.physical_to_logical_map[layers].cpu().numpy(),
        ep_size,
        num_logical_experts=model_state.model.num_logical_experts,
        # vLLM's own policy may put an expert twice on a rank.
        allow_duplicates=True,
    )


def write_slots(
    rule: SlotRule, model_state: Any, ep_size: int, first_layer: int = 0, layer: int | None = None
) -> None:
    """Write the replica choice over the tables that vLLM has just committed.

    Args:
        rule: the choice.
        model_state: a model's part of vLLM's EPLB state.
        ep_size: R.
        first_layer: index of the stage's first layer among the model's MoE layers.
        layer: the one layer that was committed; None for all.
    """
    rows = slice(None) if layer is None else slice(layer, layer + 1)
    placement = live_placement(model_state, ep_size, rows)
    slots, count = rule.tables(placement, first_layer + (layer or 0))
    model_state.logical_to_physical_map[rows, :, : slots.shape[2]].copy_(torch.from_numpy(slots))
    model_state.logical_replica_count[rows].copy_(torch.from_numpy(count))


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
