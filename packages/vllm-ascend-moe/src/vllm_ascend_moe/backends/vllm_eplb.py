# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Where vLLM's own EPLB state serves: CUDA, ROCm, XPU, and with more hooks a CPU.

vLLM owns the weights, the placement's state and the transfer of weights between ranks. It loads in a layout of
its own; then its own rearrangement moves every layer to where the placement says, and the routing tables
follow the weights, never before.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from expert_maps import ExpertMapsError
from vllm_ascend_moe._log import logger
from vllm_ascend_moe.backends import moving, rules
from vllm_ascend_moe.backends.eplb_hooks import EPLB_HOOKS
from vllm_ascend_moe.backends.homes import Homes
from vllm_ascend_moe.backends.interface import Backend
from vllm_ascend_moe.backends.one_plan import OnePlan
from vllm_ascend_moe.backends.policy import check_policy, make_policy
from vllm_ascend_moe.core.agreement import require_agreement
from vllm_ascend_moe.core.session import State
from vllm_ascend_moe.core.settings import VLLM_POLICY, describe
from vllm_ascend_moe.eplb import EplbConfigError
from vllm_ascend_moe.hooks import table, wrapping

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    import numpy as np
    from numpy.typing import NDArray

    from expert_maps import Placement
    from vllm_ascend_moe.core.replicas import SlotRule
    from vllm_ascend_moe.core.session import Session
    from vllm_ascend_moe.hooks.table import Hook


