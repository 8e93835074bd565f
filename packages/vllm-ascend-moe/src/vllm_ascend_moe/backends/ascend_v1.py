# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Beside vllm-ascend's runner V1: its layers get their maps, and their slots are compared with them.

After loading, and after each layer that vllm-ascend moves, every rank tells its tables and its slots to the others, and
all of them stop where a slot does not hold the expert that the tables name.

Run beside the released vllm-ascend on an emulated NPU.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from expert_maps.policies import DEFAULT_POLICY
from vllm_ascend_moe._log import logger
from vllm_ascend_moe.backends.ascend import watching
from vllm_ascend_moe.backends.ascend.answers import Answer, Question, answer
from vllm_ascend_moe.backends.ascend.choosing import Choosing
from vllm_ascend_moe.backends.ascend.left import forget_engine, registered_layers
from vllm_ascend_moe.backends.ascend.model import AskedModel, Rows, initialize_hooks, rows_of
from vllm_ascend_moe.backends.ascend.options import chooses, counts_load, needs_eplb
from vllm_ascend_moe.backends.ascend.planning import Planner, planner_for
from vllm_ascend_moe.backends.ascend.process import around_manager, around_worker_process
from vllm_ascend_moe.backends.ascend.proof import Proof
from vllm_ascend_moe.backends.ascend.recording import Recording
from vllm_ascend_moe.backends.eplb_hooks import around_initialize_model
from vllm_ascend_moe.backends.interface import Backend
from vllm_ascend_moe.backends.policy import check_policy
from vllm_ascend_moe.backends.rules import slot_rule
from vllm_ascend_moe.core.session import State, loading_session
from vllm_ascend_moe.core.settings import VLLM_POLICY, describe
from vllm_ascend_moe.eplb import EplbConfigError
from vllm_ascend_moe.hooks import table, wrapping

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_ascend_moe.core.session import Session


