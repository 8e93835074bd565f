# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Where vLLM's own EPLB state serves: CUDA, ROCm, XPU, and with more hooks a CPU.

vLLM owns the weights, the placement's state and the transfer of weights between ranks. It loads in a layout of
its own; then its own rearrangement moves every layer to where the placement says, and the routing tables
follow the weights, never before.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

from vllm_ascend_moe._log import logger
from vllm_ascend_moe.backends import moving
from vllm_ascend_moe.backends.interface import Backend
from vllm_ascend_moe.backends.policy import check_policy, make_policy
from vllm_ascend_moe.core.agreement import require_agreement
from vllm_ascend_moe.core.session import Session, State, loading_session, session_of
from vllm_ascend_moe.core.settings import VLLM_POLICY, describe
from vllm_ascend_moe.core.slots import SlotRule
from vllm_ascend_moe.eplb import EplbConfigError
from vllm_ascend_moe.hooks import table, wrapping

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from expert_maps import Placement
    from vllm_ascend_moe.hooks.table import Hook


class VllmEplb(Backend):
    """The experts of one engine in vLLM's EPLB state."""

    def __init__(self, session: Session) -> None:
        """Know nothing of a model yet."""
        super().__init__(session)
        self._main_state: Any = None
        self._first_layer = 0
        self._rule: SlotRule | None = None

    @property
    def is_placed(self) -> bool:
        """Whether the model's experts are in vLLM's EPLB state."""
        return self._main_state is not None

    def live_placement(self) -> Placement:
        """Return the placement that tokens are routed by now."""
        return moving.live_placement(self._main_state, self.session.ranks.ep_size)

    # Putting hooks in place.

    def install(self) -> None:
        """Put the hooks around vLLM's EPLB; see `Backend`."""
        wrapping.check_versions(ascend=False)
        wrapping.check_hooks((*table.EPLB, *self.more_hooks()))
        for hook, around in {**_AROUND, **self.more_hooks()}.items():
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
            placement = session.source.layers(*session.ranks.stage(moe.num_moe_layers))
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
        if session.settings.policy != VLLM_POLICY:
            state.policy = make_policy(session.settings.policy, session.settings.max_moves)
        model_state = next(reversed(state.model_states.values()))
        session.attach(model_state)
        if self._main_state is None and model_config is session.config.model_config:
            session.ranks.read_layers(model)
            self._main_state = model_state
            self._place(model, model_state)
            session.start_recording(model.num_moe_layers, model.num_logical_experts)
        self.write_slots(model_state)

    def _place(self, model: Any, model_state: Any) -> None:
        session = self.session
        if not session.has_agreed:  # a loader that makes its model by itself
            session.require_same_source()
        assert session.source is not None
        stage = session.ranks.stage(model.num_moe_layers)
        self._first_layer = stage[0]
        moving.move_experts(
            session.source.layers(*stage),
            session.source.name,
            model,
            model_state,
            session.ranks,
            checks=session.config.load_config.load_format != "dummy",
        )
        live = self.live_placement().digest
        require_agreement("live placements", live, "vLLM's EPLB state", session.ranks.cpu_group)
        session.advance(State.PLACED)
        if model.num_redundant_experts:
            size = moving.redundant_bytes(model) / 2**20
            logger.info("redundant experts take %.1f MiB of this rank's memory", size)

    def finish_loading(self) -> None:
        """See that the hooks were called; see `Backend`."""
        if not self.session.has_agreed:
            wrapping.require_called(table.INITIALIZE_MODEL)
        if self.session.config.parallel_config.enable_eplb:
            wrapping.require_called(table.ADD_MODEL)

    # Serving.

    def write_slots(self, model_state: Any, layer: int | None = None) -> None:
        """Write the replica choice over the tables that vLLM has committed; `layer` None for those of all."""
        ranks = self.session.ranks
        if self._rule is None:
            self._rule = SlotRule.from_settings(
                self.session.settings,
                ep_size=ranks.ep_size,
                tp_size=ranks.tp_size,
                ep_rank=ranks.ep_rank,
                splits_tokens=ranks.splits_tokens,
            )
        rule = self._rule
        if model_state is not self._main_state and rule.choice == "weighted":
            rule = SlotRule("rank_offset", rule.turn)  # a draft model, for which there are no weights
        moving.write_slots(rule, model_state, ranks.ep_size, self._first_layer, layer)

    def committed(self, model_state: Any, layer: int | None = None) -> None:
        """After vLLM has committed new tables: write the choice, and count the main model's rearrangements."""
        self.write_slots(model_state, layer)
        is_last = layer is None or layer == model_state.model.num_moe_layers - 1
        # A draft model is rearranged along with it.
        self.session.rearrangements += is_last and model_state is self._main_state

    def begin_forward(self, model_config: Any) -> None:
        """Forget the tokens of warm-up runs, which skip the EPLB step and leave theirs behind."""
        # A draft model's forward comes after the main model's, whose tokens must stay.
        is_main = model_config is self.session.config.model_config and self._main_state is not None
        if is_main and self.session.settings.record_path is not None:
            self._main_state.expert_load_pass.zero_()

    def record(self, *, is_dummy: bool) -> None:
        """Add up what this step's tokens were routed to, by logical expert, over the ranks that saw them."""
        state, ranks = self._main_state, self.session.ranks
        if state is None or self.session.settings.record_path is None:
            return
        counts = state.expert_load_pass
        shape = (counts.shape[0], state.model.num_logical_experts)
        load = torch.zeros(shape, dtype=torch.int64, device=counts.device)
        if not is_dummy and ranks.counts_tokens:
            load.scatter_add_(1, state.physical_to_logical_map.long(), counts.long())
        if not ranks.share_all_tokens:
            torch.distributed.all_reduce(load, group=ranks.ep_group.device_group)
        # A step in which no rank had a token is none.
        if self.session.recorder is not None and bool(load.any()):
            self.session.recorder.add(load)

    def report(self, *, checksums: bool) -> dict[str, Any]:
        """Return what vLLM's EPLB state says; see `Backend`."""
        if self._main_state is None:
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
            # In hex: not every transport carries integers of 64 bits.
            sums = moving.local_checksums(self._main_state.model).view("u8")
            report["slot_checksums"] = [[f"{int(slot):016x}" for slot in layer] for layer in sums]
        return report


