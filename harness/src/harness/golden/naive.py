# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Every map a second time: slowly, obviously, and without importing `expert_maps`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

RankLists = list[list[int]]


def layout(options: dict[str, Any]) -> RankLists:
    """Return the experts of each rank in slot order.

    Raises:
        KeyError: no layout of that name is here.
    """
    ranks = LAYOUTS[options["layout"]](
        options["num_experts"], options.get("num_redundant_experts", 0), options["ep_size"]
    )
    shared = options.get("num_shared_experts", 0)
    for rank in range(len(ranks) if shared else 0):
        ranks[rank].append(options["num_experts"] + rank % shared)
    return ranks


def _round_robin(experts: int, redundant: int, ep_size: int) -> RankLists:
    if redundant:
        msg = f"round_robin has no copies, not {redundant}"
        raise ValueError(msg)
    ranks: RankLists = [[] for _ in range(ep_size)]
    for expert in range(experts):
        ranks[expert % ep_size].append(expert)
    return ranks


def _append(experts: int, redundant: int, ep_size: int) -> RankLists:
    slots = list(range(experts)) + [copy % experts for copy in range(redundant)]
    return [list(map(int, part)) for part in np.array_split(slots, ep_size)]


def _ring(experts: int, redundant: int, ep_size: int) -> RankLists:
    ranks = _append(experts, 0, ep_size)
    rank = ep_size
    for _ in range(redundant):
        rank = rank - 1 if rank > 0 else ep_size - 1
        ranks[rank].append((ranks[rank][-1] + 1) % experts)
    return ranks


def _linear(experts: int, redundant: int, ep_size: int) -> RankLists:
    if redundant:
        msg = f"linear has no copies, not {redundant}"
        raise ValueError(msg)
    return _append(experts, 0, ep_size)


# A layout that `expert_maps` generates has its twin here, by its name.
LAYOUTS = {"append": _append, "linear": _linear, "ring": _ring, "round_robin": _round_robin}


def expert_maps(ranks: RankLists, num_experts: int) -> list[list[int]]:
    """Return logical → local slot of every rank, −1 where absent."""
    return [
        [slots.index(expert) if expert in slots else -1 for expert in range(num_experts)] for slots in ranks
    ]


def log2phys(ranks: RankLists, num_experts: int, tp_size: int) -> list[list[int]]:
    """Return logical → the physical expert that each rank sends to."""
    physical = [expert for slots in ranks for expert in slots]
    rows = []
    for ep_rank in range(len(ranks)):
        row = []
        for expert in range(num_experts):
            copies = [slot for slot, held in enumerate(physical) if held == expert]
            if tp_size == 1:
                choice = ep_rank % len(copies)
            else:
                choice = (ep_rank % tp_size + ep_rank // tp_size + expert) % len(copies)
            row.append(copies[choice])
        rows.append(row)
    return rows


def map_file(path: Path) -> list[RankLists]:
    """Return the experts of each layer and rank of a vllm-ascend map file."""
    with path.open(encoding="utf-8") as stream:
        document = json.load(stream)
    return [
        [list(device["device_expert"]) for device in layer["device_list"]] for layer in document["layer_list"]
    ]


def deepseek(load: list[list[float]], options: dict[str, Any]) -> list[RankLists]:
    """Plan one layer after another, in plain Python; float32 where DeepSeek EPLB has float32."""
    groups, nodes = options.get("num_groups", 1), options.get("num_nodes", 1)
    if groups % nodes or options["policy"] == "deepseek_global":
        groups, nodes = 1, 1
    return [
        _deepseek_layer(
            [np.float32(w) for w in row], options["num_physical_experts"], groups, nodes, options["ep_size"]
        )
        for row in load
    ]


def _deepseek_layer(weight: list[Any], slots: int, groups: int, nodes: int, ranks: int) -> RankLists:
    size = len(weight) // groups
    members = [list(range(g * size, (g + 1) * size)) for g in range(groups)]
    group_weight = [np.array([weight[e] for e in member], dtype=np.float32).sum() for member in members]
    placed: RankLists = []
    for node_groups in _pack(group_weight, nodes):
        experts = [expert for group in node_groups for expert in members[group]]
        copies = list(range(len(experts)))
        count = [1] * len(experts)
        while len(copies) < slots // nodes:
            share = [weight[e] / np.float32(n) for e, n in zip(experts, count, strict=True)]
            hottest = share.index(max(share))
            copies.append(hottest)
            count[hottest] += 1
        shares = [weight[experts[c]] / np.float32(count[c]) for c in copies]
        for pack in _pack(shares, ranks // nodes):
            placed.append([experts[copies[item]] for item in pack])
    return placed


def _pack(weight: list[Any], packs: int) -> list[list[int]]:
    """Put items, heaviest first, into the lightest pack with room."""
    room = len(weight) // packs
    if room == 1:
        return [[item] for item in range(packs)]
    result: list[list[int]] = [[] for _ in range(packs)]
    total = [np.float32(0)] * packs
    for item in sorted(range(len(weight)), key=lambda item: -weight[item]):
        open_packs = [pack for pack in range(packs) if len(result[pack]) < room]
        lightest = min(open_packs, key=lambda pack: total[pack])
        result[lightest].append(item)
        total[lightest] = np.float32(total[lightest] + weight[item])
    return result


def policy(load: list[list[float]], options: dict[str, Any]) -> list[RankLists]:
    """Plan by the twin of the policy that the options name.

    Raises:
        KeyError: no policy of that name is here.
    """
    return POLICIES[options["policy"]](load, options)


# A policy of `expert_maps` that has golden cases has its twin here, by its name.
POLICIES = dict.fromkeys(("deepseek", "deepseek_global", "deepseek_hierarchical"), deepseek)