class AscendV1(Backend):
    """The experts of one engine in vllm-ascend's layers."""

    def __init__(self, session: Session) -> None:
        """Know the release of vllm-ascend, and nothing of a model yet.

        Raises:
            UpstreamError: the release is not in the table.
        """
        super().__init__(session)
        self._release = wrapping.vllm_ascend_release()
        self._building: str | None = None
        self._asked: list[tuple[Question, Rows | None]] = []
        self._main: AskedModel | None = None
        self._draft: AskedModel | None = None
        self._choosing = Choosing()
        # None where nobody asks for the load.
        self._recording = Recording(session) if counts_load(session.settings) else None
        # The main model's, once it is loaded.
        self._proof: Proof | None = None
        # Once vllm-ascend's EPLB has been warmed up, where it is not vllm-ascend that plans.
        self._planner: Planner | None = None

    @property
    def is_placed(self) -> bool:
        """Whether layers serve maps of the plugin's; not where vLLM's linear expert parallelism is all there is."""
        return self._main is not None and any(layer.log2phy is not None for layer in self._main.layers)

    def install(self) -> None:
        """Put the hooks around vllm-ascend's functions; see `Backend`. Its EPLB serves, not vLLM's."""
        wrapping.check_versions(ascend=True)
        asks = [table.INIT_EPLB_CONFIG, *table.init_in_layers(self._release.layers)]
        called = (
            table.INITIALIZE_MODEL,
            table.INITIALIZE_MODEL_UTIL,
            table.EP_GROUP,
            table.PP_GROUP,
            table.NODE_COUNT,
        )
        wrapping.check_hooks((*table.BESIDE_ASCEND, *asks, *called))
        forget_engine(self._release)
        for hook in asks:
            wrapping.wrap(hook, _around_init_eplb_config)
        # One process has one NPU, and an engine that moves experts has it for itself.
        wrapping.wrap(table.MOVE_EXPERTS, self._around_move)
        wrapping.wrap(table.GATHER, self._choosing.around_gather)
        for hook in table.EXCHANGES if chooses(self.session.settings) else ():
            wrapping.wrap(hook, self._choosing.around_exchange)
        wrapping.wrap(table.EPLB_PROCESS, around_worker_process)
        wrapping.wrap(table.EPLB_MANAGER, around_manager)
        if needs_eplb(self.session.settings):
            wrapping.wrap(table.EPLB_WARM_UP, self._around_warm_up)
            wrapping.wrap(table.EPLB_FORWARD_END, self._around_forward_end)
        if self._recording is not None:
            wrapping.wrap(table.DUMMY_RUN, self._recording.around_dummy_run)
        for hook in initialize_hooks():
            wrapping.wrap(hook, around_initialize_model)

    # Loading.

    def answer_layer(self, eplb_config: Any, layer_id: int, *args: Any, **kwargs: Any) -> Answer:
        """Answer a layer by its place in its model; vllm-ascend's number goes on from one model to the next.

        Raises:
            EplbConfigError: it is made outside of vLLM's initialize_model.
        """
        question = Question.of(eplb_config, *args, **kwargs)
        if self._building is None:
            msg = (
                f"a MoE layer (number {layer_id} of this process) is made outside of vLLM's initialize_model; expected a "
                "loader that calls it: the plugin could not tell which model the layer is of. Take another load_format"
            )
            raise EplbConfigError(msg)
        is_draft = self._building == "draft"
        layout = None if is_draft else self.session.settings.layout
        maps = question.maps(len(self._asked), draft=is_draft, layout=layout)
        self._asked.append((question, rows_of(maps)))
        return answer(maps)

    def make_model(self, make: Callable[[], Any], model_config: Any) -> Any:
        """Let a model be made, and its layers get their maps; see `Backend`."""
        session = self.session
        # A loader that falls back to another makes the main model by a copy of its configuration.
        is_main = model_config is None or model_config is session.config.model_config
        if not is_main and getattr(model_config, "runner_type", None) == "draft":
            return self.build(make, draft=True)
        session.require_same_source()
        model = self.build(make, draft=False)
        assert session.source is not None
        self.say_active(describe(session.settings), session.source.digest)
        return model

    def build(self, make: Callable[[], Any], *, draft: bool) -> Any:
        """Let a model be made, with the rows of the placement that are its layers'; then watch it being loaded.

        Args:
            make: makes it.
            draft: whether it is a draft model.

        Raises:
            EplbConfigError: the map has another number of layers than the model.
        """
        self._building = "draft" if draft else "main"
        self._asked = []
        try:
            model = make()
        finally:
            self._building = None
        made = AskedModel(model, self._asked, fills_by_map=self._release.fills == "map")
        if draft and made.layers and needs_eplb(self.session.settings) and registered_layers() is not None:
            msg = (
                f"{type(model).__name__} is a draft model with {len(made.layers)} MoE layers, where vllm-ascend's EPLB is on (for "
                "dynamic, record_path, log_balancedness, or copies by layout); expected one without, or a static map: "
                f"vllm-ascend {self._release.vllm_ascend} moves and counts them among the main model's layers"
            )
            raise EplbConfigError(msg)
        if draft:
            self._draft = made
            return model
        self._main = made
        session = self.session
        first, count, total = session.ranks.stage(len(made.layers))
        source = session.source
        assert source is not None
        # A map with a layer too few or too many is refused here, before the weights are read.
        source.layers(first, count, total)
        if first and source.is_file:
            made.take_rows(first)
        made.first = first
        if self._plans:
            check_policy(
                session.settings.policy,
                source.layers(first, count, total),
                self._num_groups,
                session.ranks.num_nodes,
                session.settings.max_moves,
            )
        return model

    def finish_loading(self) -> None:
        """Compare slots with tables before anything is served; see `Backend`."""
        if not self.session.has_agreed:
            wrapping.require_called(*initialize_hooks())
        started = time.perf_counter()
        session = self.session
        # Each rank has tokens of its own; where every one has all of them, `Choosing` chooses alike.
        own = slot_rule(session, splits_tokens=True, is_main=True) if chooses(session.settings) else None
        for made in (self._draft, self._main):
            if made is not None:
                is_main = made is self._main
                proof = Proof(made, session.ranks)
                proof.compare_loaded(load_format=session.config.load_config.load_format)
                self._proof = proof if is_main else None
                self._choosing.follow(
                    made.layers,
                    proof.rows,
                    session.ranks.ep_rank,
                    own=own if is_main else None,
                    first=made.first,
                    is_main=is_main,
                )
        if self._main is not None:
            rows = [] if self._proof is None else self._proof.rows
            session.meter.placement = watching.placed(session.meter, rows, self._main.num_experts)
            session.meter.first_layer = self._main.first
            self.session.start_recording(len(self._main.layers), self._main.num_experts)
        if self.is_placed:
            self.session.advance(State.PLACED)
        logger.info("slots were compared with their experts in %.2f s", time.perf_counter() - started)

    # Serving.

    def _around_move(self, original: Callable[..., Any], mover: Any, *args: Any, **kwargs: Any) -> Any:
        """Compare a layer's slots once vllm-ascend has moved its experts and committed its maps."""
        if self._plans and self._planner is None:
            msg = f"experts are moved, but {table.EPLB_WARM_UP} was never called, so that vllm-ascend has planned"
            raise wrapping.UpstreamError(msg)
        moved = mover.layer_id
        before = None if self._proof is None else list(self._proof.rows)
        result = original(mover, *args, **kwargs)
        if moved == -1 or mover.layer_id != -1 or self._proof is None:
            return result  # nothing was due
        index = self._proof.compare_moved(mover.eplb_adaptor, moved)
        self._choosing.moved(index, self._proof.rows[index])
        if self._recording is not None:
            self._recording.moved(index, self._proof.rows[index])
        is_last = index == len(self._proof.rows) - 1
        # A plan that is the present placement is no rearrangement.
        moves = self._planner is None or self._planner.moves
        self.session.rearrangements += is_last and moves
        if before is not None and moves:
            assert self._main is not None
            rows, experts = self._proof.rows, self._main.num_experts
            watching.layer_moved(self.session.meter, before[index], rows, index, experts, is_last=is_last)
        return result

    @property
    def _plans(self) -> bool:
        """Whether this project's planner plans, and not vllm-ascend's."""
        settings = self.session.settings
        return bool(settings.dynamic) and settings.policy != VLLM_POLICY

    @property
    def _num_groups(self) -> int:
        """The router's expert groups, as the model's configuration names them."""
        return int(getattr(self.session.config.model_config.hf_text_config, "n_group", None) or 1)

    def _around_warm_up(self, original: Callable[..., Any], updator: Any) -> Any:
        """Once vllm-ascend's runner and its process know each other: plan in the process's place, and count."""
        result = original(updator)
        if self.session.meter.is_on:
            self.session.meter.slot_bytes = watching.slot_bytes(updator)
        if self._recording is not None and self._proof is not None:
            self._recording.begin(updator, self._proof.rows)
        settings = self.session.settings
        if settings.dynamic and not self._plans:
            return result
        made, source = self._main, self.session.source
        assert made is not None
        assert source is not None
        placement = source.layers(*self.session.ranks.stage(len(made.layers)))
        if settings.dynamic:
            logger.info("rearrangements are planned by expert-maps: %s", settings.policy or DEFAULT_POLICY)
        else:
            logger.info("experts stay where they are: vllm-ascend's EPLB is on, and is given nothing to move")
        planner = planner_for(self.session, updator, placement, made.tp_sizes(), self._num_groups)
        updator.eplb_process.planner_q = updator.eplb_process.block_update_q = self._planner = planner
        return result

    def _around_forward_end(
        self, original: Callable[..., Any], updator: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Count a step's load, and tell all ranks the plan where vllm-ascend asks for it in the next step."""
        if self._recording is None:
            result = original(updator, *args, **kwargs)
        else:
            result = self._recording.around_forward_end(original, updator, *args, **kwargs)
        if self._planner is not None and updator.get_update_info_flag():
            self._planner.share()
        return result

    def report(self, *, checksums: bool) -> dict[str, Any]:
        """Return what is served now; see `Backend`."""
        found = {} if self._proof is None else self._proof.report(checksums=checksums)
        recorder = self.session.recorder
        steps = recorder.num_rows if recorder else 0
        more = {"rearrangements": self.session.rearrangements, "recorded_steps": steps}
        return found and {**found, **more}


def _around_init_eplb_config(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    session = loading_session()
    return original(*args, **kwargs) if session is None else session.backend.answer_layer(*args, **kwargs)


__all__ = ["AscendV1"]
