# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The one table of releases: which vllm-ascend pairs with which vLLM, and what the plugin does there.

Doctor, README, contract, extras and the check at start read it; no other module compares versions. Importing it
loads neither vLLM nor vllm-ascend.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

# vLLM by itself, on a CPU, CUDA, ROCm or XPU.
VLLM = SpecifierSet(">=0.30,<0.34", prereleases=True)

_LAYER = "vllm_ascend.ops.fused_moe.fused_moe"
_LAYER_0_23 = "vllm_ascend.ops.fused_moe.fused_moe_0_23_0"
_ROUTED = "vllm_ascend.ops.fused_moe.routed_experts"


@dataclass(frozen=True)
class Release:
    """A release of vllm-ascend; facts of its source, of the runner V1 unless said otherwise.

    Attributes:
        vllm_ascend: its version.
        vllm: the vLLM that it pairs with.
        torch: the torch that it pins.
        torch_npu: the torch-npu that it pins.
        has_wheel: whether the package index has a wheel; if not, a source distribution.
        layers: the modules whose layers ask `init_eplb_config` for their maps.
        layout: its layout with redundant experts and without a map file: ``ring``, the copies from the last rank
            backwards, or ``append``, vLLM's own.
        layout_v2: the same under the runner V2; None where V2 is not known to have one.
        fills: what the loader fills slots by: the ``map`` that the layer was given, or ``append``, vLLM's own
            order, whatever the map says.
        forbids_unknown_keys: whether an additional config with a key that is not vllm-ascend's stops the start.
        has_heat_stage: whether ``eplb_heat_collection_stage`` is an option.
        heat_interval: its default ``expert_heat_collection_interval``, in steps.
        policy_type: its default ``eplb_policy_type``.
        one_copy_policies: the ``eplb_policy_type`` of the policies that fail with more redundant experts than ranks.
        profiles_slots: whether its profile run draws ids of slots, where a layer that is not quantised then looks
            them up as experts'.
        small_worlds_gather: whether an A5 takes the path AllGather where the world is no larger than the top k.
        lora_exchanges: whether LoRA with expert parallelism takes the path ALLTOALL on every chip.
        checked: ``ci``: served in every run of CI; ``all``: served by ``nox -s ascend -- --all``; ``contract``: hooks
            and schemas compared with its source.
    """

    vllm_ascend: str
    vllm: str
    torch: str
    torch_npu: str
    layers: tuple[str, ...]
    layout: Literal["ring", "append"]
    fills: Literal["map", "append"]
    has_wheel: bool = True
    layout_v2: Literal["ring", "append"] | None = None
    forbids_unknown_keys: bool = False
    has_heat_stage: bool = True
    heat_interval: int = 600
    policy_type: int = 2
    one_copy_policies: tuple[int, ...] = (1,)
    profiles_slots: bool = False
    small_worlds_gather: bool = True
    lora_exchanges: bool = False
    checked: Literal["ci", "all", "contract"] = "contract"


RELEASES = (
    Release(
        "0.18.0",
        "0.18.0",
        "2.9.0",
        "2.9.0",
        (_LAYER,),
        "ring",
        "map",
        has_heat_stage=False,
        heat_interval=400,
        policy_type=1,
        one_copy_policies=(1, 2),
        profiles_slots=True,
        small_worlds_gather=False,
        checked="all",
    ),
    Release(
        "0.22.1rc1",
        "0.22.1",
        "2.10.0",
        "2.10.0",
        (_LAYER,),
        "ring",
        "map",
        has_heat_stage=False,
        heat_interval=400,
        policy_type=1,
        checked="all",
    ),
    Release("0.23.0", "0.23.0", "2.10.0", "2.10.0.post4", (_LAYER, _LAYER_0_23), "ring", "map", checked="ci"),
    Release(
        "0.26.0rc1",
        "0.26.0",
        "2.10.0",
        "2.10.0.post4",
        (_LAYER,),
        "append",
        "append",
        lora_exchanges=True,
        checked="all",
    ),
    Release(
        "0.30.0rc2",
        "0.30.0",
        "2.10.0",
        "2.10.0.post4",
        (_ROUTED,),
        "append",
        "append",
        has_wheel=False,
        layout_v2="ring",
        forbids_unknown_keys=True,
        lora_exchanges=True,
        checked="ci",
    ),
)
NEWEST = RELEASES[-1]


def find(vllm_ascend: str | None) -> Release | None:
    """Return a release by vllm-ascend's version; None for an unknown one. A local part (+cpu) says nothing."""
    try:
        version = None if vllm_ascend is None else Version(Version(vllm_ascend).public)
    except InvalidVersion:
        return None
    return next((release for release in RELEASES if Version(release.vllm_ascend) == version), None)


def problem(vllm_ascend: str | None, vllm: str | None) -> str | None:
    """Say why a pair is not supported, with the table; None where it is."""
    release = find(vllm_ascend)
    if release is not None and vllm is not None and _same(vllm, release.vllm):
        return None
    pairs = ", ".join(f"{release.vllm_ascend} with {release.vllm}" for release in RELEASES)
    return (
        f"found vllm-ascend {vllm_ascend} with vLLM {vllm}; expected a pair that the plugin knows (vllm-ascend with "
        f"vLLM): {pairs}"
    )


def _same(found: str, expected: str) -> bool:
    try:
        return Version(Version(found).public) == Version(expected)
    except InvalidVersion:
        return False


__all__ = ["NEWEST", "RELEASES", "VLLM", "Release", "find", "problem"]
