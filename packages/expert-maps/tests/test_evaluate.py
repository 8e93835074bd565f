# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Any placement under any load, and policies side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import placements

from expert_maps import (
    LAYOUT_NAMES,
    POLICY_NAMES,
    ExpertLoad,
    LayoutError,
    LoadError,
    Placement,
    balancedness,
    compare,
    evaluate,
    generate_placement,
    over_steps,
    overall_balancedness,
    plan,
    rank_load,
    step_peaks,
)


@given(placements(), st.integers(0, 2**31), st.integers(1, 3))
def test_it_says_what_the_metrics_say(placement: Placement, seed: int, steps: int) -> None:
    shape = (steps, placement.num_layers, placement.num_logical_experts)
    load = np.random.default_rng(seed).lognormal(size=shape)
    found = evaluate(placement, load)
    assert (found.placement, found.load) == (placement, ExpertLoad(load))
    np.testing.assert_array_equal(found.rank_load, rank_load(placement, load))
    np.testing.assert_array_equal(found.balancedness, balancedness(placement, load))
    np.testing.assert_array_equal(found.step_peaks, step_peaks(placement, load))
    assert found.overall_balancedness == overall_balancedness(placement, load)
    assert found.over_steps == over_steps(placement, load)
    for step in range(steps):
        assert found.step_balancedness[step] == pytest.approx(overall_balancedness(placement, load[step]))
    for layer in range(placement.num_layers):
        ranks, experts = found.hottest_ranks[layer], found.hottest_experts[layer]
        assert (np.diff(found.rank_load[layer][ranks]) <= 0).all()
        assert (np.diff(load.sum(axis=0)[layer][experts]) <= 0).all()
        assert sorted(ranks) == list(range(placement.ep_size))
        assert sorted(experts) == list(range(placement.num_logical_experts))
    assert (np.diff(found.balancedness[found.worst_layers]) >= 0).all()


def test_a_known_case() -> None:
    placement = Placement([[0, 1, 2, 0], [0, 1, 2, 0]], 2)
    found = evaluate(placement, [[[8, 0, 0], [2, 2, 2]], [[0, 6, 2], [2, 2, 2]]])
    assert found.rank_load.tolist() == [[10, 6], [6, 6]]
    assert found.step_peaks.tolist() == [[4, 3], [6, 3]]
    assert found.overall_balancedness == (8 + 6) / (10 + 6)
    assert found.over_steps == (8 + 6) / (4 + 3 + 6 + 3)
    assert found.step_balancedness.tolist() == [1, (4 + 3) / (6 + 3)]
    assert found.hottest_ranks[:, 0].tolist() == [0, 0]
    assert found.hottest_experts[:, 0].tolist() == [0, 0]
    assert found.worst_layers.tolist() == [0, 1]
    assert found.max_rank_load.tolist() == [10, 6]
    assert found.summary().splitlines() == [
        "2 layers, 3 experts + 1 redundant on 2 ranks of 2 slots",
        "balancedness 0.8750 (mean / max rank load), worst layer 0 with 0.8000",
        "balancedness over 2 steps 0.8750, worst step 1 with 0.7778",
        "layer 0: hottest rank 0 carries 1.250 times the mean; hottest expert 0",
        "layer 1: hottest rank 0 carries 1.000 times the mean; hottest expert 0",
    ]


def test_without_load_everything_is_balanced() -> None:
    found = evaluate(Placement([[0, 1]], 2), np.zeros((2, 1, 2)))
    assert (found.overall_balancedness, found.over_steps) == (1, 1)
    assert found.step_balancedness.tolist() == [1, 1]


@dataclass(frozen=True)
class Layered:
    """A placement whose slots differ by layer."""

    layers: tuple[Placement, ...]
    ep_size: int = 2


def test_slots_may_differ_by_layer() -> None:
    parts = (
        Placement([[0, 1, 2, 0]], 2),
        Placement([[2, 0, 1]], 2, slots_per_rank=[1, 2], allow_uneven=True),
    )
    load = np.random.default_rng(0).random((3, 2, 3))
    found = evaluate(Layered(parts), load)
    for layer, part in enumerate(parts):
        alone = load[:, layer : layer + 1]
        np.testing.assert_array_equal(found.rank_load[layer], rank_load(part, alone)[0])
        np.testing.assert_array_equal(found.step_peaks[:, layer], step_peaks(part, alone)[:, 0])
    assert "slots differ by layer" in found.summary()
    with pytest.raises(LoadError, match="load has 3 layers and 3 experts; expected 2 and 3"):
        evaluate(Layered(parts), np.ones((3, 3)))


