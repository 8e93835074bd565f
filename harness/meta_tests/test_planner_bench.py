# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the planner: what scores the answers finds what is planted, and the page leaves nobody out."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

import numpy as np
import pytest

from expert_maps import generate_placement
from harness.bench.planner import ascend, pages, scoring
from harness.bench.planner.peers import FAST, PRECISE, VLLM, Answer, Peer, RefusedError, own_peers
from harness.bench.planner.problems import (
    Problem,
    family_cases,
    growth_cases,
    heavy,
    lognormal,
    quality_cases,
    zipf,
)
from harness.bench.planner.studies import Replan, incremental, shifted_load
from harness.bench.planner.timing import Figures, Outcome, Pace, certified, common_bound, compare
from harness.record.provenance import describe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

LAYERS, EXPERTS, SLOTS, RANKS = 3, 16, 24, 4


@pytest.fixture
def slots() -> NDArray[np.int64]:
    placement = generate_placement(
        "append", num_experts=EXPERTS, ep_size=RANKS, num_redundant_experts=SLOTS - EXPERTS, num_layers=LAYERS
    )
    return placement.physical_to_logical.astype(np.int64)


def given(name: str, answer: NDArray[np.int64]) -> Peer:
    """Return a policy that always gives this answer."""
    return Peer(name, lambda _: lambda: answer, lambda _, result: Answer(result))


