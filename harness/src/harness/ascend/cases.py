# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What is served beside each release, and what is expected of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.ascend.case import MUTANTS, Case
from harness.ascend.models import (
    DRAFTING,
    MODELSLIM,
    QUANTISED,
    REDUNDANT,
    TINY_DEEPSEEK,
    TINY_MOE,
    write_broken,
    write_map,
    write_twice,
)

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_ascend_moe.releases import Release

# A cycle of vllm-ascend: steps of load, steps to plan, a step a layer.
_CYCLE = {"dynamic": True, "window_size": 3, "step_interval": 9}
# So few tokens never pay for a move.
_DYNAMIC = {**_CYCLE, "min_gain": 0}
# With the runner V2, by vLLM's step.
_V2_CYCLE = {"dynamic": True, "window_size": 3, "step_interval": 6, "min_gain": 0}
# By vllm-ascend's own policy.
_THEIRS = {**_CYCLE, "policy": "vllm"}


def copies(release: Release, *, dynamic: bool) -> int:
    """Return how many redundant experts the cases of a release have: as many as it serves on two ranks."""
    if release.profiles_slots:
        return 0
    return 2 if dynamic and release.policy_type in release.one_copy_policies else REDUNDANT


def cases_for(release: Release, folder: Path, *, every: bool = True) -> list[Case]:
    """Return the cases of a release; maps that they need are written into the folder.

    Args:
        release: of the table.
        folder: for maps and records.
        every: also those that say the same of each release.
    """
    folder = folder.absolute()
    static, moving = copies(release, dynamic=False), copies(release, dynamic=True)
    planned, deepseek, start = (folder / f"{name}.json" for name in ("planned", "planned_deepseek", "start"))
    write_map(planned, TINY_MOE, redundant=static)
    write_map(deepseek, TINY_DEEPSEEK, redundant=static)
    write_map(start, TINY_MOE, redundant=moving)
    with_map = {"expert_maps": {"expert_map_path": str(planned)}}
    record = folder / "static_load.npz"
    return [
        # Those that take longest come first; another runner's import Triton, in environments of their own.
        Case("static map, API server, data parallel 2", TINY_MOE, "A3", config=with_map, is_server=True),
        # Four ranks take most, so not beside every release.
        *(_parallel_cases(folder, moving) if every and release.checked == "ci" else []),
        *(_runner_v2_cases(folder, planned, start, every=every) if release.serves_v2 else []),
        *_static_cases(planned, deepseek, record, static),
        *_dynamic_cases(folder, start, moving),
        *(_more_dynamic_cases(folder, start, moving) if every else []),
        *(_quantised_cases(folder, release, start) if every else []),
        *(_draft_cases(folder, deepseek, release) if every else []),
        Case(
            "static map, pipeline parallel 2",
            TINY_MOE,
            "A3",
            config=with_map,
            engine={"pipeline_parallel_size": 2},
            rows=planned,
        ),
        Case(
            "static map, weights of others not read",
            TINY_MOE,
            "A2",
            config=with_map,
            engine={"enable_ep_weight_filter": True},
            expected="refused",
            says="enable_ep_weight_filter",
        ),
    ]


def _static_cases(planned: Path, deepseek: Path, load: Path, redundant: int) -> list[Case]:
    """Return the cases in which experts stay where they are: by no map, a layout, and maps of two models."""
    layout = {
        "layout": "ring" if redundant else "round_robin",
        "num_redundant_experts": redundant,
        "replica_choice": "rank_offset",
        "record_path": str(load),
    }
    recorded = "layout that stays, recorded, copies in turn"
    mapped = f"static map, {'with copies' if redundant else 'without copies'}"
    of_moe, of_deepseek = ({"expert_maps": {"expert_map_path": str(path)}} for path in (planned, deepseek))
    return [
        Case("plugin inactive", TINY_MOE, "A2"),
        Case("`{}`", TINY_MOE, "A3", config={"expert_maps": {}}),
        Case(mapped, TINY_MOE, "A3", config=of_moe, mutants=MUTANTS, rows=planned),
        Case(recorded, TINY_MOE, "A3", config={"expert_maps": layout}, load=load),
        # On the path AllGather, which vllm-ascend serves wrongly by itself.
        Case(mapped, TINY_DEEPSEEK, "A2", config=of_deepseek, rows=deepseek),
    ]


def _runner_v2_cases(folder: Path, planned: Path, start: Path, *, every: bool) -> list[Case]:
    """Return the cases of vllm-ascend's runner V2; each chip takes an environment of its own."""
    load = folder / "v2_load.npz"
    # A layer a step is moved, while the next load is counted already.
    dynamic = {"expert_map_path": str(start), **_V2_CYCLE}
    copies_moved = {"num_redundant_experts": REDUNDANT, **_V2_CYCLE}

    def case(name: str, chip: str, options: dict[str, Any], **more: Any) -> Case:  # noqa: ANN401 - of a case
        config = {"expert_maps": options}
        return Case(f"runner V2, {name}", TINY_MOE, chip, config=config, runner=2, **more)

    def static(chip: str) -> Case:
        options = {"expert_map_path": str(planned)}
        return case("static map, with copies", chip, options, mutants=MUTANTS, rows=planned)

    recorded = {**dynamic, "record_path": str(load)}
    # From a map, to others, on the path where all ranks must agree, recorded: that is most of it in one server.
    wanted = [case("dynamic from a map, recorded", "A2", recorded, moves=True, load=load)]
    if not every:
        return wanted
    theirs = {**dynamic, "min_gain": None, "policy": "vllm"}
    twice = {**dynamic, "expert_map_path": str(write_twice(folder / "twice.json", TINY_MOE))}
    return [
        *wanted,
        static("A3"),
        static("A2"),
        case("dynamic from the layout", "A3", copies_moved, moves=True),
        case("dynamic from a map, by vllm-ascend's policy", "A3", theirs, moves=True),
        # On the path where all ranks must choose the same copy.
        case("dynamic from a map with experts twice on a rank", "A2", twice, moves=True),
        case("dynamic from a map, API server, data parallel 2", "A3", dynamic, moves=True, is_server=True),
        case("a worker is killed while experts move", "A3", copies_moved, expected="ends", kills=True),
    ]


