# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Which copy a batch's tokens take in vllm-ascend's layers, and its path AllGather with any map.

vllm-ascend's layer sends every token of a rank to one copy of an expert, that of its log2phy. Where a batch enters one of its
ways to exchange tokens, the physical ids are replaced here by those that are chosen, by the token's turn.

On the path AllGather every rank has all tokens, and computes those of its own slots. By itself vllm-ascend looks ids of slots
up in a map of experts there, so that any but the linear map is served with wrong experts; and each rank would choose by a
table of its own, so that a token could be computed twice or by nobody. There a batch gets this rank's slots by their own
ids, and copies by a table that is the same on all ranks.

Run on emulated A2 and A3.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from expert_maps import Placement
from vllm_ascend_moe.core.replicas import BY_RANK, SlotRule, written_out
from vllm_ascend_moe.hooks.wrapping import UpstreamError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vllm_ascend_moe.backends.ascend.layers import MoELayer
    from vllm_ascend_moe.backends.ascend.model import Rows

# The period in tokens in which copies take turns. It is the same for every placement, so that tables are written in place,
# where a captured graph reads them; shares of n copies differ by a token in so many.
PERIOD = 128


@dataclasses.dataclass(frozen=True)
class Rules:
    """By which copies are chosen.

    Attributes:
        agreed: where every rank has all tokens; the same on all ranks.
        own: where each rank has its own; None for vllm-ascend's log2phy.
    """

    agreed: SlotRule
    own: SlotRule | None

    @classmethod
    def of(cls, own: SlotRule | None) -> Rules:
        """Make them from the one that was asked for; None for none."""
        if own is None or own.choice in BY_RANK:
            return cls(SlotRule("rank_offset", ranks_must_agree=True), own)
        return cls(dataclasses.replace(own, turn=0, ranks_must_agree=True), own)


class Tables:
    """What one layer's batches are looked up in, on the layer's device.

    Attributes:
        own_slots: int32 [P], physical → local slot, −1 where it is another rank's.
        agreed: int32 [PERIOD, P], by the token's turn and the physical expert that this rank's log2phy chose: the one
            that all ranks choose; None without redundant experts.
        own: the same for tokens that this rank alone has; None where log2phy decides.
    """

    def __init__(self, rules: Rules, layer: int, rows: Rows, ep_rank: int, device: torch.device) -> None:
        """Make them.

        Args:
            rules: see there.
            layer: the layer's index, among those that there are weights for.
            rows: the expert in each slot of each rank.
            ep_rank: this rank.
            device: where the layer's map is.
        """
        width = len(rows[ep_rank])
        own = torch.full((width * len(rows),), -1, dtype=torch.int32)
        own[ep_rank * width : (ep_rank + 1) * width] = torch.arange(width, dtype=torch.int32)
        self.own_slots = own.to(device)
        self._rules, self._layer = rules, layer
        agreed, chosen = self._made(rows)
        self.agreed = None if agreed is None else agreed.to(device)
        self.own = None if chosen is None else chosen.to(device)

    def write(self, rows: Rows) -> None:
        """Follow experts that have moved; this rank's slots stay where they are."""
        for held, made in zip((self.agreed, self.own), self._made(rows), strict=True):
            if held is not None:
                assert made is not None
                held.copy_(made)

    def _made(self, rows: Rows) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        placement = Placement.from_rank_lists([rows], num_logical_experts=1 + max(map(max, rows)))
        if not placement.num_redundant_experts:
            return None, None
        own = self._rules.own
        return (
            _written(self._rules.agreed, placement, self._layer),
            None if own is None else _written(own, placement, self._layer),
        )

    def gathered(self, given: Any) -> Any:
        """Return vllm-ascend's input of a batch that every rank has, with ids and the map that they are looked up in."""
        routing = dataclasses.replace(given.routing, expert_map=self.own_slots, global_redundant_expert_num=0)
        return dataclasses.replace(given, topk_ids=_chosen(self.agreed, given.topk_ids), routing=routing)

    def exchanged(self, given: Any) -> Any:
        """Return vllm-ascend's input of a batch that this rank alone has, with the ids that were asked for."""
        return dataclasses.replace(given, topk_ids=_chosen(self.own, given.topk_ids))


