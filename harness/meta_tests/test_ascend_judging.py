# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What a case showed: right passes, and every way to be wrong is a problem in words."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from expert_maps import Placement, generate_placement, write_placement
from expert_maps.formats.loads import write_load
from harness.ascend import metering
from harness.ascend.case import MUTANTS, Case
from harness.ascend.cases import cases_for
from harness.ascend.judging import Reference, judge
from harness.ascend.models import TINY_MOE, write_map
from harness.ascend.served import Served
from vllm_ascend_moe import releases
from vllm_ascend_moe.core.metric_table import METRICS

if TYPE_CHECKING:
    from pathlib import Path

EXPERTS, RANKS, REDUNDANT = 8, 2, 2
TOKENS = [[1, 2, 3], [4, 5, 6]]
LOGPROBS = [[-0.1, -0.2, -0.3], [-0.4, -0.5, -0.6]]
REFERENCE = Reference(TOKENS, LOGPROBS, {0: {expert: f"bytes {expert}" for expert in range(EXPERTS)}})
CASE = Case("a case", TINY_MOE, "A3")


def inspection(placement: Placement) -> list[dict[str, Any]]:
    per_rank = placement.num_physical_experts // RANKS
    return [
        {
            "ep_rank": rank,
            "layers": [
                {
                    "layer": 0,
                    "expert_map": placement.expert_map(0, rank).tolist(),
                    "log2phy": placement.log2phy(0, rank).tolist(),
                    "slots": [
                        f"bytes {expert}"
                        for expert in placement.physical_to_logical[
                            0, rank * per_rank : (rank + 1) * per_rank
                        ]
                    ],
                }
            ],
        }
        for rank in range(RANKS)
    ]


@pytest.fixture
def ring() -> Placement:
    return generate_placement("ring", num_experts=EXPERTS, ep_size=RANKS, num_redundant_experts=REDUNDANT)


@pytest.fixture
def append() -> Placement:
    return generate_placement("append", num_experts=EXPERTS, ep_size=RANKS, num_redundant_experts=REDUNDANT)


@pytest.fixture
def served(ring: Placement) -> Served:
    round_ = {"tokens": TOKENS, "logprobs": LOGPROBS, "seconds": 1.0}
    return Served(rounds=[round_], inspections=[inspection(ring), inspection(ring)])


def test_what_is_right_has_no_problem(served: Served) -> None:
    found = judge(CASE, served, REFERENCE)
    assert found.problems == []
    assert found.equal == (2, 2)
    assert found.slots == 2 * (EXPERTS + REDUNDANT)


def test_other_tokens_are_a_problem(served: Served) -> None:
    other = replace(served, rounds=[{**served.rounds[0], "tokens": [[1, 2, 3], [4, 5, 7]]}])
    assert judge(CASE, other, REFERENCE).problems == ["1 of 2 texts differ from those without the plugin"]


def test_a_later_round_counts_too(served: Served) -> None:
    other = replace(served, rounds=[served.rounds[0], {**served.rounds[0], "tokens": [[0], [0]]}])
    assert judge(CASE, other, REFERENCE).equal == (0, 2)


def test_a_probability_that_is_off_is_a_problem(served: Served) -> None:
    off = copy.deepcopy(LOGPROBS)
    off[1][1] += 0.01
    other = replace(served, rounds=[{**served.rounds[0], "logprobs": off}])
    assert "log-probability is 1.0e-02" in judge(CASE, other, REFERENCE).problems[0]


@pytest.mark.parametrize("when", [0, 1])
def test_a_wrong_slot_is_a_problem_whenever_it_is(served: Served, when: int) -> None:
    answers = copy.deepcopy(served.inspections)
    answers[when][1]["layers"][0]["slots"][0] = "bytes 0"
    problems = judge(CASE, replace(served, inspections=answers), REFERENCE).problems
    assert f"inspection {when}" in problems[0]
    assert "layer 0, rank 1, slot 0: expert_map names expert 4, but it holds expert 0" in problems[0]


