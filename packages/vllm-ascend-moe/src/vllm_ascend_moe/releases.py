# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The one table of releases: which vllm-ascend pairs with which vLLM, and what the plugin does there.

Doctor, README, contract, extras and the check at start read it; no other module compares versions. Importing it
loads neither vLLM nor vllm-ascend.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

# vLLM by itself, on a CPU, CUDA, ROCm or XPU.
VLLM = SpecifierSet(">=0.30,<0.34", prereleases=True)

_LAYER = "vllm_ascend.ops.fused_moe.fused_moe"
_LAYER_0_23 = "vllm_ascend.ops.fused_moe.fused_moe_0_23_0"
_ROUTED = "vllm_ascend.ops.fused_moe.routed_experts"

Layout = Literal["ring", "append"]


@dataclass(frozen=True)
class Release:
    """A release of vllm-ascend; facts of its source, of the runner V1 unless said otherwise.

    Attributes:
        vllm_ascend: its version.
        vllm: the vLLM that it pairs with, by its own documentation.
        torch: the torch that it pins.
        torch_npu: the torch-npu that it pins.
        has_wheel: whether the package index has a wheel; if not, a source distribution.
        layers: the modules whose layers ask `init_eplb_config` for their maps.
        layout: its layout with redundant experts and without a map file: ``ring``, the copies from the last rank
            backwards, or ``append``, vLLM's own.
        layout_v2: the same under the runner V2; None where V2 is not known to have one.
        serves_v2: whether the plugin serves by the runner V2, which was tried on an emulated NPU.
        fills: what the loader fills slots by: the ``map`` that the layer was given, or ``append``, vLLM's own
            order, whatever the map says.
        forbids_unknown_keys: whether an additional config with a key that is not vllm-ascend's stops the start.
        has_heat_stage: whether ``eplb_heat_collection_stage`` is an option.
        agrees_on_stage: whether data-parallel ranks tell the stage alike.
        heat_interval: its default ``expert_heat_collection_interval``, in steps.
        policy_type: its default ``eplb_policy_type``.
        one_copy_policies: the ``eplb_policy_type`` of the policies that fail with more redundant experts than ranks.
        profiles_slots: whether its profile run draws ids of slots, where a layer that is not quantised then looks
            them up as experts'.
        small_worlds_gather: whether an A5 takes the path AllGather where the world is no larger than the top k.
        registers_drafts: whether its EPLB takes the layers of draft models for the model's own.
        lora_exchanges: whether LoRA with expert parallelism takes the path ALLTOALL on every chip.
        checked: ``ci``: served in every run of CI; ``all``: served by ``nox -s ascend -- --all``; ``contract``: hooks
            and schemas compared with its source.
    """

    vllm_ascend: str
    vllm: str
    torch: str
    torch_npu: str
    layers: tuple[str, ...]
    layout: Layout
    fills: Literal["map", "append"]
    has_wheel: bool = True
    layout_v2: Layout | None = None
    serves_v2: bool = False
    forbids_unknown_keys: bool = False
    has_heat_stage: bool = True
    agrees_on_stage: bool = False
    heat_interval: int = 600
    policy_type: int = 2
    one_copy_policies: tuple[int, ...] = (1,)
    profiles_slots: bool = False
    small_worlds_gather: bool = True
    registers_drafts: bool = True
    lora_exchanges: bool = False
    checked: Literal["ci", "all", "contract"] = "contract"

    def __str__(self) -> str:
        """Name the pair."""
        return f"vllm-ascend {self.vllm_ascend} with vLLM {self.vllm}"

    @property
    def filled_by(self) -> str:
        """Who puts experts into the slots that a map names."""
        return "vllm-ascend" if self.fills == "map" else "the plugin"

    @property
    def refused_v2(self) -> tuple[str, ...]:
        """The same with its runner V2."""
        return (
            "load_collection_phase other than all",
            "max_moves, max_layers, min_gain and record_path with policy vllm",
            "draft models with experts, where vLLM's EPLB is on",
        )

    @property
    def refused(self) -> tuple[str, ...]:
        """What the plugin refuses beside this release, on top of what it refuses beside all."""
        found = ["redundant experts on a model that is not quantised"] if self.profiles_slots else []
        policies = " or ".join(
            f"{policy} (its default)" if policy == self.policy_type else str(policy)
            for policy in self.one_copy_policies
        )
        found.append(f"more redundant experts than ranks with eplb_policy_type {policies}")
        if self.registers_drafts:
            found.append("draft models with experts, where vllm-ascend's EPLB is on")
        if not self.has_heat_stage:
            found.append("load_collection_phase other than all")
        elif not self.agrees_on_stage:
            found.append("load_collection_phase other than all with data-parallel ranks")
        return tuple(found)


class _Before023(TypedDict):
    has_heat_stage: bool
    registers_drafts: bool
    heat_interval: int
    policy_type: int


