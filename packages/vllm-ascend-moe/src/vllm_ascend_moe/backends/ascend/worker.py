# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""One worker of vllm-ascend's runner V1: its layers get their maps, and their slots are compared with them.

After loading, and after each layer that vllm-ascend moves, every rank tells its tables and its slots to the others, and
all of them stop where a slot does not hold the expert that the tables name.

Run beside the released vllm-ascend on an emulated NPU. Not known: what a checksum costs on a real one, and whether
weights in a format of the device's own (NZ) read back as they were written.
"""

from __future__ import annotations

import importlib
import sys
import time
from typing import TYPE_CHECKING, Any

from expert_maps import Placement
from vllm_ascend_moe._log import logger
from vllm_ascend_moe.backends.ascend.answers import Answer, Question, answer
from vllm_ascend_moe.backends.ascend.layers import find_layers, placed
from vllm_ascend_moe.backends.ascend.loading import LoadWatch
from vllm_ascend_moe.backends.ascend.process import around_manager, around_worker_process
from vllm_ascend_moe.backends.ascend.slots import (
    Reference,
    SlotState,
    moved_wrongly,
    read_state,
    reference_of,
    slot_sums,
    wrong_slots,
)
from vllm_ascend_moe.core.agreement import DisagreementError, gather
from vllm_ascend_moe.eplb import EplbConfigError
from vllm_ascend_moe.hooks import table, wrapping

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vllm_ascend_moe.backends.serving import Serving
    from vllm_ascend_moe.eplb import EplbMaps
    from vllm_ascend_moe.releases import Release

# The expert in each slot of each rank, of one layer.
Rows = list[list[int]]
# Of many wrong slots so many are told.
_TOLD = 4


class _Model:
    """One model on this rank: its layers, what they asked for, and the watch over their loading."""

    def __init__(self, model: Any, asked: list[tuple[Question, Rows | None]]) -> None:
        self.layers = find_layers(model)
        if len(self.layers) != len(asked):
            msg = (
                f"{type(model).__name__} has {len(self.layers)} MoE layers, and {len(asked)} asked for their maps; "
                "expected as many"
            )
            raise EplbConfigError(msg)
        self._asked = asked
        self.first = 0
        self.watch = LoadWatch(model, self.layers)

    def take_rows(self, first: int) -> None:
        """Write the maps of a later pipeline stage over those of the first; shapes are the same in all rows."""
        self.first = first
        for index, (layer, (question, _)) in enumerate(zip(self.layers, list(self._asked), strict=True)):
            maps = question.maps(first + index)
            layer.write(maps)
            self._asked[index] = (question, _rows(maps))

    def wanted(self, index: int) -> Rows | None:
        """Return the expert in each slot of each rank, as the placement has it; None without expert parallelism."""
        return self._asked[index][1]


def _rows(maps: EplbMaps) -> Rows | None:
    """Read the maps at once: the layer may get these very tensors, and change them."""
    everywhere = maps.global_expert_map
    return None if everywhere is None else [placed(row) for row in everywhere]


class AscendWorker:
    """The plugin in one worker.

    Attributes:
        rows: the expert in every slot of every rank, [L, R, slots], as the tables said when they were last compared;
            empty before.
        rearrangements: how often vllm-ascend has moved the experts of all layers.
    """

    def __init__(self, serving: Serving, release: Release) -> None:
        """Know nothing of a model yet.

        Args:
            serving: what this is part of.
            release: vllm-ascend's.
        """
        self.rows: list[Rows] = []
        self.rearrangements = 0
        self._serving = serving
        self._release = release
        self._building: str | None = None
        self._asked: list[tuple[Question, Rows | None]] = []
        self._main: _Model | None = None
        self._draft: _Model | None = None
        self._reference: list[Reference] = []
        # vllm-ascend's adaptor, once it has moved experts.
        self._adaptor: Any = None

    @property
    def has_maps(self) -> bool:
        """Whether layers serve maps of the plugin's; not where vLLM's linear expert parallelism is all there is."""
        return self._main is not None and any(layer.log2phy is not None for layer in self._main.layers)

    def install(self, around_initialize_model: Callable[..., Any]) -> None:
        """Check vllm-ascend and put the hooks in place.

        Args:
            around_initialize_model: the serving's.

        Raises:
            UpstreamError: a function does not fit; nothing is installed.
        """
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
            wrapping.wrap(hook, self._around_init)
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

    def _around_init(
        self,
        original: Callable[..., Any],  # noqa: ARG002 - replaced
        eplb_config: Any,
        layer_id: int,
        *args: Any,
        **kwargs: Any,
    ) -> Answer:
        """Answer by the layer's place in its model; vllm-ascend's number goes on from one model to the next."""
        question = Question.of(eplb_config, *args, **kwargs)
        if self._building is None:
            msg = (
                f"a MoE layer (number {layer_id} of this process) is made outside of vLLM's initialize_model; expected a "
                "loader that calls it: the plugin could not tell which model the layer is of. Take another load_format"
            )
            raise EplbConfigError(msg)
        maps = question.maps(len(self._asked), draft=self._building == "draft")
        self._asked.append((question, _rows(maps)))
        return answer(maps)

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
        made = _Model(model, self._asked)
        if draft:
            self._draft = made
            return model
        self._main = made
        first, count, total = self._serving.ranks.stage(len(made.layers))
        source = self._serving.source
        assert source is not None
        # A map with a layer too few or too many is refused here, before the weights are read.
        source.layers(first, count, total)
        if first and source.is_file:
            made.take_rows(first)
        made.first = first
        return model

    def load(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around the worker's load_model: let it load, then compare slots with tables before anything is served.

        Raises:
            DisagreementError: a slot does not hold what the tables name, on all ranks.
        """
        result = original(*args, **kwargs)
        started = time.perf_counter()
        checks = self._serving.config.load_config.load_format != "dummy"
        for made in (self._draft, self._main):
            if made is not None:
                self._compare(made, checks=checks)
        logger.info("slots were compared with their experts in %.2f s", time.perf_counter() - started)
        return result

    def _compare(self, made: _Model, *, checks: bool) -> None:
        if checks and made.layers and not made.watch.has_read:
            logger.warning(
                "load_format %s reads no weights by name: copies of an expert are compared with each other, and no slot "
                "with the checkpoint",
                self._serving.config.load_config.load_format,
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
        told = gather((states, error), self._serving.ranks.cpu_group)
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
        self.rearrangements += index == len(self._main.layers) - 1
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
        rank = self._serving.ranks.ep_rank
        rows, wrong, sums = [], [], []
        for index, layer in enumerate(self._main.layers):
            row = self._live_row(index)
            ranks = [SlotState(held, None) for held in self.rows[index]]
            ranks[rank] = read_state(layer, row=row, sums=False)
            if checksums:
                found = self._served_sums(index)
                ranks[rank].problems.extend(moved_wrongly(row, found, self._reference[index]))
                sums.append(_one_per_slot(found, len(row)))
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
            "rearrangements": self.rearrangements,
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


def _one_per_slot(sums: dict[str, list[int]], slots: int) -> list[str]:
    """Return one checksum for each slot, in hex: not every transport carries integers of 64 bits."""
    found = []
    for slot in range(slots):
        total = 0
        for name in sorted(sums):
            total = total * 31 + sums[name][slot]
        found.append(f"{total % 2**64:016x}")
    return found


def initialize_hooks() -> list[table.Hook]:
    """Return every place where a loader may find vLLM's initialize_model: some import it by its name."""
    name, parameters = table.INITIALIZE_MODEL.name, table.INITIALIZE_MODEL.parameters
    found = {table.INITIALIZE_MODEL, table.INITIALIZE_MODEL_UTIL}
    made = {wrapping.original(hook) for hook in found}
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith(("vllm.", "vllm_ascend.")) and name in getattr(module, "__dict__", {}):
            hook = table.Hook(module_name, name, parameters)
            if wrapping.original(hook) in made:
                found.add(hook)
    return sorted(found, key=str)


__all__ = ["AscendWorker", "initialize_hooks"]
