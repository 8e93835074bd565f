# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Beside vllm-ascend's runner V1: its layers get their maps, and their slots are compared with them.

After loading, and after each layer that vllm-ascend moves, every rank tells its tables and its slots to the others, and
all of them stop where a slot does not hold the expert that the tables name.

Run beside the released vllm-ascend on an emulated NPU. Not known: what a checksum costs on a real one, and whether
weights in a format of the device's own (NZ) read back as they were written.
"""

from __future__ import annotations

import importlib
import time
from typing import TYPE_CHECKING, Any

from expert_maps import Placement
from vllm_ascend_moe import releases
from vllm_ascend_moe._log import logger
from vllm_ascend_moe.backends.ascend.answers import Answer, Question, answer
from vllm_ascend_moe.backends.ascend.layers import placed
from vllm_ascend_moe.backends.ascend.model import AskedModel, Rows, initialize_hooks, rows_of
from vllm_ascend_moe.backends.ascend.process import around_manager, around_worker_process
from vllm_ascend_moe.backends.ascend.slots import (
    Reference,
    SlotState,
    moved_wrongly,
    one_per_slot,
    read_state,
    reference_of,
    slot_sums,
    wrong_slots,
)
from vllm_ascend_moe.backends.eplb_hooks import around_initialize_model
from vllm_ascend_moe.backends.interface import Backend
from vllm_ascend_moe.core.activation import vllm_version
from vllm_ascend_moe.core.agreement import DisagreementError, gather
from vllm_ascend_moe.core.session import State, loading_session
from vllm_ascend_moe.core.settings import describe
from vllm_ascend_moe.eplb import EplbConfigError
from vllm_ascend_moe.hooks import table, wrapping

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vllm_ascend_moe.core.session import Session

# Of many wrong slots so many are told.
_TOLD = 4


class AscendV1(Backend):
    """The experts of one engine in vllm-ascend's layers.

    Attributes:
        rows: the expert in every slot of every rank, [L, R, slots], as the tables said when they were last compared;
            empty before.
    """

    def __init__(self, session: Session) -> None:
        """Know the release of vllm-ascend, and nothing of a model yet.

        Raises:
            UpstreamError: the release is not in the table.
        """
        super().__init__(session)
        found = wrapping.vllm_ascend_version()
        release = releases.find(found)
        if release is None:
            raise wrapping.UpstreamError(releases.problem(found, vllm_version()))
        self.rows: list[Rows] = []
        self._release = release
        self._building: str | None = None
        self._asked: list[tuple[Question, Rows | None]] = []
        self._main: AskedModel | None = None
        self._draft: AskedModel | None = None
        self._reference: list[Reference] = []
        # vllm-ascend's adaptor, once it has moved experts.
        self._adaptor: Any = None

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
        )
        wrapping.check_hooks((*table.BESIDE_ASCEND, *asks, *called))
        self._forget_engine()
        for hook in asks:
            wrapping.wrap(hook, _around_init_eplb_config)
        # One process has one NPU, and an engine that moves experts has it for itself.
        wrapping.wrap(table.MOVE_EXPERTS, self._around_move)
        wrapping.wrap(table.EPLB_PROCESS, around_worker_process)
        wrapping.wrap(table.EPLB_MANAGER, around_manager)
        for hook in initialize_hooks():
            wrapping.wrap(hook, around_initialize_model)

    def _forget_engine(self) -> None:
        """Let vllm-ascend number its layers anew: an engine before this one has left its own in the process."""
        for name in self._release.layers:
            for value in list(vars(importlib.import_module(name)).values()):
                if isinstance(value, type) and "moe_counter" in vars(value):
                    value.moe_counter = -1  # type: ignore[attr-defined]
        adaptor = importlib.import_module("vllm_ascend.eplb.adaptor.vllm_adaptor").VllmEplbAdaptor
        if hasattr(adaptor, "_registered_moe_layers"):
            adaptor._registered_moe_layers.clear()  # noqa: SLF001 - vllm-ascend never does

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
        maps = question.maps(len(self._asked), draft=self._building == "draft")
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
        made = AskedModel(model, self._asked)
        if draft:
            self._draft = made
            return model
        self._main = made
        first, count, total = self.session.ranks.stage(len(made.layers))
        source = self.session.source
        assert source is not None
        # A map with a layer too few or too many is refused here, before the weights are read.
        source.layers(first, count, total)
        if first and source.is_file:
            made.take_rows(first)
        made.first = first
        return model

    def finish_loading(self) -> None:
        """Compare slots with tables before anything is served; see `Backend`."""
        if not self.session.has_agreed:
            wrapping.require_called(*initialize_hooks())
        started = time.perf_counter()
        checks = self.session.config.load_config.load_format != "dummy"
        for made in (self._draft, self._main):
            if made is not None:
                self._compare(made, checks=checks)
        if self.is_placed:
            self.session.advance(State.PLACED)
        logger.info("slots were compared with their experts in %.2f s", time.perf_counter() - started)

    def _compare(self, made: AskedModel, *, checks: bool) -> None:
        if checks and made.layers and not made.watch.has_read:
            logger.warning(
                "load_format %s reads no weights by name: copies of an expert are compared with each other, and no slot "
                "with the checkpoint",
                self.session.config.load_config.load_format,
            )

        def read() -> list[SlotState]:
            return [
                read_state(layer, made.watch.problems(index, layer.row()) if checks else [], sums=checks)
                for index, layer in enumerate(made.layers)
            ]

        ranks = self._tell(read)
        by_layer = [[states[index] for states in ranks] for index in range(len(made.layers))]
        wrong = [
            line
            for index, states in enumerate(by_layer)
            for line in wrong_slots(made.first + index, states, made.wanted(index))
        ]
        self._stop_if(wrong, "after loading")
        if made is self._main:
            self.rows = [[state.row for state in states] for states in by_layer]
            self._reference = [reference_of(states) for states in by_layer]

    def _tell(self, read: Callable[[], list[SlotState]]) -> list[list[SlotState]]:
        """Return what every rank reads; what keeps one of them from reading stops all, so that none waits for it."""
        states, error = [], None
        try:
            states = read()
        except Exception as found:  # noqa: BLE001 - whatever it is, the other ranks are waiting
            logger.exception("this rank's slots could not be read")
            error = f"{type(found).__name__}: {found}"
        told = gather((states, error), self.session.ranks.cpu_group)
        failed = [f"rank {rank}: {entry[1]}" for rank, entry in enumerate(told) if entry[1] is not None]  # type: ignore[index]
        self._stop_if(failed, "slots could not be read")
        return [entry[0] for entry in told]  # type: ignore[index]

    def _stop_if(self, wrong: Sequence[str], when: str) -> None:
        """Stop, in the same words on every rank of this stage."""
        if wrong:
            more = f" (and {len(wrong) - _TOLD} more)" if len(wrong) > _TOLD else ""
            msg = f"{when}: {'; '.join(wrong[:_TOLD])}{more}"
            logger.critical(msg)
            raise DisagreementError(msg)

    # Moving.

    def _around_move(self, original: Callable[..., Any], mover: Any, *args: Any, **kwargs: Any) -> Any:
        """After vllm-ascend has moved a layer's experts and committed its maps: compare its slots.

        It costs one pass over the layer's experts and one exchange of some hundred numbers between ranks.
        """
        moved = mover.layer_id
        result = original(mover, *args, **kwargs)
        if moved == -1 or mover.layer_id != -1 or self._main is None:
            return result  # nothing was due
        adaptor = self._adaptor = mover.eplb_adaptor
        # Some releases number layers with the dense ones before them.
        index = sorted(adaptor.expert_param_per_layer).index(moved)
        layer, reference = self._main.layers[index], self._reference[index]

        def read() -> list[SlotState]:
            row = placed(adaptor.expert_map_per_layer_cpu[moved])
            problems = moved_wrongly(row, self._moved_sums(index, moved), reference)
            return [read_state(layer, problems, row=row, sums=False)]

        ranks = [states[0] for states in self._tell(read)]
        self._stop_if(list(wrong_slots(self._main.first + index, ranks)), "after vllm-ascend's rearrangement")
        self.rows[index] = [state.row for state in ranks]
        self.session.rearrangements += index == len(self._main.layers) - 1
        return result

    def _moved_sums(self, index: int, key: int) -> dict[str, list[int]]:
        """Return the checksums of what vllm-ascend moves; a scale's other form, that is not used, stays behind."""
        assert self._main is not None
        addresses = {
            tensor.data_ptr() for slot in self._adaptor.expert_param_per_layer[key] for tensor in slot
        }
        slots = self._main.layers[index].slots()
        return slot_sums(
            {
                name: tensors
                for name, tensors in slots.items()
                if any(tensor.data_ptr() in addresses for tensor in tensors)
            }
        )

    # Reporting.

    def report(self, *, checksums: bool) -> dict[str, Any]:
        """Return what is served now, read from this rank's layers: plain values.

        Args:
            checksums: also read this rank's slots.
        """
        if self._main is None or not all(map(all, self.rows)) or not self.rows:
            return {}  # nothing is loaded yet, or there is no expert parallelism
        rank = self.session.ranks.ep_rank
        rows, wrong, sums = [], [], []
        for index, layer in enumerate(self._main.layers):
            row = self._live_row(index)
            ranks = [SlotState(held, None) for held in self.rows[index]]
            ranks[rank] = read_state(layer, row=row, sums=False)
            if checksums:
                found = self._served_sums(index)
                ranks[rank].problems.extend(moved_wrongly(row, found, self._reference[index]))
                sums.append(one_per_slot(found, len(row)))
            rows.append([state.row for state in ranks])
            # As it was when it was last compared: nothing else may have changed it.
            wrong += list(wrong_slots(self._main.first + index, ranks, self.rows[index]))
        placement = Placement.from_rank_lists(
            rows, num_logical_experts=1 + max(max(held) for held in rows[0])
        )
        return {
            "digest": placement.digest,
            "physical_to_logical": placement.physical_to_logical.tolist(),
            "num_redundant_experts": placement.num_redundant_experts,
            "rearrangements": self.session.rearrangements,
            "recorded_steps": 0,
            "wrong_slots": wrong,
        } | ({"slot_checksums": sums} if checksums else {})

    def _live_row(self, index: int) -> list[int]:
        assert self._main is not None
        if self._adaptor is None:
            return self._main.layers[index].row()
        return placed(self._adaptor.expert_map_per_layer_cpu[self._key(index)])

    def _served_sums(self, index: int) -> dict[str, list[int]]:
        assert self._main is not None
        if self._adaptor is None:
            return slot_sums(self._main.layers[index].slots())
        return self._moved_sums(index, self._key(index))

    def _key(self, index: int) -> int:
        return int(sorted(self._adaptor.expert_param_per_layer)[index])


def _around_init_eplb_config(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    session = loading_session()
    return original(*args, **kwargs) if session is None else session.backend.answer_layer(*args, **kwargs)


__all__ = ["AscendV1"]
