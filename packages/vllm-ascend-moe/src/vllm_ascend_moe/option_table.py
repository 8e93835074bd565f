# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Which option works where: the table of options × platforms, made by asking each platform's front.

Importing it loads neither vLLM nor vllm-ascend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from expert_maps import ExpertMapsError
from vllm_ascend_moe import releases
from vllm_ascend_moe.backends.ascend.front import AscendFront
from vllm_ascend_moe.backends.ascend.front_v2 import AscendV2Front
from vllm_ascend_moe.backends.cpu_front import CpuFront
from vllm_ascend_moe.backends.eplb_front import EplbFront
from vllm_ascend_moe.core.settings import VLLM_POLICY, ReplicaChoiceName, Settings

if TYPE_CHECKING:
    from vllm_ascend_moe.backends.interface import Front

COLUMNS = (
    "option",
    "vLLM on a CPU",
    "CUDA, ROCm, XPU",
    "beside vllm-ascend (runner V1)",
    "beside vllm-ascend (runner V2)",
)
WORKS = "works"
_DYNAMIC: dict[str, Any] = {"dynamic": True, "num_redundant_experts": 4}
_CHOICES: tuple[str, ...] = get_args(ReplicaChoiceName)
# What is tried: how the table names it, and the options with what they need beside them.
TRIED: dict[str, dict[str, Any]] = {
    "expert_map_path": {"expert_map_path": "map.json"},
    "layout round_robin": {"layout": "round_robin"},
    "layout round_robin, dynamic": {"layout": "round_robin", "dynamic": True},
    "layout append, dynamic, with copies": {"layout": "append", **_DYNAMIC},
    "num_redundant_experts": {"num_redundant_experts": 4, "dynamic": False},
    "num_redundant_experts, dynamic": _DYNAMIC,
    "dynamic": {"dynamic": True},
    "dynamic from a map": {"dynamic": True, "expert_map_path": "map.json"},
    "policy": {**_DYNAMIC, "policy": "balanced"},
    f"policy {VLLM_POLICY}": {**_DYNAMIC, "policy": VLLM_POLICY},
    "max_moves": {**_DYNAMIC, "max_moves": 8},
    "max_layers": {**_DYNAMIC, "max_layers": 2},
    "min_gain": {**_DYNAMIC, "min_gain": 0.1},
    f"max_layers, min_gain with policy {VLLM_POLICY}": {**_DYNAMIC, "policy": VLLM_POLICY, "max_layers": 2},
    "step_interval, window_size": {**_DYNAMIC, "step_interval": 3000, "window_size": 1000},
    "load_collection_phase": {**_DYNAMIC, "load_collection_phase": "decode"},
    "record_path": {"record_path": "load.npz"},
    "record_path, dynamic": {**_DYNAMIC, "record_path": "load.npz"},
    "record_interval": {"record_path": "load.npz", "record_interval": 10},
    "record_at_start": {"record_path": "load.npz", "record_at_start": False},
    **{
        f"replica_choice {name}": {
            "expert_map_path": "map.json",
            "replica_choice": name,
            **({"replica_weights_path": "weights.npz"} if name == "weighted" else {}),
        }
        for name in _CHOICES
    },
    "log_balancedness": {**_DYNAMIC, "log_balancedness": True},
    "log_balancedness_interval": {**_DYNAMIC, "log_balancedness": True, "log_balancedness_interval": 10},
    "metrics": {**_DYNAMIC, "metrics": True},
}


def _refusal(front: Front, options: dict[str, Any]) -> str | None:
    """Return why a platform refuses these options; None where it takes them."""
    try:
        front.settle(Settings(**options))
    except ExpertMapsError as error:
        return str(error)
    return None


def _cell(reason: str | None) -> str:
    return WORKS if reason is None else f"refused: {reason}"


def _beside_ascend(options: dict[str, Any]) -> str:
    """Say what all releases of vllm-ascend have in common, or from which on it works."""
    found = [(release, _refusal(AscendFront(release), options)) for release in releases.RELEASES]
    refused = [(release, reason) for release, reason in found if reason is not None]
    if not refused:
        return WORKS
    if len(refused) == len(found):
        return f"refused: {refused[-1][1]}"
    first = next(release for release, reason in found if reason is None)
    return f"{WORKS} from {first.vllm_ascend} on; before, refused: {refused[-1][1]}"


def rows() -> list[tuple[str, ...]]:
    """Return the lines of the table, a text for each column."""
    found = []
    for name, options in TRIED.items():
        fronts = (_refusal(front, options) for front in (CpuFront(), EplbFront()))
        cells = (_cell(reason) for reason in fronts)
        second = (
            _cell(_refusal(AscendV2Front(release), options))
            for release in releases.RELEASES
            if release.serves_v2
        )
        found.append((name, *cells, _beside_ascend(options), "; ".join(dict.fromkeys(second))))
    return found


def markdown() -> str:
    """Return the table as the page has it."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


__all__ = ["COLUMNS", "TRIED", "WORKS", "markdown", "rows"]
