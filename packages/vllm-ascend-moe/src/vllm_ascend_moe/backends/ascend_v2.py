# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Beside vllm-ascend's runner V2: vLLM's EPLB state serves, with vllm-ascend's layers and its asynchronous transfer.

Its layers look copies up in a table of their own, a row a token. By itself vllm-ascend makes it anew only where its
asynchronous transfer commits a layer, and starts it at the rank's number on every path: on AllGather, where all ranks have
all tokens, they then choose different copies, and a token is computed twice or by nobody. Here the tables are written
by the plugin's rule after every commit, alike on all ranks where batches may take that path.

Run beside the released vllm-ascend on an emulated NPU.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from expert_maps import Placement
from vllm_ascend_moe.backends import moving, rules
from vllm_ascend_moe.backends.ascend.checks import World, can_gather, chip
from vllm_ascend_moe.backends.ascend.model import initialize_hooks
from vllm_ascend_moe.backends.eplb_hooks import around_initialize_model
from vllm_ascend_moe.backends.interface import Backend
from vllm_ascend_moe.backends.vllm_eplb import VllmEplb
from vllm_ascend_moe.core.replicas import written_out
from vllm_ascend_moe.core.session import session_of
from vllm_ascend_moe.core.settings import VLLM_POLICY
from vllm_ascend_moe.eplb import EplbConfigError
from vllm_ascend_moe.hooks import table, wrapping

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_ascend_moe.core.replicas import SlotRule
    from vllm_ascend_moe.hooks.table import Hook


