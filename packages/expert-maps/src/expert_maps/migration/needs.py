# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What a migration needs: who holds what others lack, which copies must wait, and how few rounds there can be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from expert_maps.migration.bound import fewest_rounds
from expert_maps.migration.need import Need, Ranks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from expert_maps.placement import Placement


@dataclass(frozen=True)
class Needs:
    """All of a migration's needs.

    Attributes:
        ranks: the ranks and nodes.
        all: the needs.
        slot_of: (need, rank) → the slot [L · P] of a copy that a rank holds.
        goal_of: (need, rank) → the slot of its copy in the end.
        free: (layer, rank) → slots whose copy is not needed any more, where the rank gets something.
        lower_bound: no schedule has fewer rounds.
    """

    ranks: Ranks
    all: list[Need]
    slot_of: dict[tuple[int, int], int]
    goal_of: dict[tuple[int, int], int]
    free: dict[tuple[int, int], list[int]]
    lower_bound: int


def find_needs(before: Placement, after: Placement, num_nodes: int) -> Needs:
    """List what has to be sent from one placement to another of the same counts."""
    ranks = Ranks.on_nodes(before.ep_size, num_nodes)
    found = Needs(ranks, [], {}, {}, {}, 0)
    changed = (before.physical_to_logical != after.physical_to_logical).any(axis=1)
    for layer in np.flatnonzero(changed).tolist():
        _add_layer(found, layer, before, after)
    least = fewest_rounds(ranks, found.all)
    return Needs(ranks, found.all, found.slot_of, found.goal_of, found.free, least)


def _add_layer(found: Needs, layer: int, before: Placement, after: Placement) -> None:
    ranks, experts = before.ep_size, before.num_logical_experts
    rank_of = before.slot_rank
    old, new = before.physical_to_logical[layer], after.physical_to_logical[layer]
    # A cell for each rank and expert.
    had, gets = rank_of * experts + old, rank_of * experts + new
    held, wanted = np.zeros(ranks * experts, dtype=bool), np.zeros(ranks * experts, dtype=bool)
    held[had], wanted[gets] = True, True
    lacks = np.flatnonzero(wanted & ~held)
    needs = _needs_of(found.ranks, layer, experts, held, wanted, lacks)
    number = {need.expert: len(found.all) + i for i, need in enumerate(needs)}
    found.all.extend(needs)
    receiving = np.zeros(ranks, dtype=bool)
    receiving[lacks // experts] = True
    kept = {(need.expert, rank) for need in needs for rank in need.kept}
    base = layer * len(old)
    copy_of = _main_copies(had, old == new)
    old_experts, rank_list = old.tolist(), rank_of.tolist()
    stays = wanted[had].tolist()
    for slot, expert in enumerate(old_experts):
        rank = rank_list[slot]
        is_main = copy_of[slot]
        if is_main and expert in number:
            found.slot_of[number[expert], rank] = base + slot
        if receiving[rank] and not (is_main and (stays[slot] or (expert, rank) in kept)):
            found.free.setdefault((layer, rank), []).append(base + slot)
    is_goal = np.isin(gets, lacks)
    for slot in np.flatnonzero(is_goal).tolist():
        found.goal_of.setdefault((number[int(new[slot])], rank_list[slot]), base + slot)


def _main_copies(had: NDArray[np.int64], stays: NDArray[np.bool_]) -> list[bool]:
    """Say which slots are the copy that counts of their rank's expert: the others of that rank are free."""
    order = np.lexsort((~stays, had))  # one that keeps its slot, if there is one
    cells = had[order]
    main = np.zeros(len(had), dtype=bool)
    main[order[np.concatenate([[True], cells[1:] != cells[:-1]])]] = True
    found: list[bool] = main.tolist()
    return found


def _needs_of(
    ranks: Ranks,
    layer: int,
    experts: int,
    held: NDArray[np.bool_],
    wanted: NDArray[np.bool_],
    lacks: NDArray[np.int64],
) -> list[Need]:
    asked = np.unique(lacks % experts)
    by_expert = (_sets(cells.reshape(ranks.count, experts)[:, asked]) for cells in (held, wanted))
    needs = []
    for expert, holders, wishes in zip(asked.tolist(), *by_expert, strict=True):
        lacking, settled = wishes & ~holders, wishes & holders
        kept = _kept(ranks, holders, lacking, settled)
        needs.append(Need(layer, expert, holders, lacking, kept))
    return needs


def _sets(table: NDArray[np.bool_]) -> list[int]:
    """Return the set of rows of each column."""
    packed = np.packbits(table, axis=0, bitorder="little")
    return [int.from_bytes(column.tobytes(), "little") for column in packed.T]


def _kept(ranks: Ranks, holders: int, lacking: int, settled: int) -> dict[int, int]:
    """Say which copies, of those that are to go, must stay until somebody else has got one.

    On a node that lacks any, one stays until another rank of the node has it, so that nodes fetch no expert twice; if there
    is no such node, and no copy that stays, one stays until any rank has it, so that the expert is served all the time.
    """
    kept = {}
    rest = holders
    while rest:
        rank = (rest & -rest).bit_length() - 1
        node = ranks.node[rank]
        rest &= ~node
        if node & lacking and not node & settled:
            kept[rank] = node
    if not kept and not settled:
        kept[(holders & -holders).bit_length() - 1] = ranks.every
    return kept