def test_nothing_inspected_is_nothing_proven(served: Served) -> None:
    assert judge(CASE, replace(served, inspections=[]), REFERENCE).problems == ["no worker was inspected"]


def test_a_failed_start_is_a_problem() -> None:
    assert judge(CASE, Served(failed="it died"), REFERENCE).problems == ["it died"]
    assert judge(CASE, Served(refused="EplbConfigError: no"), REFERENCE).problems == [
        "refused: EplbConfigError: no"
    ]


def test_what_must_be_refused_must_say_why(served: Served) -> None:
    case = replace(CASE, expected="refused", says="AllGather")
    assert judge(case, served, REFERENCE).problems == ["it started; expected the plugin to refuse it"]
    assert judge(case, Served(refused="EplbConfigError: on A2 AllGather reads …"), REFERENCE).problems == []
    assert "refused, but not for" in judge(case, Served(refused="another reason"), REFERENCE).problems[0]
    # A crash is no refusal.
    assert judge(case, Served(failed="IndexError: AllGather"), REFERENCE).problems == [
        "IndexError: AllGather"
    ]


def test_a_failure_must_end_by_itself(served: Served) -> None:
    case = replace(CASE, expected="ends")
    assert judge(case, Served(failed="RuntimeError: broken weights"), None).problems == []
    late = judge(case, Served(failed="took more than 300 s", is_late=True), None)
    assert late.problems == ["it failed, but did not end: took more than 300 s"]
    assert judge(case, served, None).problems == ["it started; expected it to fail and to end"]


def test_a_killed_worker_is_seen_soon() -> None:
    case = replace(CASE, expected="ends", kills=True)
    assert judge(case, Served(failed="EngineDeadError", ended_seconds=3.0), None).problems == []
    (late,) = judge(case, Served(failed="EngineDeadError", ended_seconds=31.0), None).problems
    assert late.startswith("it took 31 s to end after a worker was killed; expected 30 s")
    (early,) = judge(case, Served(failed="RuntimeError: broken"), None).problems
    assert early == "it failed before a worker was killed: RuntimeError: broken"


def test_a_failure_before_there_was_an_engine_says_nothing() -> None:
    case = replace(CASE, expected="ends")
    found = judge(case, Served(failed="the fork server ended", has_begun=False), None)
    assert found.problems == ["it was never started: the fork server ended"]


def test_what_is_left_behind_is_a_problem(served: Served) -> None:
    found = judge(CASE, replace(served, left=(41, 42)), REFERENCE)
    assert found.problems == ["processes 41, 42 were left behind; expected none"]


def test_experts_that_should_move_must(served: Served, append: Placement) -> None:
    case = replace(CASE, moves=True)
    assert judge(case, served, REFERENCE).problems == ["no expert moved; expected vllm-ascend to move some"]
    moved = replace(served, inspections=[served.inspections[0], inspection(append)])
    found = judge(case, moved, REFERENCE)
    assert found.problems == []
    assert found.moved == 5  # rank 1: 4 … 7, 0 became 5, 6, 7, 0, 1