def test_a_load_of_other_counts_is_refused() -> None:
    with pytest.raises(LoadError, match="load has 1 layer and 3 experts; expected 1 and 2"):
        evaluate(Placement([[0, 1]], 2), [[1, 2, 3]])


# Side by side

LOAD = np.random.default_rng(0).lognormal(sigma=1.5, size=(2, 3, 16))


def test_a_row_for_every_redundancy_and_policy() -> None:
    told: list[tuple[int, int]] = []
    rows = compare(LOAD, ep_size=4, redundant=(0, 4), progress=lambda *done: told.append(done))
    assert [(row.num_redundant_experts, row.policy) for row in rows] == [
        (redundant, policy) for redundant in (0, 4) for policy in POLICY_NAMES
    ]
    number = 2 * len(POLICY_NAMES)
    assert told == [(done, number) for done in range(1, number + 1)]
    for row in rows:
        result = plan(LOAD, ep_size=4, num_redundant_experts=row.num_redundant_experts, policy=row.policy)
        assert row.reason is None
        assert row.num_physical_experts == 16 + row.num_redundant_experts
        assert row.slots_per_rank == row.num_physical_experts // 4
        assert row.overall_balancedness == result.overall_balancedness
        assert row.over_steps == result.over_steps
        assert row.worst_balancedness == result.balancedness.min()
        assert row.worst_layer == result.balancedness.argmin()
        assert row.seconds is not None
        assert row.seconds > 0
    assert rows == compare(ExpertLoad(LOAD), ep_size=4, redundant=(0, 4))


def test_layouts_stand_beside_plans() -> None:
    rows = compare(LOAD, ep_size=4, policies=["linear", "ring"], redundant=[0, 4])
    ring = generate_placement("ring", num_experts=16, ep_size=4, num_redundant_experts=4, num_layers=3)
    assert rows[3].overall_balancedness == overall_balancedness(ring, LOAD)
    assert rows[2].reason == (
        "num_redundant_experts is 4; layout 'linear' takes 0, use 'ring' or 'append' for copies"
    )


@pytest.mark.parametrize(
    ("policy", "options", "reason"),
    [
        (
            "balanced",
            {"redundant": [3]},
            "16 + 3 = 19 slots do not divide by ep_size 4; nearest that work: 0 and 4",
        ),
        ("deepseek", {"redundant": [4000]}, "num_physical_experts is 4016; expected 16 … 64"),
        ("balanced", {"num_groups": 1, "num_nodes": 2}, "num_groups is 1 and num_nodes 2; expected"),
        (
            "deepseek_hierarchical",
            {"num_groups": 1, "num_nodes": 2},
            "num_groups is 1; expected a multiple of num_n",
        ),
        ("deepseek", {"redundant": [3], "allow_uneven": True}, "only 'balanced' plans uneven slots"),
    ],
)
def test_what_cannot_be_planned_is_a_row_with_the_reason(
    policy: str, options: dict[str, Any], reason: str
) -> None:
    (row,) = compare(LOAD, **{"ep_size": 4, "policies": [policy], "redundant": [4], **options})
    assert row.reason is not None
    assert reason in row.reason
    assert "\n" not in row.reason
    assert (row.overall_balancedness, row.worst_layer, row.over_steps, row.seconds) == (
        None,
        None,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"policies": ["best"]},
            f"policy is 'best'; expected one of {', '.join((*POLICY_NAMES, *LAYOUT_NAMES))}",
        ),
        ({"redundant": [-1]}, "num_redundant_experts is -1; expected at least 0"),
        ({"redundant": [1.5]}, "num_redundant_experts is 1.5; expected an integer"),
        ({"ep_size": 0}, "ep_size is 0"),
    ],
)
def test_a_wrong_question_is_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        compare(LOAD, **{"ep_size": 4, **options})
    with pytest.raises(LoadError, match="load at layer 0, expert 1 is nan"):
        compare([[1.0, float("nan")]], ep_size=2)


def test_compare_takes_redundancy_by_either_name() -> None:
    load = np.random.default_rng(0).lognormal(size=(2, 8))
    short = compare(load, ep_size=4, policies=["balanced"], redundant=[0, 4])
    assert compare(load, ep_size=4, policies=["balanced"], num_redundant_experts=[0, 4]) == short
    with pytest.raises(LayoutError, match="both given"):
        compare(load, ep_size=4, redundant=[0], num_redundant_experts=[0])
