# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Which expert groups stay on which node. The twin of ``native/nodes.c``.

Every node takes equally many groups, and the hottest node is to carry as little as can be: branch and bound.
"""

from __future__ import annotations

from dataclasses import dataclass

from expert_maps.reference.layer import add_up, heaviest_first

# Of the search tree; beyond it the bound is the mean.
_MOST_VISITS = 20000


def sum_groups(load: list[float], num_groups: int) -> list[float]:
    """Return the load of each group: its experts follow each other."""
    size = len(load) // num_groups
    return [add_up(load[group * size : (group + 1) * size]) for group in range(num_groups)]


@dataclass
class _Search:
    """The state of the search: groups are numbered from the heaviest."""

    load: list[float]
    room: int
    enough: float
    sums: list[float]
    fill: list[int]
    trial: list[int]
    best: list[int]
    best_value: float
    visits: int = _MOST_VISITS

    def visit(self, group: int, value: float) -> None:
        """Try all nodes for a group, and go on with the next; ``value`` is the hottest node so far."""
        self.visits -= 1
        if self.visits < 0 or self.best_value <= self.enough:
            return
        if group == len(self.load):
            self.best, self.best_value = list(self.trial), value
            return
        for node in range(len(self.sums)):
            # Of nodes with the same load and room, the first stands for all; a node that gets too hot is no use.
            same = (self.sums[node], self.fill[node]) in zip(self.sums[:node], self.fill[:node], strict=True)
            total = self.sums[node] + self.load[group]
            if same or self.fill[node] == self.room or total >= self.best_value:
                continue
            before = self.sums[node]
            self.sums[node], self.trial[group] = total, node
            self.fill[node] += 1
            self.visit(group + 1, max(total, value))
            self.sums[node] = before
            self.fill[node] -= 1


def _greedy(load: list[float], num_nodes: int) -> tuple[list[int], float]:
    """Put the heaviest group first, each on the lightest node with room; returns the nodes and the hottest one's load."""
    room = len(load) // num_nodes
    sums, fill, node_of = [0.0] * num_nodes, [0] * num_nodes, []
    for group in load:
        node = min((n for n in range(num_nodes) if fill[n] < room), key=sums.__getitem__)
        sums[node] += group
        fill[node] += 1
        node_of.append(node)
    return node_of, max(sums)


def assign_groups(load: list[float], num_nodes: int, tolerance: float) -> tuple[list[int], float]:
    """Assign groups to nodes.

    Args:
        load: of each group.
        num_nodes: divides the groups.
        tolerance: a quarter of it above the mean is near enough.

    Returns:
        The node of each group, and what no assignment's hottest node is below.
    """
    # 1. The heaviest first, each to the lightest node: what there is to beat.
    order = heaviest_first(load)
    sorted_load = [load[group] for group in order]
    found, value = _greedy(sorted_load, num_nodes)
    # 2. All assignments, as far as none is left out that could be better.
    mean = add_up(sorted_load) / num_nodes
    search = _Search(
        load=sorted_load,
        room=len(load) // num_nodes,
        enough=mean * (1 + tolerance / 4),
        sums=[0.0] * num_nodes,
        fill=[0] * num_nodes,
        trial=[0] * len(load),
        best=found,
        best_value=value,
    )
    search.visit(0, 0.0)
    node_of = [0] * len(load)
    for group, node in zip(order, search.best, strict=True):
        node_of[group] = node
    # 3. Where all were seen the best is the bound; else the mean, or the heaviest group.
    if search.visits > 0 and search.best_value > search.enough:
        return node_of, search.best_value
    return node_of, max(mean, sorted_load[0])


def list_members(node_of: list[int], num_experts: int, num_nodes: int) -> list[list[int]]:
    """Return the experts of each node, in order."""
    size = num_experts // len(node_of)
    return [[e for e in range(num_experts) if node_of[e // size] == node] for node in range(num_nodes)]
