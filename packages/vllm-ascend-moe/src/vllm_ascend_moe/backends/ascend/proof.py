# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The proof that vllm-ascend's layers serve right: slots are compared with their experts on all ranks of a stage.

Not known: what a checksum costs on a real NPU, and whether weights in a format of the device's own (NZ) read back as
they were written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from expert_maps import Placement
from vllm_ascend_moe._log import logger
from vllm_ascend_moe.backends.ascend.layers import placed
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
from vllm_ascend_moe.core.agreement import DisagreementError, gather

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vllm_ascend_moe.backends.ascend.model import AskedModel, Rows
    from vllm_ascend_moe.backends.ranks import Ranks

# Of many wrong slots so many are told.
_TOLD = 4


class Proof:
    """One model's slots, as they were when they were last compared.

    Attributes:
        rows: the expert in every slot of every rank, [L, R, slots]; empty before.
    """

    def __init__(self, made: AskedModel, ranks: Ranks) -> None:
        """Know nothing of its slots yet.

        Args:
            made: the model.
            ranks: this one's place among all.
        """
        self.rows: list[Rows] = []
        self._made = made
        self._ranks = ranks
        self._reference: list[Reference] = []
        # vllm-ascend's adaptor, once it has moved experts.
        self._adaptor: Any = None

    def compare_loaded(self, *, load_format: str) -> None:
        """Compare every slot with the expert that was read for it.

        Args:
            load_format: vLLM's; of ``dummy`` weights only the tables are compared.

        Raises:
            DisagreementError: a slot holds something else.
        """
        made, checks = self._made, load_format != "dummy"
        if checks and made.layers and not made.watch.has_read:
            logger.warning(
                "load_format %s reads no weights by name: copies of an expert are compared with each other, and no slot "
                "with the checkpoint",
                load_format,
            )

        def read() -> list[SlotState]:
            return [
                read_state(
                    layer,
                    made.watch.problems(index, layer.row()) if checks else [],
                    sums=checks,
                    without=made.watch.unread(index),
                )
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
        self.rows = [[state.row for state in states] for states in by_layer]
        self._reference = [reference_of(states) for states in by_layer]

    def compare_moved(self, adaptor: Any, moved: int) -> int:
        """After vllm-ascend has moved a layer's experts and committed its maps, compare its slots.

        It costs one pass over the layer's experts and one exchange of some hundred numbers between ranks.

        Args:
            adaptor: vllm-ascend's.
            moved: the layer by vllm-ascend's number; some releases number layers with the dense ones before them.

        Returns:
            the layer's index among those of this stage.

        Raises:
            DisagreementError: a slot holds something else than its expert.
        """
        self._adaptor = adaptor
        index = sorted(adaptor.expert_param_per_layer).index(moved)
        layer, reference = self._made.layers[index], self._reference[index]

        def read() -> list[SlotState]:
            row = placed(adaptor.expert_map_per_layer_cpu[moved])
            problems = moved_wrongly(row, self._moved_sums(index, moved), reference)
            return [read_state(layer, problems, row=row, sums=False)]

        ranks = [states[0] for states in self._tell(read)]
        self._stop_if(list(wrong_slots(self._made.first + index, ranks)), "after vllm-ascend's rearrangement")
        self.rows[index] = [state.row for state in ranks]
        return index

    def report(self, *, checksums: bool) -> dict[str, Any]:
        """Return what is served now, read from this rank's layers: plain values, none without expert parallelism.

        Args:
            checksums: also read this rank's slots.
        """
        if not all(map(all, self.rows)) or not self.rows:
            return {}
        rows, wrong, sums = [], [], []
        for index, layer in enumerate(self._made.layers):
            row = self._live_row(index)
            ranks = [SlotState(held, None) for held in self.rows[index]]
            own = ranks[self._ranks.ep_rank] = read_state(layer, row=row, sums=False)
            if checksums:
                found = self._served_sums(index)
                own.problems.extend(moved_wrongly(row, found, self._reference[index]))
                sums.append(one_per_slot(found, len(row)))
            rows.append([state.row for state in ranks])
            # As it was when it was last compared: nothing else may have changed it.
            wrong += list(wrong_slots(self._made.first + index, ranks, self.rows[index]))
        placement = Placement.from_rank_lists(
            rows, num_logical_experts=1 + max(max(held) for held in rows[0])
        )
        return {
            "digest": placement.digest,
            "physical_to_logical": placement.physical_to_logical.tolist(),
            "num_redundant_experts": placement.num_redundant_experts,
            "wrong_slots": wrong,
        } | ({"slot_checksums": sums} if checksums else {})

    def _tell(self, read: Callable[[], list[SlotState]]) -> list[list[SlotState]]:
        """Return what every rank reads; what keeps one of them from reading stops all, so that none waits for it."""
        states, error = [], None
        try:
            states = read()
        except Exception as found:  # noqa: BLE001 - whatever it is, the other ranks are waiting
            logger.exception("this rank's slots could not be read")
            error = f"{type(found).__name__}: {found}"
        told = gather((states, error), self._ranks.cpu_group)
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

    def _moved_sums(self, index: int, key: int) -> dict[str, list[int]]:
        """Return the checksums of what vllm-ascend moves; a scale's other form, that is not used, stays behind."""
        addresses = {
            tensor.data_ptr() for slot in self._adaptor.expert_param_per_layer[key] for tensor in slot
        }
        slots = self._made.layers[index].slots()
        return slot_sums(
            {
                name: tensors
                for name, tensors in slots.items()
                if any(tensor.data_ptr() in addresses for tensor in tensors)
            }
        )

    def _live_row(self, index: int) -> list[int]:
        if self._adaptor is None:
            return self._made.layers[index].row()
        return placed(self._adaptor.expert_map_per_layer_cpu[self._key(index)])

    def _served_sums(self, index: int) -> dict[str, list[int]]:
        if self._adaptor is None:
            return slot_sums(self._made.layers[index].slots(), self._made.watch.unread(index))
        return self._moved_sums(index, self._key(index))

    def _key(self, index: int) -> int:
        return int(sorted(self._adaptor.expert_param_per_layer)[index])


__all__ = ["Proof"]
