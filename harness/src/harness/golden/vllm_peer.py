# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The same maps by vLLM's own functions, where vLLM is installed."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np


def is_installed() -> bool:
    """Whether vLLM can be imported."""
    return importlib.util.find_spec("vllm") is not None


def expert_maps(options: dict[str, Any]) -> list[list[int]] | None:
    """Return every rank's expert map by vLLM's `determine_expert_map`, or None where it has no such layout."""
    if options.get("num_redundant_experts", 0) or options.get("num_shared_experts", 0):
        return None
    # ring and append without redundancy are linear.
    strategy = "round_robin" if options["layout"] == "round_robin" else "linear"
    from vllm.model_executor.layers.fused_moe.expert_map_manager import determine_expert_map

    return [
        determine_expert_map(options["ep_size"], rank, options["num_experts"], strategy)[1].tolist()
        for rank in range(options["ep_size"])
    ]


def initial_physical_to_logical(options: dict[str, Any]) -> list[int] | None:
    """Return the slots of one layer as vLLM's EPLB starts with them, or None for another layout."""
    if options["layout"] != "append" or options.get("num_shared_experts", 0):
        return None
    from vllm.distributed.eplb.eplb_state import EplbState

    return list(
        EplbState.build_initial_global_physical_to_logical_map(
            options["num_experts"], options.get("num_redundant_experts", 0)
        )
    )


def deepseek(load: list[list[float]], options: dict[str, Any]) -> list[list[int]]:
    """Return physical_to_logical by vLLM's copy of DeepSeek's policy."""
    import torch
    from vllm.distributed.eplb.policy.default import DefaultEplbPolicy

    groups, nodes = options.get("num_groups", 1), options.get("num_nodes", 1)
    if options["policy"] == "deepseek_global":
        groups, nodes = 1, 1
    planned = DefaultEplbPolicy.rebalance_experts(
        torch.tensor(np.array(load)), options["num_physical_experts"], groups, nodes, options["ep_size"]
    )
    rows: list[list[int]] = planned.tolist()
    return rows
