# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How few rounds a migration can have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expert_maps.migration.matching import members

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expert_maps.migration.need import Need, Ranks


def fewest_rounds(ranks: Ranks, needs: Sequence[Need]) -> int:
    """Return a number of rounds that no schedule is below, and say in each need who is to send its first copies.

    1. A rank receives one expert in a round: no fewer rounds than it lacks experts, over all layers.
    2. The first copy that a node gets of an expert is sent by a rank that holds it from the start: of this node, if there
       is one, else of any. A rank sends one in a round. These sends are spread so that no rank has more than it must.
    3. In a round each copy becomes two at most.
    """
    receives = [0] * ranks.count
    least = 0
    first: list[tuple[Need, int, int]] = []
    for need in needs:
        for rank in members(need.lacking):
            receives[rank] += 1
        first += [(need, *send) for send in _first_sends(ranks, need)]
        times = -(-(need.holders | need.lacking).bit_count() // need.holders.bit_count())
        least = max(least, (times - 1).bit_length())
    least = max(least, *receives) if receives else least
    sender = _spread([senders for _, senders, _ in first], ranks.count, least)
    sends = [0] * ranks.count
    for (need, _, scope), rank in zip(first, sender, strict=True):
        need.first[rank] = need.first.get(rank, 0) | scope
        sends[rank] += 1
    return max(least, *sends)


def _first_sends(ranks: Ranks, need: Need) -> list[tuple[int, int]]:
    """Return, of an expert, the first sends that must be: by one of which ranks, to one of which."""
    found = []
    rest = need.lacking
    while rest:
        node = ranks.node[(rest & -rest).bit_length() - 1]
        rest &= ~node
        if need.holders & node:
            found.append((need.holders & node, node))
    return found or [(need.holders, ranks.every)]


def _spread(choices: Sequence[int], num_ranks: int, least: int) -> list[int]:
    """Choose a rank for each of some tasks so that the most of any rank are as few as can be.

    What is at most ``least`` is good enough. A rank with most tasks hands one on along a shortest chain of ranks to one with at
    least two less. Where there is no such chain, the ranks that it leads to have only each other to choose from, and together
    so many tasks that one of them has the most.

    Args:
        choices: for each task the ranks that can do it.
        num_ranks: R.
        least: as said.
    """
    chosen = []
    count = [0] * num_ranks
    tasks: list[set[int]] = [set() for _ in range(num_ranks)]  # those that somebody else can do
    for task, choice in enumerate(choices):
        rank = min(members(choice), key=count.__getitem__)
        chosen.append(rank)
        count[rank] += 1
        if choice & (choice - 1):
            tasks[rank].add(task)
    while (most := max(count, default=0)) > least:
        if not _hand_on(count.index(most), choices, chosen, count, tasks):
            break
    return chosen


def _hand_on(
    start: int, choices: Sequence[int], chosen: list[int], count: list[int], tasks: list[set[int]]
) -> bool:
    came: dict[int, int] = {}  # rank → the task that brought the search there
    seen, queue = 1 << start, [start]
    for at in queue:
        for task in sorted(tasks[at]):
            new = members(choices[task] & ~seen)
            seen |= choices[task]
            came |= dict.fromkeys(new, task)
            queue += new
            end = min(new, key=count.__getitem__, default=start)
            if count[end] > count[start] - 2:
                continue
            count[end] += 1
            count[start] -= 1
            while end != start:
                handed = came[end]
                giver = chosen[handed]
                tasks[giver].remove(handed)
                tasks[end].add(handed)
                chosen[handed] = end
                end = giver
            return True
    return False
