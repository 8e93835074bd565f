# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert_maps.simulation`: every number again by naive loops, and nothing from the future."""

from __future__ import annotations

import json
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
import pytest

from expert_maps import ExpertLoad, ExpertMapsError, Placement, plan
from expert_maps.errors import FormatError
from expert_maps.policies import EVERY_POLICY
from expert_maps.simulation import OFF, Costs, Run, Setting, replay, simulate, sweep, transfer_rounds

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

PRICE = Costs(expert_bytes=1000, bandwidth=2.0)


def trace_of(seed: int, steps: int = 9, layers: int = 2, experts: int = 8) -> ExpertLoad:
    counts = np.random.default_rng(seed).lognormal(sigma=1.2, size=(steps, layers, experts)) * 100
    return ExpertLoad(counts.astype(np.int64))


def naive_hottest(slots: NDArray[np.int32], ranks: int, tokens: NDArray[np.float64]) -> float:
    """Tokens of the hottest rank, over layers, one slot at a time."""
    total = 0.0
    for layer, row in enumerate(slots.tolist()):
        per_rank = [0.0] * ranks
        for slot, expert in enumerate(row):
            per_rank[slot * ranks // len(row)] += tokens[layer, expert] / row.count(expert)
        total += max(per_rank)
    return total


def naive_moves(before: NDArray[np.int32], after: NDArray[np.int32], ranks: int) -> tuple[int, int]:
    """Slots that change, and those whose expert came from another rank."""
    changed = fetched = 0
    for old, new in zip(before.tolist(), after.tolist(), strict=True):
        own = len(old) // ranks
        for slot, expert in enumerate(new):
            rank = slot // own
            changed += expert != old[slot]
            fetched += expert != old[slot] and expert not in old[rank * own : rank * own + own]
    return changed, fetched


def naive_rounds(before: NDArray[np.int32], after: NDArray[np.int32], ranks: int) -> int:
    """Rounds of transfers: of the ranks that hold an expert, the one that has sent least so far sends it."""
    total = 0
    for old, new in zip(before.tolist(), after.tolist(), strict=True):
        own = len(old) // ranks
        sends, receives = [0] * ranks, [0] * ranks
        for slot, expert in enumerate(new):
            rank = slot // own
            if expert in old[rank * own : rank * own + own]:
                continue
            holders = [other for other in range(ranks) if expert in old[other * own : other * own + own]]
            least = min(sends[other] for other in holders)
            sends[next(other for other in holders if sends[other] == least)] += 1
            receives[rank] += 1
        total += max(sends + receives)
    return total


def naive_balancedness(slots: NDArray[np.int32], ranks: int, seen: NDArray[np.float64]) -> float:
    hottest = sum(naive_hottest(slots, ranks, step) for step in seen)
    return float(seen.sum()) / ranks / hottest


SETTINGS = [
    (Setting("balanced", 4, 4, 3), None),
    (Setting("balanced", 4, 4, 2, max_moves=2), 4),
    (Setting("balanced", 4, 4, 0), None),
    (Setting("balanced", 4, 4, 2, threshold=0.7), 3),
    (Setting("balanced", 2, 0, 2), None),
    (Setting("reference", 4, 4, 4), None),
    *((Setting(f"deepseek{kind}", 4, 4, 3), None) for kind in ("", "_hierarchical", "_global")),
]


@pytest.mark.parametrize(
    ("setting", "window"), SETTINGS, ids=lambda value: getattr(value, "name", str(value))
)
def test_numbers_by_a_naive_loop(setting: Setting, window: int | None) -> None:
    trace, ranks = trace_of(1), setting.ep_size
    run = replay(trace, setting, window=window, costs=PRICE)
    slots = np.tile(np.arange(8 + setting.num_redundant_experts, dtype=np.int32) % 8, (2, 1))
    found = dict.fromkeys(("changed_slots", "fetched_slots", "rounds", "rearrangements", "skipped"), 0)
    for step in range(9):
        stall = 0.0
        if step > 0 and (step == 4 if setting.interval == 0 else step % setting.interval == 0):
            seen = trace.counts[max(0, step - (window or setting.interval or step)) : step]
            if naive_balancedness(slots, ranks, seen) >= setting.threshold:
                found["skipped"] += 1
            else:
                old = Placement(slots, ranks, num_logical_experts=8)
                new = plan(
                    seen,
                    ep_size=ranks,
                    num_redundant_experts=setting.num_redundant_experts,
                    policy=setting.policy,
                    current=old if setting.policy == "balanced" else None,
                    max_moves=setting.max_moves,
                ).placement.physical_to_logical
                changed, fetched = naive_moves(slots, new, ranks)
                rounds = naive_rounds(slots, new, ranks)
                for name, more in zip(found, (changed, fetched, rounds, changed > 0, 0), strict=True):
                    found[name] += int(more)
                stall, slots = rounds * 1000 / 2e9, new
        else:
            assert run.planner[step] == 0
        assert run.stall[step] == pytest.approx(stall)
        assert run.hottest[step] == pytest.approx(naive_hottest(slots, ranks, trace.counts[step]))
    assert {name: getattr(run, name) for name in found} == found
    assert found["rearrangements"] > 0
    assert (found["skipped"] > 0) == (setting.threshold < 1)
    assert run.moved_bytes == 1000 * found["fetched_slots"]
    assert run.mean == pytest.approx(trace.counts.sum(axis=(1, 2)) / ranks)
    assert run.over_steps == pytest.approx(run.mean.sum() / run.hottest.sum())


def test_every_policy_of_plan_is_replayed() -> None:
    assert {setting.policy for setting, _ in SETTINGS} == set(EVERY_POLICY)


def test_without_eplb_the_linear_layout_stays() -> None:
    trace = trace_of(2)
    run = replay(trace, Setting(OFF, 4))
    linear = np.tile(np.arange(8, dtype=np.int32), (2, 1))
    assert run.hottest == pytest.approx([naive_hottest(linear, 4, step) for step in trace.counts])
    assert (run.rearrangements, run.moved_bytes, run.stall.sum(), run.planner.sum()) == (0, 0, 0, 0)


def test_the_future_changes_nothing_before_it() -> None:
    trace = trace_of(3)
    for step in range(1, 9):
        other = trace.counts.copy()
        other[step:] = trace_of(99).counts[step:]
        for setting in (
            Setting("balanced", 4, 4, 2),
            Setting("deepseek", 4, 4, 3),
            Setting("balanced", 4, 4, 0),
        ):
            one, two = replay(trace, setting, costs=PRICE), replay(ExpertLoad(other), setting, costs=PRICE)
            assert one.hottest[:step].tolist() == two.hottest[:step].tolist()
            # What moves before a step is known before it.
            assert one.stall[: step + 1].tolist() == two.stall[: step + 1].tolist()


def test_a_balanced_window_is_left_alone() -> None:
    trace = ExpertLoad(np.ones((6, 2, 8)))
    run = replay(trace, Setting("balanced", 4, 0, 2, threshold=0.9))
    assert (run.skipped, run.rearrangements) == (2, 0)
    assert replay(trace_of(1), Setting("balanced", 4, 0, 2, threshold=0.0)).skipped == 4


def best_rounds(edges: list[tuple[int, list[int]]], ranks: int) -> int:
    """The fewest rounds, for every choice of senders, as the highest degree."""
    best = 10**6
    choices: list[list[int]] = [[]]
    for _, owners in edges:
        choices = [[*chosen, owner] for chosen in choices for owner in owners]
    for chosen in choices:
        sends = [chosen.count(rank) for rank in range(ranks)]
        receives = [sum(rank == to for to, _ in edges) for rank in range(ranks)]
        best = min(best, max(sends + receives))
    return best


def test_rounds_of_a_permutation_and_of_one_receiver() -> None:
    before = Placement([[0, 1, 2, 3]], 4)
    for order in permutations(range(4)):
        after = Placement([list(order)], 4)
        assert transfer_rounds(before, after)[2] == int(list(order) != [0, 1, 2, 3])
    two = Placement([[0, 1, 2, 3, 4, 5]], 3)
    after = Placement([[2, 3, 0, 1, 4, 5]], 3)
    assert transfer_rounds(two, after) == (4, 4, 2)
    copies = Placement([[0, 1, 0, 2, 3, 1, 3, 2]], 4, num_logical_experts=4)
    after = Placement([[0, 2, 0, 1, 3, 2, 3, 1]], 4, num_logical_experts=4)
    edges = [(0, [1, 3]), (1, [0, 2]), (2, [1, 3]), (3, [0, 2])]
    assert transfer_rounds(copies, after) == (4, 4, best_rounds(edges, 4))
    assert best_rounds(edges, 4) == 1


def test_sweep_has_every_combination_once_and_the_server_without_eplb_first() -> None:
    found = sweep(
        ep_sizes=[2, 4],
        redundant=[0, 4],
        policies=["balanced", "deepseek"],
        intervals=[0, 3],
        max_moves=[None, 2],
    )
    assert len(found) == len(set(found)) == 2 * (1 + 2 * 2 * (2 + 1))
    assert [found[0], found[13]] == [Setting(OFF, 2), Setting(OFF, 4)]


def same(one: Run, two: Run) -> bool:
    return (one.setting, one.hottest.tolist(), one.moved_bytes, one.reason) == (
        two.setting,
        two.hottest.tolist(),
        two.moved_bytes,
        two.reason,
    )


def test_processes_give_what_one_does_and_runs_are_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = trace_of(4)
    settings = sweep(ep_sizes=[4], redundant=[0, 3, 4], intervals=[2])
    alone = simulate(trace, settings, costs=PRICE)
    kept = tmp_path / "runs.jsonl"
    told: list[tuple[int, int]] = []
    together = simulate(
        trace, settings, costs=PRICE, workers=2, resume=kept, progress=lambda *each: told.append(each)
    )
    assert all(map(same, alone, together))
    assert "multiple of ep_size 4" in str(alone[2].reason) or "divide" in str(alone[2].reason)
    assert told[-1] == (4, 4)
    assert len(kept.read_text().splitlines()) == 4
    kept.write_text("".join(f"{line}\n" for line in kept.read_text().splitlines()[:3]) + '{"key": "cut')
    from expert_maps.simulation import sweeping
    from expert_maps.simulation.replay import attempt

    ran: list[Setting] = []

    def counted(load: ExpertLoad, setting: Setting, **how: object) -> Run:
        ran.append(setting)
        return attempt(load, setting, **how)

    monkeypatch.setattr(sweeping, "attempt", counted)
    assert all(map(same, alone, simulate(trace, settings, costs=PRICE, resume=kept)))
    assert len(ran) == 1
    simulate(trace, settings, costs=Costs(1, 1.0), resume=kept)  # other costs: none of them is taken
    assert len(ran) == 5
    assert len([json.loads(line) for line in kept.read_text().splitlines()]) == 8
    kept.write_text("no run\n")
    with pytest.raises(FormatError, match="line 1 is no finished run"):
        simulate(trace, settings, resume=kept)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Setting("best", 4), "policy is 'best'"),
        (lambda: Setting("balanced", 4, interval=-1), "interval is -1"),
        (lambda: Setting("balanced", 4, threshold=float("nan")), "threshold is nan"),
        (lambda: Setting("deepseek", 4, max_moves=3), "only balanced can limit"),
        (lambda: Costs(bandwidth=0), "bandwidth is 0; expected a number of GB/s"),
        (lambda: Costs(expert_bytes=-1), "expert_bytes is -1"),
        (
            lambda: replay(trace_of(1), Setting("balanced", 4), first=9),
            "first is 9; expected less than the 9",
        ),
        (lambda: replay(trace_of(1), Setting("balanced", 4), window=0), "window is 0"),
        (lambda: simulate(trace_of(1), [], workers=0), "workers is 0"),
    ],
)
def test_what_is_refused(make: object, said: str) -> None:
    with pytest.raises(ExpertMapsError, match=said):
        make()  # type: ignore[operator]