class AscendV2(VllmEplb):
    """The experts of one engine in vllm-ascend's part of vLLM's EPLB state."""

    beside_ascend: ClassVar[bool] = True

    def more_hooks(self) -> dict[Hook, Callable[..., Any]]:
        """Follow vllm-ascend's own commit, and every loader; see `VllmEplb`."""
        made = dict.fromkeys(initialize_hooks(), around_initialize_model)
        return {table.MOVE_TO_WORKSPACE: _around_move, **made}

    def finish_loading(self) -> None:
        """See that the hooks were called; see `Backend`."""
        if not self.session.has_agreed:
            wrapping.require_called(*initialize_hooks())
        super().finish_loading()

    def begin_reload(self, name: str) -> None:
        """Refuse new weights; see `Backend`."""
        Backend.begin_reload(self, name)

    def add_model(self, state: Any, model: Any, model_config: Any) -> None:
        """Refuse a draft model whose experts would move along; see `VllmEplb`.

        Raises:
            EplbConfigError: it is one.
        """
        if model_config is not self.session.config.model_config:
            msg = (
                f"{type(model).__name__} is a draft model with {model.num_moe_layers} MoE layers, whose experts vllm-ascend's "
                "runner V2 moves along with the main model's; expected a draft model without experts, none, or a linear layout "
                "that stays (no map, no redundant experts, dynamic false, no record_path): the plugin was not tried with it"
            )
            raise EplbConfigError(msg)
        super().add_model(state, model, model_config)

    # Planning.

    def set_policy(self, state: Any, model: Any) -> None:
        """Plan as elsewhere; vllm-ascend's own policy brings statistics and a transfer of its own, and stays as it is."""
        if self.session.settings.policy != VLLM_POLICY:
            super().set_policy(state, model)

    def row_of(self, model_state: Any, layer: int) -> Placement | None:
        """Return how a layer's experts stand, for the metrics; None where nothing is counted."""
        if not self.session.meter.is_on or not self.is_main(model_state):
            return None
        return moving.placement_of(
            model_state.physical_to_logical_map[layer : layer + 1], model_state, self.session.ranks.ep_size
        )

    def slot_rule(self, model: Any, *, is_main: bool) -> SlotRule:
        """Choose alike on all ranks where a batch may take the path on which every rank has all tokens."""
        del model
        rule = rules.slot_rule(self.session, splits_tokens=True, is_main=is_main)
        release, world = wrapping.vllm_ascend_release(), World.of_config(self.session.config)
        gathers = can_gather(release, chip(), world)
        return replace(rule, turn=0, ranks_must_agree=True) if gathers else rule

    # Serving.

    def write_slots(self, model_state: Any) -> None:
        """Write the replica choice into every layer's own table; vLLM's tables stay those of the placement."""
        for layer in range(len(model_state.model.moe_layers)):
            self._write_routes(model_state, layer)

    def _write_routes(self, model_state: Any, layer: int) -> None:
        ranks = self.session.ranks
        routes = getattr(model_state.model.moe_layers[layer].eplb_state, "expert_replica_routing_table", None)
        if routes is None:
            msg = (
                f"MoE layer {layer} has no expert_replica_routing_table; expected one, in which vllm-ascend's runner V2 looks "
                "up copies"
            )
            raise wrapping.UpstreamError(msg)
        placement = Placement(
            model_state.physical_to_logical_map[layer : layer + 1].cpu().numpy(),
            ranks.ep_size,
            num_logical_experts=model_state.model.num_logical_experts,
            allow_duplicates=True,
        )
        slots, count = self.rule_of(model_state).tables(placement, self.first_layer + layer)
        # In place: captured graphs read it where it is.
        routes.copy_(torch.from_numpy(written_out(slots[0], count[0], len(routes))))

    def layer_moved(self, model_state: Any, layer: int, before: Placement | None, *, is_last: bool) -> None:
        """After vllm-ascend has committed a layer: write the choice, and compare its slots with their experts.

        Args:
            model_state: the model's part of vLLM's EPLB state.
            layer: of the stage's.
            before: what `row_of` returned before.
            is_last: whether it ends the round.

        Raises:
            DisagreementError: a slot holds something else.
        """
        self._write_routes(model_state, layer)
        if not self.is_main(model_state):
            return
        if self.expert_sums is not None:
            moving.compare_moved(model_state, layer, self.session.ranks.ep_rank, self.expert_sums)
        self.session.rearrangements += is_last
        after = self.row_of(model_state, layer)
        if before is not None and after is not None:
            self.session.meter.moved(before, after)
            if is_last:
                self.session.meter.end_move(self.live_placement())

    def record(self, *, is_dummy: bool) -> None:
        """Add up what each rank's own slots have computed in this step; see `VllmEplb`."""
        state = self.main_state
        if state is None:
            return
        if self.session.settings.policy != VLLM_POLICY:
            # vllm-ascend sets it for its own policy only, and moves nothing without.
            self.state._has_fresh_recorded_load = True  # noqa: SLF001 - there is no public switch
        if self.session.settings.record_path is None:
            return
        counts = state.expert_load_pass
        shape = (counts.shape[0], state.model.num_logical_experts)
        load = torch.zeros(shape, dtype=torch.int64, device=counts.device)
        if not is_dummy:
            load.scatter_add_(1, state.physical_to_logical_map.long(), counts.long())
        torch.distributed.all_reduce(load, group=self.session.ranks.ep_group.device_group)
        if self.session.recorder is not None:
            self.session.recorder.add(load)


def _around_move(original: Callable[..., Any], model_state: Any, *args: Any, **kwargs: Any) -> Any:
    """Hook: vllm-ascend moves a layer's experts to their slots and commits its tables, or ends a round without."""
    session, pending = session_of(model_state), model_state.pending_result
    layer = getattr(pending, "layer_idx", None)
    is_last = bool(getattr(pending, "is_last_result", False))
    before = None
    if session is not None and layer is not None:
        before = session.backend.row_of(model_state, layer)
        session.meter.begin_move()
    result = original(model_state, *args, **kwargs)
    if session is not None and layer is not None:
        session.backend.layer_moved(model_state, layer, before, is_last=is_last)
    return result


__all__ = ["AscendV2"]