class VllmEplb(Backend):
    """The experts of one engine in vLLM's EPLB state.

    Attributes:
        state: vLLM's, of all models; None before there is one.
        main_state: the main model's part of it; None before there is one.
        first_layer: index of the stage's first layer among the model's MoE layers.
        beside_ascend: whether vllm-ascend is there, and pairs of versions count.
        expert_sums: each expert's checksum in the main model, int64 [L, E]; None where bytes are not compared.
    """

    beside_ascend: ClassVar[bool] = False

    def __init__(self, session: Session) -> None:
        """Know nothing of a model yet."""
        super().__init__(session)
        self.state: Any = None
        self.main_state: Any = None
        self.expert_sums: NDArray[np.int64] | None = None
        self.first_layer = 0
        # By model, its state's number: a draft model has its own, and may be added first.
        self._rules: dict[int, SlotRule] = {}
        self._homes = Homes()

    @property
    def is_placed(self) -> bool:
        """Whether the model's experts are in vLLM's EPLB state."""
        return self.main_state is not None

    def is_main(self, model_state: Any) -> bool:
        """Whether a model's part of vLLM's EPLB state is the main model's."""
        return model_state is self.main_state

    def rule_of(self, model_state: Any) -> SlotRule:
        """Return by what copies of a model's experts are chosen."""
        return self._rules[id(model_state)]

    def live_placement(self) -> Placement:
        """Return the placement that tokens are routed by now."""
        return moving.live_placement(self.main_state, self.session.ranks.ep_size)

    # Putting hooks in place.

    def install(self) -> None:
        """Put the hooks around vLLM's EPLB; see `Backend`."""
        wrapping.check_versions(ascend=self.beside_ascend)
        wrapping.check_hooks((*table.EPLB, *self.more_hooks()))
        for hook, around in {**EPLB_HOOKS, **self.more_hooks()}.items():
            wrapping.wrap(hook, around)

    def more_hooks(self) -> dict[Hook, Callable[..., Any]]:
        """Return what a platform needs beside."""
        return {}

    def rearranging(self) -> AbstractContextManager[None]:
        """Be around each of vLLM's rearrangements."""
        return contextlib.nullcontext()

    # Loading.

    def make_model(self, make: Callable[[], Any], model_config: Any) -> Any:
        """Let a model be made and check it; see `Backend`."""
        is_draft = model_config is not None and model_config is not self.session.config.model_config
        if not is_draft:
            self.session.require_same_source()
        model = make()
        if not is_draft:
            self.check_model(model)
        return model

    def check_model(self, model: Any) -> None:
        """Refuse a model whose experts vLLM cannot move, or that the policy cannot plan for.

        Raises:
            EplbConfigError: see above, or its MoE layers are not those of the placement.
        """
        session = self.session
        assert session.source is not None
        moe = wrapping.call(table.FIND_MOE_MODEL, model)
        if session.config.parallel_config.enable_eplb and moe is None:
            msg = (
                f"{type(model).__name__} does not implement vLLM's MixtureOfExperts, without which vLLM cannot "
                "move its experts; leave out everything but expert parallelism"
            )
            raise EplbConfigError(msg)
        digest = session.source.digest
        if moe is not None:
            if session.config.parallel_config.enable_eplb:
                session.ranks.require_own_layers(moe)
            # Not as many as the model counts: some count all of them on every pipeline stage.
            placement = session.source.layers(*session.ranks.stage(len(moe.moe_layers)))
            digest = placement.digest
            settings = session.settings
            if settings.dynamic and settings.policy != VLLM_POLICY:
                nodes = session.ranks.num_nodes
                check_policy(settings.policy, placement, moe.num_expert_groups, nodes, settings.max_moves)
        self.say_active(describe(session.settings), digest)

    def add_model(self, state: Any, model: Any, model_config: Any) -> None:
        """Once vLLM has set up its state in its own layout, move to the placement."""
        session = self.session
        session.attach(state)
        model_state = next(reversed(state.model_states.values()))
        session.attach(model_state)
        self.state = state
        self._homes.add(model_state)
        self.set_policy(state, model)
        is_main = self.main_state is None and model_config is session.config.model_config
        self._rules[id(model_state)] = self.slot_rule(model, is_main=is_main)
        if is_main:
            self.main_state = model_state
            self._place(model, model_state)
            session.start_recording(model.num_moe_layers, model.num_logical_experts)
        self.write_slots(model_state)

    def set_policy(self, state: Any, model: Any) -> None:
        """Let rearrangements be planned by what was asked for, on one rank for all."""
        session = self.session
        policy = state.policy
        if session.settings.policy != VLLM_POLICY:
            policy = make_policy(session.settings.policy, session.settings.max_moves)
        rule = rules.move_rule(session, model)
        state.policy = OnePlan(policy, rule, session.ranks.eplb_group, session.meter)

    def slot_rule(self, model: Any, *, is_main: bool) -> SlotRule:
        """Return by what this rank chooses among a model's copies."""
        ranks = self.session.ranks
        splits_tokens = ranks.splits(model)
        if is_main:
            ranks.splits_tokens = splits_tokens
        return rules.slot_rule(self.session, splits_tokens=splits_tokens, is_main=is_main)

    def _place(self, model: Any, model_state: Any) -> None:
        session = self.session
        if not session.has_agreed:  # a loader that makes its model by itself
            session.require_same_source()
        assert session.source is not None
        before, stage = self.live_placement(), session.ranks.stage(model.num_moe_layers)
        self.first_layer, target = stage[0], session.source.layers(*stage)
        self.expert_sums = moving.move_experts(
            target,
            session.source.name,
            model,
            model_state,
            session.ranks,
            checks=session.config.load_config.load_format != "dummy",
        )
        live = self.live_placement().digest
        require_agreement("live placements", live, "vLLM's EPLB state", session.ranks.cpu_group)
        session.advance(State.PLACED)
        session.meter.placement, session.meter.first_layer = target, self.first_layer
        session.meter.slot_bytes = rules.move_rule(session, model).slot_bytes
        moving.say_redundant_bytes(model)
        moving.say_way(before, target, session.meter.slot_bytes, session.ranks)

    def finish_loading(self) -> None:
        """See that the hooks were called; see `Backend`."""
        if not self.session.has_agreed:
            wrapping.require_called(table.INITIALIZE_MODEL)
        if self.session.config.parallel_config.enable_eplb:
            wrapping.require_called(table.ADD_MODEL)

    # Serving.

    @property
    def may_rearrange(self) -> bool:
        """Whether vLLM may move experts: not away from a static placement, nor while weights are loaded."""
        return bool(self.session.settings.dynamic) and not self._homes.are_left

    def write_slots(self, model_state: Any) -> None:
        """Write the replica choice over the tables that vLLM has committed."""
        ranks = self.session.ranks
        moving.write_slots(self._rules[id(model_state)], model_state, ranks.ep_size, self.first_layer)

    def committed(self, model_state: Any) -> None:
        """After vLLM has committed new tables: write the choice, and count."""
        self.write_slots(model_state)
        self._count(model_state)

    def commit_layer(self, model_state: Any, row: torch.Tensor, layer: int) -> None:
        """Commit a layer that vLLM has moved while it serves, in place of vLLM."""
        ep_size = self.session.ranks.ep_size
        moving.commit_layer(self._rules[id(model_state)], model_state, row, ep_size, self.first_layer, layer)
        if layer == model_state.model.num_moe_layers - 1:
            self._count(model_state)

    def _count(self, model_state: Any) -> None:
        # A draft model is rearranged along with the main one. A plan that is the present placement is committed, too.
        if model_state is not self.main_state:
            return
        plan, meter = self.state.policy, self.session.meter
        self.session.rearrangements += plan.moves
        if meter.is_on and plan.moves:
            with contextlib.suppress(ExpertMapsError):  # a draft model's plan came in between
                meter.rearranged(moving.placement_of(plan.rows, model_state, self.session.ranks.ep_size))

    def begin_forward(self, model_config: Any) -> None:
        """Forget the tokens of warm-up runs, which skip the EPLB step and leave theirs behind."""
        # A draft model's forward comes after the main model's, whose tokens must stay.
        is_main = model_config is self.session.config.model_config and self.main_state is not None
        if is_main and self.session.settings.record_path is not None:
            self.main_state.expert_load_pass.zero_()

    def record(self, *, is_dummy: bool) -> None:
        """Add up what this step's tokens were routed to, by logical expert, over the ranks that saw them."""
        state, ranks = self.main_state, self.session.ranks
        if state is None or self.session.settings.record_path is None:
            return
        counts = state.expert_load_pass
        load = counts.new_zeros((counts.shape[0], state.model.num_logical_experts), dtype=torch.int64)
        if not is_dummy and ranks.counts_tokens:
            load.scatter_add_(1, state.physical_to_logical_map.long(), counts.long())
        if not ranks.share_all_tokens:
            torch.distributed.all_reduce(load, group=ranks.ep_group.device_group)
        if self.session.recorder is not None:
            self.session.recorder.add(load)

    # New weights.

    def begin_reload(self, name: str) -> None:
        """Move every model's experts back to where vLLM's loader puts them, and serve that; see `Backend`."""
        if self.main_state is None:
            return
        if self.state.is_async:
            logger.info("%s: moves that are under way are dropped", name)
            self.state.drain_async()
        self._homes.leave(self.session.ranks, self.write_slots)

    def end_reload(self) -> None:
        """Move every model's experts to where they were, fill every copy, and compare bytes; see `Backend`."""
        checks = self.session.config.load_config.load_format != "dummy"
        self._homes.come_back(self.session.ranks, self.write_slots, checks=checks)

    def abort_reload(self) -> None:
        """Serve on in vLLM's own layout, whose every slot is as the loader has left it; see `Backend`."""
        if self._homes.are_left:
            logger.error("new weights could not be loaded; experts stay in vLLM's own layout until they are")

    def report(self, *, checksums: bool) -> dict[str, Any]:
        """Return what vLLM's EPLB state says; see `Backend`."""
        if self.main_state is None:
            return {}
        placement = self.live_placement()
        recorder = self.session.recorder
        report = {
            "digest": placement.digest,
            "physical_to_logical": placement.physical_to_logical.tolist(),
            "num_redundant_experts": placement.num_redundant_experts,
            "rearrangements": self.session.rearrangements,
            "recorded_steps": recorder.num_rows if recorder else 0,
        }
        if checksums:
            report["slot_checksums"] = moving.checksums_in_hex(self.main_state.model)
        return report


__all__ = ["VllmEplb"]
