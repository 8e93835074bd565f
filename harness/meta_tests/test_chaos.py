# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The chaos run itself: its faults are faults, and what is wrong, lost or grows is told."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from expert_maps import ExpertMapsError, Placement, generate_placement
from expert_maps.formats.loads import write_load
from harness.chaos import __main__ as command
from harness.chaos import running
from harness.chaos.clients import Tally
from harness.chaos.faults import KINDS, FaultyPlan, draw, rubbish, stir
from harness.chaos.operating import slot_faults
from harness.chaos.outcome import Outcome
from harness.chaos.watching import Growth
from harness.record import history
from vllm_ascend_moe.backends.one_plan import OnePlan
from vllm_ascend_moe.core.gain import MoveRule

if TYPE_CHECKING:
    from typer.testing import Result

EXPERTS, RANKS, LAYERS = 16, 2, 4
OLD = torch.from_numpy(
    generate_placement(
        num_experts=EXPERTS, ep_size=RANKS, num_redundant_experts=4, num_layers=LAYERS
    ).physical_to_logical.astype(np.int64)
)
PLANS = 300


class Planner:
    """Plans what is there already."""

    def rebalance_experts(self, *given: Any) -> torch.Tensor:  # noqa: ANN401 - vLLM's
        rows: torch.Tensor = given[-1].clone()
        return rows


def rearranged(plan: OnePlan | FaultyPlan, old: torch.Tensor) -> torch.Tensor:
    rows: torch.Tensor = plan.rebalance_experts(torch.ones(LAYERS, EXPERTS), old.shape[1], 1, 1, RANKS, old)
    return rows


# Faults


def test_faults_are_drawn_alike_on_every_rank_and_all_come_at_once() -> None:
    drawn = [draw(3, number, RANKS) for number in range(PLANS)]
    assert drawn == [draw(3, number, RANKS) for number in range(PLANS)]
    assert drawn != [draw(4, number, RANKS) for number in range(PLANS)]
    assert [fault.kind for fault in drawn[: len(KINDS)]] == list(KINDS)
    assert [drawn[rank].late_seconds[rank] > 0 for rank in range(RANKS)] == [True] * RANKS
    counts = Counter(fault.kind for fault in drawn)
    assert min(counts.values()) > PLANS / 30


def test_what_is_stirred_is_a_placement_and_what_is_rubbish_is_none() -> None:
    kinds = set()
    for seed in range(200):
        chance = random.Random(seed)  # noqa: S311 - a test's data
        Placement(stir(OLD, EXPERTS, RANKS, chance).numpy(), RANKS, num_logical_experts=EXPERTS)
        plan = OnePlan(Planner(), MoveRule(min_gain=0.0), None)
        found = rubbish(OLD, EXPERTS, chance)
        kinds.add(f"{type(found).__name__} {getattr(found, 'dtype', '')} {getattr(found, 'shape', '')}")
        plan._planner = type("Rubbish", (), {"rebalance_experts": lambda *_, found=found: found})()
        assert torch.equal(rearranged(plan, OLD), OLD), found
    assert len(kinds) > 8


def test_plans_that_fail_leave_what_there_is_and_others_move_it() -> None:
    late: list[float] = []
    plan = FaultyPlan(OnePlan(Planner(), MoveRule(), None), 7, 0, RANKS, late.append)
    rows = OLD
    for _ in range(PLANS):
        rows = rearranged(plan, rows)
    assert plan.counts["moved"] == plan.counts["stirred"] > PLANS / 4
    assert sum(plan.counts[kind] for kind in KINDS) == PLANS
    assert len(late) == plan.counts["late"] > 0
    assert plan.counts["changed by a refusal"] == 0
    # What is the plan's own is found through it.
    assert torch.equal(plan.rows, rows)


def test_a_plan_that_takes_rubbish_is_told() -> None:
    class Trusting(OnePlan):
        def rebalance_experts(self, *given: Any) -> torch.Tensor:  # noqa: ANN401 - vLLM's
            try:
                found = self._planner.rebalance_experts(*given)
            except Exception:  # noqa: BLE001 - a careless plan
                return OLD.flip(1)
            return found if isinstance(found, torch.Tensor) else OLD

    plan = FaultyPlan(Trusting(Planner(), MoveRule(), None), 7, 0, RANKS, lambda _: None)
    for _ in range(PLANS):
        rearranged(plan, OLD)
    assert plan.counts["changed by a refusal"] > 0


# What is judged


def reports() -> list[dict[str, Any]]:
    rows = OLD.tolist()
    slots = len(rows[0]) // RANKS
    return [
        {
            "ep_rank": rank,
            "digest": "d",
            "physical_to_logical": rows,
            "slot_checksums": [
                [f"{layer}-{expert}" for expert in row[rank * slots :][:slots]]
                for layer, row in enumerate(rows)
            ],
        }
        for rank in reversed(range(RANKS))
    ]