def naive_rank_loads(
    slots: NDArray[np.int64], load: NDArray[np.float64], num_ranks: int
) -> NDArray[np.float64]:
    num_layers, num_slots = slots.shape
    loads = np.zeros((num_layers, num_ranks))
    for layer in range(num_layers):
        row = slots[layer].tolist()
        for slot, expert in enumerate(row):
            loads[layer, slot // (num_slots // num_ranks)] += load[layer, expert] / row.count(expert)
    return loads


@pytest.mark.parametrize("seed", range(5))
def test_the_scorer_agrees_with_a_plain_loop(seed: int) -> None:
    draw = np.random.default_rng(seed)
    slots = draw.integers(0, EXPERTS, size=(LAYERS, SLOTS))
    windows = draw.lognormal(size=(2, LAYERS, EXPERTS))
    load = windows[0]
    loads = naive_rank_loads(slots, load, RANKS)
    np.testing.assert_allclose(scoring.rank_loads(slots, load, RANKS), loads)
    # A bound below the mean is no better than the mean; one of half the hottest rank leaves a gap of 100 %.
    bound = np.array([0.0, loads[1].max() / 2, loads[2].max()])
    gaps = [loads[0].max() / loads[0].mean() - 1, min(1.0, loads[1].max() / loads[1].mean() - 1), 0.0]
    assert scoring.gap_percent(slots, load, RANKS, bound) == pytest.approx(np.mean(gaps) * 100)
    each = [row.mean() / row.max() for row in loads]
    assert scoring.balancedness(slots, load, RANKS) == pytest.approx(np.mean(each))
    both = np.stack([loads, naive_rank_loads(slots, windows[1], RANKS)])
    expected = both.mean(axis=2).sum() / both.max(axis=2).sum()
    assert scoring.balancedness_over_time(slots, windows, RANKS) == pytest.approx(expected)


def test_planted_violations_are_counted(slots: NDArray[np.int64]) -> None:
    assert scoring.violations(slots, EXPERTS, RANKS).total == 0
    twice = slots.copy()
    twice[1, 1] = twice[1, 0]
    found = scoring.violations(twice, EXPERTS, RANKS)
    copies = int((slots[1] == slots[1, 1]).sum())
    assert (found.twice, found.missing) == (1, 1 if copies == 1 else 0)
    missing = slots.copy()
    missing[2][missing[2] == 5] = 6
    assert scoring.violations(missing, EXPERTS, RANKS).missing == 1
    impossible = slots.copy()
    impossible[0, -1] = EXPERTS
    assert scoring.violations(impossible, EXPERTS, RANKS).missing >= 1


def test_a_group_on_two_nodes_is_counted() -> None:
    grouped = np.array([[0, 1, 2, 3, 4, 5, 6, 7]])
    assert scoring.violations(grouped, 8, 4, num_groups=2, num_nodes=2).total == 0
    grouped[0, [3, 4]] = grouped[0, [4, 3]]
    assert scoring.violations(grouped, 8, 4, num_groups=2, num_nodes=2).split == 2


def test_what_moves_is_counted() -> None:
    before = np.array([[0, 1, 2, 3]])
    assert scoring.moved_percent(before, before, 2) == (0.0, 0.0)
    assert scoring.moved_percent(before, np.array([[1, 0, 2, 3]]), 2) == (50.0, 0.0)
    assert scoring.moved_percent(before, np.array([[0, 2, 1, 3]]), 2) == (50.0, 50.0)


def test_a_page_names_every_policy_that_ran(slots: NDArray[np.int64]) -> None:
    def refuses(_: Problem) -> Callable[[], object]:
        msg = "it plans nothing"
        raise RefusedError(msg)

    bad = slots.copy()
    bad[0, 1] = bad[0, 0]
    peers = [*own_peers(), given("planted", bad), Peer("unable", refuses, lambda _, result: Answer(result))]
    outcome = compare(Problem("tiny", lognormal(LAYERS, EXPERTS), SLOTS, RANKS), peers, Pace(1))
    assert outcome.refused == {"unable": "it plans nothing"}
    assert all(
        figures.gap_percent >= -1e-9 for figures in outcome.figures.values() if not figures.violations.twice
    )
    sheets = pages.quality_sheets([outcome])
    page = pages.page(sheets, describe(), ["vLLM's policy: absent"], "planner.svg")
    headings = [line for line in page.splitlines() if line.startswith("| gap, %")]
    assert len(headings) == 1
    ran = [peer.name for peer in peers if peer.name != "unable"]
    assert headings[0].strip("| ").split(" | ") == ["gap, %", *ran]
    assert "planted: " in page
    assert "1 twice on a rank" in page
    assert "unable gave no answer in 1 of 1" in page
    assert "## Left out\n\n- vLLM's policy: absent" in page
    assert "](planner.svg)" in page
    assert pages.case_record(outcome)["policies"].keys() == {peer.name for peer in peers}  # type: ignore[attr-defined]


def test_an_answer_of_a_wrong_shape_is_refused(slots: NDArray[np.int64]) -> None:
    problem = Problem("tiny", lognormal(LAYERS, EXPERTS), SLOTS, RANKS)
    with pytest.raises(RefusedError, match="has shape"):
        given("short", slots[:, :-1]).solve(problem)


def test_the_highest_bound_counts() -> None:
    problem = Problem("tiny", lognormal(2, EXPERTS), SLOTS, RANKS)
    none = np.zeros((2, SLOTS), dtype=np.int64)
    answers = [Answer(none, np.array([1.0, 4.0])), Answer(none), Answer(none, np.array([2.0, 3.0]))]
    np.testing.assert_array_equal(common_bound(problem, answers), [2.0, 4.0])
    np.testing.assert_array_equal(common_bound(problem, answers[1:2]), [0.0, 0.0])


def test_the_shifted_load_keeps_what_is_asked_and_the_limits_hold() -> None:
    replans, sigma = incremental(own_peers(), Pace(1))
    by_name = {one.name: one for one in replans}
    kept = by_name["as it was"]
    assert 0.859 < kept.balancedness < 0.861
    assert 0 < sigma < 2
    for name, one in by_name.items():
        if "at most" in name:
            assert isinstance(one, Replan)
            assert one.changed_percent <= int(name.split()[-1]) / 288 * 100 + 1e-9
            assert one.balancedness >= kept.balancedness


def test_cases_can_be_planned_and_have_names_of_their_own() -> None:
    cases = quality_cases() + [problem for series in growth_cases().values() for problem in series]
    assert len({problem.name for problem in quality_cases()}) == len(quality_cases())
    for problem in cases:
        assert problem.num_physical % problem.ep_size == 0
        assert problem.load.shape[1] <= problem.num_physical <= problem.load.shape[1] * problem.ep_size
    hottest = np.sort(zipf(2, 8), axis=1)[:, ::-1]
    np.testing.assert_allclose(hottest[1], np.arange(1, 9) ** -1.2)
    load, _ = shifted_load(lognormal(2, EXPERTS), np.tile(np.arange(EXPERTS), (2, 1)), RANKS)
    assert load.shape == (2, EXPERTS)


def test_families_have_four_sizes_each_and_recorded_ones_their_layers(tmp_path: Path) -> None:
    file = tmp_path / "loads.npz"
    np.savez(file, one=np.ones((2, 3, 64)), other=np.full((2, 3, 64), 2.0))
    names = [problem.name for problem in family_cases(file)]
    assert len(set(names)) == 16
    assert sum(name.startswith("recorded, 6×64") for name in names) == 4
    assert len(family_cases(None)) == 12
    # Five experts of 256 are four times as hot as log-normal ones of the same seed.
    assert (
        (heavy(3, 256) / np.random.default_rng(0).lognormal(0.0, 1.0, (3, 256))).round(9) == 4
    ).sum() == 15


def test_goals_that_are_missed_are_named() -> None:
    def figures(gap: float, ms: float) -> Figures:
        answer = Answer(np.zeros((1, 1), dtype=np.int64))
        return Figures(answer, ms, 1, gap, 1.0, scoring.Violations(0, 0, 0))

    found = {PRECISE: figures(0.06, 1.0), FAST: figures(9.0, 1.0), VLLM: figures(1.0, 24.0)}
    nine = Outcome(Problem("nine", lognormal(1, 256), 288, 32), found)
    two = Outcome(Problem("two", lognormal(1, 256), 576, 288), found)
    lines = pages.family_sheets([nine, two])[0].notes
    assert lines[0] == "2 goals met, 2 missed"
    assert lines[1] == f"missed: nine, {PRECISE}: a gap of 0.060 % (goal 0.05 %)"
    assert lines[2] == f"missed: two, {FAST}: a gap of 9.000 % (goal 3.0 %)"


def test_gaps_are_to_all_that_can_be_proved() -> None:
    problem = Problem("two slots", lognormal(1, 128), 144, 72)
    bound = certified(problem)[0].bound
    plain = own_peers()[1].solve(problem).bound
    assert bound is not None
    assert plain is not None
    assert bound[0] > plain[0]
    assert certified(Problem("groups on no node", lognormal(1, 128), 144, 72, 3, 2)) == []


def test_a_wheel_of_vllm_ascend_is_found_and_others_are_refused(tmp_path: Path) -> None:
    member = "vllm_ascend/eplb/core/policy/policy_flashlb.py"
    wheel = tmp_path / "wheels" / "vllm_ascend-9.9.9-cp311-cp311-linux_x86_64.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(member, "")
        archive.writestr("vllm_ascend/__init__.py", "raise RuntimeError")
    for source in (wheel, wheel.parent):
        folder, version = ascend.find(source, tmp_path / "scratch")
        assert (folder / member).exists()
        assert not (folder / "vllm_ascend" / "__init__.py").exists()
        assert version == "9.9.9"
    assert ascend.find(folder, tmp_path / "other")[0] == folder
    with pytest.raises(FileNotFoundError, match="no wheel of vllm-ascend"):
        ascend.find(tmp_path, tmp_path / "other")