def _backend_of(owner: Any) -> VllmEplb | None:
    session = session_of(owner)
    return None if session is None else session.backend


def around_initialize_model(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Hook: let the backend of the engine that is being loaded make its model."""
    session = loading_session()
    if session is None:
        return original(*args, **kwargs)
    return session.backend.make_model(lambda: original(*args, **kwargs), kwargs.get("model_config"))


def _around_add_model(
    original: Callable[..., Any], state: Any, model: Any, model_config: Any, *args: Any, **kwargs: Any
) -> Any:
    result = original(state, model, model_config, *args, **kwargs)
    session = loading_session() or session_of(state)
    if session is not None:
        session.backend.add_model(state, model, model_config)
    return result


def _around_commit(original: Callable[..., Any], model_state: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(model_state, *args, **kwargs)
    backend = _backend_of(model_state)
    if backend is not None:
        backend.committed(model_state)
    return result


def _around_commit_layer(
    original: Callable[..., Any], model_state: Any, new_physical_to_logical_map: Any, layer: int
) -> Any:
    result = original(model_state, new_physical_to_logical_map, layer)
    backend = _backend_of(model_state)
    if backend is not None:
        backend.committed(model_state, layer)
    return result


def _around_update_mapping(original: Callable[..., Any], state: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(state, *args, **kwargs)
    backend = _backend_of(state)
    if backend is not None:
        for model_state in state.model_states.values():
            backend.write_slots(model_state)
    return result


def _around_rearrange(original: Callable[..., Any], state: Any, *args: Any, **kwargs: Any) -> Any:
    backend = _backend_of(state)
    if backend is None:
        return original(state, *args, **kwargs)
    is_profile = kwargs.get("is_profile", bool(args and args[0]))
    if not backend.session.settings.dynamic and not is_profile:
        return None  # a static placement stays
    with backend.rearranging():
        return original(state, *args, **kwargs)


def _around_should_record(original: Callable[..., Any], state: Any, *args: Any, **kwargs: Any) -> bool:
    backend = _backend_of(state)
    records = backend is not None and backend.session.settings.record_path is not None
    return records or bool(original(state, *args, **kwargs))


def _around_prepare_forward(original: Callable[..., Any], state: Any, *args: Any, **kwargs: Any) -> Any:
    backend = _backend_of(state)
    if backend is not None:
        backend.begin_forward(kwargs.get("model_config", args[0] if args else None))
    return original(state, *args, **kwargs)


def _around_step(
    original: Callable[..., Any], state: Any, is_dummy: bool = False, is_profile: bool = False, **kwargs: Any
) -> Any:
    backend = _backend_of(state)
    if backend is not None and not is_profile:
        backend.record(is_dummy=is_dummy)
    return original(state, is_dummy, is_profile, **kwargs)


_AROUND: dict[Hook, Callable[..., Any]] = {
    table.INITIALIZE_MODEL: around_initialize_model,
    table.ADD_MODEL: _around_add_model,
    table.STEP: _around_step,
    table.PREPARE_FORWARD: _around_prepare_forward,
    table.SHOULD_RECORD: _around_should_record,
    table.REARRANGE: _around_rearrange,
    table.UPDATE_MAPPING: _around_update_mapping,
    table.COMMIT: _around_commit,
    table.COMMIT_LAYER: _around_commit_layer,
}


__all__ = ["VllmEplb", "around_initialize_model"]