class _Since027(TypedDict):
    torch: str
    torch_npu: str
    layers: tuple[str, ...]
    layout: Layout
    fills: Literal["map", "append"]
    has_wheel: bool
    forbids_unknown_keys: bool
    lora_exchanges: bool


# What a line of releases has in common.
_BEFORE_0_23 = _Before023(has_heat_stage=False, registers_drafts=False, heat_interval=400, policy_type=1)
_SINCE_0_27 = _Since027(
    torch="2.10.0",
    torch_npu="2.10.0.post4",
    layers=(_ROUTED,),
    layout="append",
    fills="append",
    has_wheel=False,
    forbids_unknown_keys=True,
    lora_exchanges=True,
)
# Established by reading each release's source; `nox -s npu_contract -- --all` compares them with it. Pre-releases that a
# later one of the same number replaced (0.18.0rc1, 0.23.0rc1) are left out.
RELEASES = (
    Release(
        "0.18.0",
        "0.18.0",
        "2.9.0",
        "2.9.0",
        (_LAYER,),
        "ring",
        "map",
        one_copy_policies=(1, 2),
        profiles_slots=True,
        small_worlds_gather=False,
        checked="all",
        **_BEFORE_0_23,
    ),
    Release(
        "0.19.1rc1",
        "0.19.1",
        "2.9.0",
        "2.9.0",
        (_LAYER,),
        "ring",
        "map",
        profiles_slots=True,
        small_worlds_gather=False,
        **_BEFORE_0_23,
    ),
    Release("0.20.2rc1", "0.20.2", "2.10.0", "2.10.0", (_LAYER,), "ring", "map", **_BEFORE_0_23),
    Release("0.21.0rc1", "0.21.0", "2.10.0", "2.10.0", (_LAYER,), "ring", "map", **_BEFORE_0_23),
    Release(
        "0.22.1rc1", "0.22.1", "2.10.0", "2.10.0", (_LAYER,), "ring", "map", checked="all", **_BEFORE_0_23
    ),
    Release("0.23.0", "0.23.0", "2.10.0", "2.10.0.post4", (_LAYER, _LAYER_0_23), "ring", "map", checked="ci"),
    Release(
        "0.23.0.post1",
        "0.23.0",
        "2.10.0",
        "2.10.0.post4",
        (_LAYER, _LAYER_0_23),
        "ring",
        "map",
        has_wheel=False,
    ),
    Release("0.24.0rc1", "0.24.0", "2.10.0", "2.10.0.post2", (_LAYER,), "append", "append"),
    Release(
        "0.25.1rc1", "0.25.1", "2.10.0", "2.10.0.post2", (_LAYER,), "append", "append", lora_exchanges=True
    ),
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
    Release("0.27.1rc1", "0.27.1", layout_v2="append", **_SINCE_0_27),
    Release("0.28.0rc1", "0.28.0", layout_v2="append", **_SINCE_0_27),
    Release("0.29.0rc1", "0.29.0", layout_v2="append", **_SINCE_0_27),
    Release("0.30.0rc1", "0.30.0", layout_v2="ring", agrees_on_stage=True, **_SINCE_0_27),
    Release(
        "0.30.0rc2",
        "0.30.0",
        layout_v2="ring",
        serves_v2=True,
        agrees_on_stage=True,
        checked="ci",
        **_SINCE_0_27,
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


# What is refused beside every release.
REFUSED = (
    "a map that is not linear on a 310P, or with adapters where batches may take the path AllGather",
    "redundant experts on 16 or more ranks of A2",
    "record_path with data-parallel ranks where batches may take the path AllGather, or with pipeline stages",
    "a map that is not linear with --enable-ep-weight-filter",
    "ranks with unequal numbers of slots; with the runner V1 an expert twice on a rank",
    "vLLM's own --enable-eplb with the runner V1; the runner V2 where the table does not say that it is served",
    "placements of shared experts (mix_placement)",
)
COLUMNS = (
    "vllm-ascend",
    "vLLM",
    "torch / torch-npu",
    "maps are asked for in",
    "default layout with copies",
    "slots filled by",
    "runner V2",
    "refused besides",
    "checked",
)
_CHECKED = {"ci": "served in CI", "all": "served on demand", "contract": "source compared"}


def row(release: Release) -> tuple[str, ...]:
    """Return a release's line of the table, a text for each column."""
    layout = release.layout if release.layout_v2 is None else f"{release.layout}; V2: {release.layout_v2}"
    return (
        release.vllm_ascend + ("" if release.has_wheel else " (source)"),
        release.vllm,
        f"{release.torch} / {release.torch_npu}",
        ", ".join(module.rpartition(".")[2] for module in release.layers),
        layout,
        release.filled_by,
        "served" if release.serves_v2 else "refused",
        "; ".join(release.refused),
        _CHECKED[release.checked],
    )


def markdown() -> str:
    """Return the table as the README shows it, and what is refused beside every release."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(row(release) for release in RELEASES)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    everywhere = "\n".join(f"- {what}" for what in REFUSED)
    return f"{table}\n\nRefused beside every release:\n\n{everywhere}\n"