def _parallel_cases(folder: Path, redundant: int) -> list[Case]:
    """Return the cases of four ranks, two by two."""
    four = folder / "four.json"
    # As many as each rank gets one of, where there are any.
    write_map(four, TINY_MOE, ep_size=4, redundant=4 if redundant else 0)
    config = {"expert_maps": {"expert_map_path": str(four), **_DYNAMIC}}
    name = "dynamic from a map, API server, tensor × data parallel 2 × 2"
    return [Case(name, TINY_MOE, "A3", 4, config, moves=True, is_server=True)]


def _quantised_cases(folder: Path, release: Release, start: Path) -> list[Case]:
    """Return the cases of W8A8, whose scales move with the weights: two ranks are compared with two."""
    model = folder / QUANTISED
    from_map = {"expert_map_path": str(start)}
    cases = [
        Case("W8A8, static map", model, "A3", config={"expert_maps": from_map}, rows=start),
        Case("W8A8, static map", model, "A2", config={"expert_maps": from_map}, rows=start),
        Case(
            "W8A8, dynamic from a map",
            model,
            "A3",
            config={"expert_maps": {**from_map, **_DYNAMIC}},
            moves=True,
        ),
    ]
    # As ModelSlim writes it: with offsets, and told of in a file of its own.
    slim = folder / MODELSLIM
    cases += [
        Case("ModelSlim's W8A8, static map", slim, "A3", config={"expert_maps": from_map}, rows=start),
        Case("ModelSlim's W8A8, dynamic from a map", slim, "A2", config=cases[-1].config, moves=True),
    ]
    if release.serves_v2:
        config = {"expert_maps": {**from_map, **_V2_CYCLE}}
        name = "runner V2, W8A8, dynamic from a map"
        cases.append(Case(name, model, "A3", config=config, moves=True, runner=2))
    return cases


def _draft_cases(folder: Path, planned: Path, release: Release) -> list[Case]:
    """Return the cases of a model with a draft layer that has experts of its own, which no map is for."""
    model = folder / DRAFTING
    # Without its statistics vLLM does not tell what was accepted.
    drafting = {
        "speculative_config": {"method": "mtp", "num_speculative_tokens": 1},
        "disable_log_stats": False,
    }
    with_map = {"expert_maps": {"expert_map_path": str(planned)}}
    moving = {"expert_maps": {"num_redundant_experts": copies(release, dynamic=True), **_DYNAMIC}}
    told: dict[str, Any] = {"moves": True, "drafts": True}
    if release.registers_drafts:
        told = {"expected": "refused", "says": "draft model"}
    return [
        Case("MTP, static map", model, "A2", config=with_map, engine=drafting, rows=planned, drafts=True),
        Case("MTP, dynamic", model, "A3", config=moving, engine=drafting, **told),
    ]


def _dynamic_cases(folder: Path, start: Path, redundant: int) -> list[Case]:
    """Return the cases in which vllm-ascend moves experts, beside every release."""
    record, load = folder / "recorded.json", folder / "load.npz"
    from_map = {"expert_map_path": str(start), **_DYNAMIC, "record_path": str(load)}
    of_theirs = {
        "expert_maps": {"num_redundant_experts": redundant, **_DYNAMIC},
        "eplb_config": {"expert_map_record_path": str(record)},
    }
    return [
        Case(
            "dynamic from a map, recorded",
            TINY_MOE,
            "A2",
            config={"expert_maps": from_map},
            moves=True,
            load=load,
        ),
        Case(
            "dynamic from the layout, recording by vllm-ascend",
            TINY_MOE,
            "A3",
            config=of_theirs,
            record=record,
        ),
    ]


def _more_dynamic_cases(folder: Path, start: Path, redundant: int) -> list[Case]:
    """Return the cases of moving experts that say the same of each release."""
    config = {"expert_maps": {"num_redundant_experts": redundant, **_DYNAMIC}}
    return [
        Case(
            "dynamic without copies",
            TINY_MOE,
            "A2",
            config={"expert_maps": {**_DYNAMIC, "max_moves": 4, "max_layers": 2}},
            moves=True,
        ),
        Case(
            "dynamic from a map, by vllm-ascend's policy",
            TINY_MOE,
            "A3",
            config={"expert_maps": {"expert_map_path": str(start), **_THEIRS}},
            moves=True,
        ),
        Case(
            "dynamic, a worker is killed while experts move",
            TINY_MOE,
            "A3",
            config=config,
            expected="ends",
            kills=True,
        ),
        # U3: vllm-ascend's EPLB process is there when the weights turn out to be broken.
        Case(
            "dynamic, a worker fails while loading",
            write_broken(folder / "broken", TINY_MOE),
            "A3",
            config=config,
            expected="ends",
        ),
    ]