def test_the_map_that_was_asked_for_must_be_live(served: Served, append: Placement, tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    write_placement(append, path)
    problems = judge(replace(CASE, rows=path), served, REFERENCE).problems
    assert problems[0].startswith("layer 0 serves [[0, 1, 2, 3, 4], [4, 5, 6, 7, 0]]; expected")


def test_a_mutant_that_nobody_sees_is_a_problem(served: Served, ring: Placement) -> None:
    case = replace(CASE, mutants=("log2phy",))
    assert "nothing was changed" in judge(case, served, REFERENCE).problems[0]
    blind = {"changed": True, "tokens": TOKENS, "inspection": inspection(ring)}
    unseen = judge(case, replace(served, mutants={"log2phy": blind}), REFERENCE)
    assert "0 texts differ and 0 slots are wrong" in unseen.problems[0]
    rolled = inspection(ring)
    table = rolled[0]["layers"][0]["log2phy"]
    rolled[0]["layers"][0]["log2phy"] = [*table[1:], table[0]]
    seen = {"changed": True, "tokens": [[9], [9]], "inspection": rolled}
    found = judge(case, replace(served, mutants={"log2phy": seen}), REFERENCE)
    assert found.problems == []
    assert found.caught["log2phy"].startswith("2 of 2 texts")


def test_a_record_must_be_a_placement_of_the_model(served: Served, ring: Placement, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    case = replace(CASE, record=path)
    assert "is no placement" in judge(case, served, REFERENCE).problems[0]
    layers = len(REFERENCE.experts)
    rows = ring.physical_to_logical.repeat(layers, axis=0)
    write_placement(Placement(rows, RANKS, num_logical_experts=EXPERTS), path)
    assert judge(case, served, REFERENCE).problems == []
    # As vllm-ascend writes it, and with another count.
    document = json.loads(path.read_text(encoding="utf-8"))
    theirs = {key: document[key] for key in ("moe_layer_count", "layer_list")}
    path.write_text(json.dumps(theirs, indent=4), encoding="utf-8")
    assert judge(case, served, REFERENCE).problems == []
    theirs["layer_list"][0]["device_count"] += 1
    path.write_text(json.dumps(theirs), encoding="utf-8")
    assert judge(case, served, REFERENCE).problems != []
    write_placement(Placement(rows.repeat(2, axis=0), RANKS, num_logical_experts=EXPERTS), path)
    (problem,) = judge(case, served, REFERENCE).problems
    assert problem.endswith(f"expected {(layers, EXPERTS, RANKS)}")


def test_recorded_load_is_what_the_routers_chose(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "load.npz"
    case = replace(CASE, load=path)
    assert "was not counted" in judge(case, served, REFERENCE).problems[0]
    routes = [[1, 5, 2], [4, 0, 4]]
    counted = replace(served, routes=routes)
    assert "cannot be read" in judge(case, counted, REFERENCE).problems[0]
    steps = np.zeros((16, 2, 3), dtype=np.int64)
    steps[3], steps[9] = [[1, 1, 2], [0, 0, 4]], [[0, 4, 0], [4, 0, 0]]
    steps[0] += 1
    write_load(steps, path)
    (problem,) = judge(case, counted, REFERENCE).problems
    assert problem.startswith("load.npz has [11, 11] tokens by layer; expected [8, 8], as the routers chose")
    # One token at a neighbour is seen, though the sums are right.
    steps[0] = 0
    steps[3] = [[2, 0, 2], [0, 0, 4]]
    write_load(steps, path)
    assert "(layers [0] differ)" in judge(case, counted, REFERENCE).problems[0]
    steps[3] = [[1, 1, 2], [0, 0, 4]]
    write_load(steps, path)
    assert judge(case, counted, REFERENCE).problems == []
    write_load(steps[3:10], path)
    assert "has 7 rows; expected one a step" in judge(case, counted, REFERENCE).problems[0]


SERVED = [release for release in releases.RELEASES if release.checked != "contract"]


@pytest.mark.parametrize("release", SERVED, ids=lambda release: release.vllm_ascend)
def test_every_release_has_all_cases(release: releases.Release, tmp_path: Path) -> None:
    cases = cases_for(release, tmp_path)
    names = [case.name for case in cases]
    for part in (
        "inactive",
        "`{}`",
        "static map",
        "dynamic from a map",
        "dynamic from the layout",
        "API server",
    ):
        assert any(part in name for name in names), part
    assert [case.mutants for case in cases if case.mutants and case.runner == 1] == [MUTANTS]
    # By the second runner, where it serves, on both chips too: a map that stands still, with its mutants, and one that moves.
    second = [case for case in cases if case.runner != 1]
    kinds = {(case.chip, case.mutants, case.moves) for case in second}
    assert kinds >= {(chip, (), True) for chip in ("A2", "A3") if release.serves_v2}
    assert kinds >= {(chip, MUTANTS, False) for chip in ("A2", "A3") if release.serves_v2}
    assert bool(second) == release.serves_v2
    assert {case.chip for case in cases} == {"A2", "A3"}
    assert any(case.expected == "refused" for case in cases)
    # A map is served on both paths, where it stands still and where experts move.
    for part in ("static map", "dynamic"):
        assert {case.chip for case in cases if part in case.name and case.expected == "right"} == {"A2", "A3"}
    # What is the same beside each release is left out where it is served beside another.
    fewer = [case.name for case in cases_for(release, tmp_path, every=False)]
    four = ["dynamic from a map, API server, tensor × data parallel 2 × 2"]
    assert [name for name in names if name not in fewer and "runner V2" not in name] == [
        *(four if release.checked == "ci" else []),
        "dynamic without copies",
        "dynamic from a map, by vllm-ascend's policy",
        "dynamic, a worker is killed while experts move",
        "dynamic, a worker fails while loading",
        "W8A8, static map",
        "W8A8, static map",
        "W8A8, dynamic from a map",
        "ModelSlim's W8A8, static map",
        "ModelSlim's W8A8, dynamic from a map",
        "MTP, static map",
        "MTP, dynamic",
    ]


def test_a_planned_map_differs_in_each_layer(tmp_path: Path) -> None:
    placement = write_map(tmp_path / "map.json", TINY_MOE)
    assert len({tuple(row) for row in placement.physical_to_logical.tolist()}) == placement.num_layers
    assert placement.num_redundant_experts > 0


def test_where_an_int8_rounds_the_other_way_a_tie_may_go_on_otherwise(served: Served, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"quantization_config": {}}', encoding="utf-8")
    of_int8 = replace(CASE, model=tmp_path)
    last = [*TOKENS[0][:-1], TOKENS[0][-1] + 1]
    other = replace(served, rounds=[{**served.rounds[0], "tokens": [last, *TOKENS[1:]]}])
    assert judge(of_int8, other, REFERENCE).problems == []
    assert judge(CASE, other, REFERENCE).problems == ["1 of 2 texts differ from those without the plugin"]
    # Not one that was less likely.
    logprobs = [[*REFERENCE.logprobs[0][:-1], REFERENCE.logprobs[0][-1] - 1], *REFERENCE.logprobs[1:]]
    worse = replace(other, rounds=[{**other.rounds[0], "logprobs": logprobs}])
    assert judge(of_int8, worse, REFERENCE).problems == ["1 of 2 texts differ from those without the plugin"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"expert_maps_recording": None}, "shows no expert_maps_recording"),
        ({"expert_maps_rearrangements_total": 0.0}, "expected some of each"),
        ({"expert_maps_moved_bytes_total": 0.0}, "expected some of each"),
        ({"expert_maps_moved_slots_total": 5.0}, "expected 6 at least"),
        # As where each of two API servers, or of two data-parallel engines, counts for itself.
        ({"expert_maps_planning_seconds_count": 14.0}, "counts 14 plans; expected 3 that moved"),
        ({"expert_maps_balancedness": None}, "a balancedness of 0 after 7 plans"),
    ],
)
def test_metrics_of_a_server_must_fit_what_it_did(changes: dict[str, float | None], words: str) -> None:
    right: dict[str, float | None] = {
        **{name: 0.0 for metric in METRICS if not metric.waits for name in metric.samples},
        "expert_maps_rearrangements_total": 3.0,
        "expert_maps_rearrangements_skipped_total": 4.0,
        "expert_maps_planning_seconds_count": 7.0,
        "expert_maps_moved_slots_total": 6.0,
        "expert_maps_moved_bytes_total": 600.0,
        "expert_maps_balancedness": 0.8,
    }

    def told(metrics: dict[str, float | None]) -> list[str]:
        shown = {name: value for name, value in metrics.items() if value is not None}
        return list(metering.problems(shown, moves=True, moved=6))

    assert told(right) == []
    assert words in told(right | changes)[0]


def test_a_server_whose_metrics_were_not_scraped_is_wrong(served: Served) -> None:
    (problem,) = judge(replace(CASE, is_server=True), served, REFERENCE).problems
    assert "/metrics shows no" in problem