def test_slots_and_ranks_that_differ_are_told() -> None:
    experts = [{expert: f"{layer}-{expert}" for expert in range(EXPERTS)} for layer in range(LAYERS)]
    assert slot_faults(reports(), experts) == []
    wrong = reports()
    wrong[0]["slot_checksums"][2][3] = "another"
    (said,) = slot_faults(wrong, experts)
    slot = OLD.shape[1] // RANKS + 3
    assert said == f"slot {slot} of layer 2 does not hold expert {int(OLD[2, slot])}, which the tables name"
    wrong[0]["digest"] = "e"
    assert slot_faults(wrong, experts) == ["ranks have different placements: e, d"]


def outcome() -> Outcome:
    found = Outcome(answers=90, tally=Tally(sent=5, right=5, tokens=12), seconds=60.0, looks=3)
    found.faults = Counter({"none": 9, "stirred": 9, "raises": 1, "rubbish": 1, "moved": 17, "late": 2})
    found.growths = [Growth("a server", 48.0, 300.0, 0.1, 40.0, 0.0, 48)]
    return found


def record(folder: Path, choices: int) -> Path:
    path = folder / "load.npz"
    write_load(np.full((1, LAYERS, EXPERTS), choices // EXPERTS), path)
    return path


def test_what_must_not_be_is_a_problem(tmp_path: Path) -> None:
    load = record(tmp_path, 48)
    found = outcome()
    running.judge(found, load, top_k=4, least=1)
    assert found.problems == []
    for change, words in (
        ({"wrong": 1, "right": 4}, "1 wrong"),
        ({"lost": 1, "right": 4}, "1 lost"),
        ({"sent": 6}, "6 requests were sent"),
        ({"tokens": 13}, "expected 52 in each"),
    ):
        found = outcome()
        vars(found.tally).update(change)
        running.judge(found, load, top_k=4, least=1)
        (said,) = found.problems
        assert words in said
    for name, words in (("rubbish", "no plan was there with rubbish"), ("late", "with late")):
        found = outcome()
        del found.faults[name]
        running.judge(found, load, top_k=4, least=1)
        assert words in found.problems[0]
    found = outcome()
    running.judge(found, load, top_k=4, least=4)
    (said,) = found.problems
    assert said.startswith(
        "memory and descriptors of 1 processes were sampled often enough; expected those of 4"
    )
    found = outcome()
    found.faults["changed by a refusal"] = 1
    found.growths = [Growth("a server", 1200.0, 300.0, 50.0, 40.0, 0.0, 1000)]
    running.judge(found, tmp_path / "none.npz", top_k=4, least=1)
    assert [
        word in " ".join(found.problems)
        for word in ("that failed moved", "grew by 50.0 MiB", "cannot be read")
    ] == [True] * 3


def ask(monkeypatch: pytest.MonkeyPatch, folder: Path, found: Outcome) -> Result:
    monkeypatch.setattr(running, "run", lambda *_: found)
    app = typer.Typer()
    app.command()(command.main)
    model = folder / "model"
    model.mkdir(exist_ok=True)
    return CliRunner().invoke(
        app, ["--minutes", "1", "--output", str(folder), "--model", str(model), "--seed", "4"]
    )


def test_the_command_writes_one_record_and_fails_where_something_is_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done = ask(monkeypatch, tmp_path, outcome())
    assert done.exit_code == 0, done.output
    assert "5 requests in 60 s: 5 right, 0 wrong, 0 lost" in done.output
    found = outcome()
    found.problems = ["a slot is wrong"]
    done = ask(monkeypatch, tmp_path, found)
    assert done.exit_code == 1
    assert "FAILED: a slot is wrong\nagain: python -m harness.chaos --seed 4 --minutes 1" in done.output
    first, second = history.read(tmp_path / "chaos.jsonl")
    assert (first.kind, first.settings["seed"], first.quality["problems"]) == ("chaos", 4, 0)
    assert second.proof["problems"] == ["a slot is wrong"]


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    options = running.Options(tmp_path, 1, 0, 1, 2, tmp_path)
    with pytest.raises(ExpertMapsError, match="expected the folder of a Mixture-of-Experts checkpoint"):
        running.run(options, print)


def test_every_test_that_the_page_of_faults_names_is_there() -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs/faults.md").read_text(encoding="utf-8")
    tests = [
        path.read_text(encoding="utf-8") for path in root.glob("packages/vllm-ascend-moe/tests*/test_*.py")
    ]
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(named) > 10
    assert [name for name in named if not any(f"def {name}(" in text for text in tests)] == []
    cases = (root / "harness/src/harness/ascend/cases.py").read_text(encoding="utf-8")
    for case in re.findall(r"case `([^`]+)`", page):
        assert f'"{case}"' in cases