def _written(rule: SlotRule, placement: Placement, layer: int) -> torch.Tensor:
    slots, count = (array[0] for array in rule.tables(placement, layer))
    table = written_out(slots, count, PERIOD)
    return torch.from_numpy(table[:, placement.physical_to_logical[0]])


def _chosen(table: torch.Tensor | None, ids: torch.Tensor) -> torch.Tensor:
    if table is None:
        return ids
    turn = torch.arange(len(ids), device=ids.device) % PERIOD
    return table[turn[:, None], ids.long()].to(ids.dtype)


class Choosing:
    """The layers of an engine, by the maps that their batches come with."""

    def __init__(self) -> None:
        """Know no layer yet."""
        # By where its map is: of a batch, only that says which layer it is in.
        self._layers: dict[int, tuple[torch.Tensor, Tables | None]] = {}
        self._by_index: list[Tables | None] = []

    def follow(
        self,
        layers: Sequence[MoELayer],
        rows: Sequence[Rows],
        ep_rank: int,
        *,
        own: SlotRule | None = None,
        first: int = 0,
        is_main: bool = True,
    ) -> None:
        """Take up a model's layers once they are loaded.

        Args:
            layers: the model's, on this rank.
            rows: the expert in each slot of each rank, by layer.
            ep_rank: this rank.
            own: how it chooses among copies for tokens that it alone has; None for as vllm-ascend does.
            first: index of the first of them among those of all pipeline stages.
            is_main: whether it is the model whose experts may move.
        """
        rules, made = Rules.of(own), []
        for index, (layer, held) in enumerate(zip(layers, rows, strict=True)):
            expert_map = layer.expert_map
            if expert_map is None:
                continue
            # Without log2phy it is vLLM's linear map, and ids are experts' as well as slots'.
            tables = None
            if layer.log2phy is not None:
                tables = Tables(rules, first + index, held, ep_rank, expert_map.device)
            self._layers[expert_map.data_ptr()] = (expert_map, tables)
            made.append(tables)
        if is_main:
            self._by_index = made

    def moved(self, index: int, rows: Rows) -> None:
        """Follow the main model's layer once its experts have moved."""
        tables = self._by_index[index]
        if tables is not None:
            tables.write(rows)

    def around_gather(self, original: Callable[..., Any], dispatcher: Any, token_dispatch_input: Any) -> Any:
        """Let a batch enter the path on which every rank has all tokens.

        Raises:
            UpstreamError: it is in none of the layers that were loaded, so that its slots are not known.
        """
        tables = self._tables(token_dispatch_input)
        given = token_dispatch_input if tables is None else tables.gathered(token_dispatch_input)
        return original(dispatcher, given)

    def around_exchange(
        self, original: Callable[..., Any], dispatcher: Any, token_dispatch_input: Any
    ) -> Any:
        """Let a batch enter a path on which each rank has tokens of its own; see `around_gather`."""
        tables = self._tables(token_dispatch_input)
        given = token_dispatch_input if tables is None else tables.exchanged(token_dispatch_input)
        return original(dispatcher, given)

    def _tables(self, given: Any) -> Tables | None:
        expert_map = given.routing.expert_map
        if expert_map is None or not self._layers:
            return None
        found = self._layers.get(expert_map.data_ptr())
        if found is None:
            msg = (
                f"a batch comes with a map {list(expert_map.shape)} that is none of the {len(self._layers)} layers'; "
                "expected the map that its layer had after loading"
            )
            raise UpstreamError(msg)
        return found[1]


__all__ = ["PERIOD", "Choosing", "Rules", "Tables"]
