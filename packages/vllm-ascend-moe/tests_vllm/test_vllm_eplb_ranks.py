# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Placing, planning, committing, recording and loading anew, on two ranks with vLLM's own EPLB state and no engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import eplb_ranks
import numpy as np
import pytest
import torch
from engine import fork_server
from eplb_ranks import EXPERTS, LAYERS, RANKS, ROWS, SLOTS, Engine

from expert_maps import read_load

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LONG = 120
# By vLLM's loader: each expert in the slot of its number, then copies from the first on.
LOADED = [[0, 1, 2, 3, 4, 5, 0, 1]] * LAYERS
# In each layer an expert is hot that has one copy.
HOTTEST = (0, 1, 4)
HOT = np.full((LAYERS, EXPERTS), 20)
HOT[range(LAYERS), HOTTEST] = 500


def both(folder: Path, scenario: Callable[[int, str], Any]) -> list[Any]:
    """Run a scenario on two ranks at once and return what each returns."""
    eplb_ranks.write_map(folder)
    context = fork_server()
    answers = context.Queue()
    processes = [
        context.Process(target=eplb_ranks.run, args=(rank, str(folder), scenario, answers))
        for rank in range(RANKS)
    ]
    for process in processes:
        process.start()
    try:
        found = sorted((answers.get(timeout=LONG) for _ in processes), key=lambda answer: answer[0])
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    errors = [error for _, _, error in found if error]
    assert not errors, "\n".join(errors)
    return [result for _, result, _ in found]


# Placing


def place(rank: int, folder: str) -> Any:  # noqa: ANN401 - of every scenario
    engine = Engine(rank, folder)
    before = engine.rows, engine.wrong_slots()
    engine.serve(HOT, steps=5)
    return before, (engine.rows, engine.wrong_slots()), engine.session.rearrangements


def test_experts_stand_where_the_map_says_and_stay(tmp_path: Path) -> None:
    for before, after, rearrangements in both(tmp_path, place):
        assert before == after == (ROWS.tolist(), 0)
        assert rearrangements == 0


# Planning


def rearrange(rank: int, folder: str) -> Any:  # noqa: ANN401
    found = []
    for options in ({}, {"policy": "vllm"}, {"max_layers": 1}, {"min_gain": 1.0}):
        engine = Engine(rank, folder, dynamic=True, **{"min_gain": 0.0, **options})
        counts = []
        for _ in range(3):
            engine.serve(HOT, steps=2)
            counts.append(engine.session.rearrangements)
        moved = [
            row for row, (old, new) in enumerate(zip(ROWS.tolist(), engine.rows, strict=True)) if old != new
        ]
        said = [line for line in engine.lines if "nothing is moved" in line]
        found.append((engine.rows, engine.wrong_slots(), counts, moved, said))
    return found


def test_ranks_rearrange_alike_and_tables_follow_weights(tmp_path: Path) -> None:
    first, second = both(tmp_path, rearrange)
    assert [entry[:3] for entry in first] == [entry[:3] for entry in second]
    planned, theirs, one_layer, nothing = first
    for rows, wrong, counts, moved, said in (planned, theirs):
        assert wrong == 0
        assert moved == [0, 1, 2]
        # The same load again is the same plan, which is no rearrangement.
        assert counts == [1, 1, 1]
        assert not said
        # The hot expert has its copies on both ranks.
        for expert, row in zip(HOTTEST, rows, strict=True):
            assert expert in row[:SLOTS]
            assert expert in row[SLOTS:]
    # A layer at a time, until all have moved.
    assert one_layer[1:4] == (0, [1, 2, 3], [0, 1, 2])
    # A gain that no plan has.
    assert nothing[0] == ROWS.tolist()
    assert nothing[2] == [0, 0, 0]
    (said,) = nothing[4]
    assert "min_gain is 100.00%" in said
    assert second[3][4] == []


def fail(rank: int, folder: str) -> Any:  # noqa: ANN401
    engine = Engine(rank, folder, dynamic=True, min_gain=0.0)
    good = torch.tensor(LOADED)

    def raises(*_: object) -> torch.Tensor:
        msg = "a bug"
        raise TypeError(msg)

    def on_rank(wanted: int, answer: Any) -> Callable[..., torch.Tensor]:  # noqa: ANN401
        def plan(*_: object) -> torch.Tensor:
            return raises() if answer is None and rank == wanted else good if answer is None else answer

        return plan

    def differing(*_: object) -> torch.Tensor:
        return good if rank == 0 else good.flip(1)

    without = good.clone()
    without[1, without[1] == 3] = 2
    plans = {
        "both fail": raises,
        "the first fails": on_rank(0, None),
        "too short": lambda *_: good[:, :6],
        "no such expert": lambda *_: good + 1,
        "an expert without a slot": lambda *_: without,
        "not a plan": lambda *_: None,
        "the second would fail": on_rank(1, None),
        "they differ": differing,
    }
    found = {}
    for name, plan in plans.items():
        engine.state.policy._planner.rebalance_experts = plan
        engine.lines.clear()
        engine.serve(HOT, steps=2)
        found[name] = engine.rows, engine.wrong_slots(), engine.session.rearrangements, list(engine.lines)
    return found


def test_one_rank_plans_for_all_and_what_is_no_plan_leaves_all_as_they_are(tmp_path: Path) -> None:
    first, second = both(tmp_path, fail)
    reasons = {
        "both fail": "TypeError: a bug",
        "the first fails": "TypeError: a bug",
        "too short": "LayoutError: the plan is [3, 6]; expected [3, 8], as the present placement is",
        "no such expert": "PlacementError: ",
        "an expert without a slot": "PlacementError: ",
        "not a plan": "AttributeError: ",
    }
    for name, reason in reasons.items():
        for rows, wrong, rearrangements, _ in (first[name], second[name]):
            assert (rows, wrong, rearrangements) == (ROWS.tolist(), 0, 0), name
        (line,) = first[name][3] + second[name][3]
        assert line.startswith(
            f"no plan could be made, so that the placement stays as it is on all ranks: {reason}"
        )
    for name, count in (("the second would fail", 1), ("they differ", 1)):
        assert first[name] == second[name] == (LOADED, 0, count, [])


# Committing one layer, as asynchronous EPLB does


def commit(rank: int, folder: str) -> Any:  # noqa: ANN401
    from vllm.distributed.eplb import eplb_state

    from vllm_ascend_moe.hooks import table, wrapping

    engine = Engine(rank, folder, dynamic=True, replica_choice="rank_offset")
    state, original = engine.model_state, wrapping.original(table.COMMIT_LAYER)
    rng = np.random.default_rng(3)
    found = []
    for layer in (2, 0, 2, 1):
        row = torch.from_numpy(rng.permutation([*range(EXPERTS), *rng.integers(EXPERTS, size=2)]))
        original(state, row, layer)
        theirs = [tensor[layer].clone() for tensor in _tables(state)]
        for tensor in _tables(state):
            tensor[layer] = 0
        eplb_state._commit_eplb_maps_for_layer(state, row, layer)
        ours = [tensor[layer].clone() for tensor in _tables(state)]
        # Each expert's copies in turn, beginning one further on the second rank.
        for expert, count in enumerate(theirs[2].tolist()):
            theirs[1][expert, :count] = theirs[1][expert, :count].roll(-rank)
        found.append([torch.equal(*pair) for pair in zip(ours, theirs, strict=True)])
    return found, engine.session.rearrangements


def _tables(state: Any) -> list[torch.Tensor]:  # noqa: ANN401 - vLLM's
    return [state.physical_to_logical_map, state.logical_to_physical_map, state.logical_replica_count]


def test_a_layers_commit_writes_what_vllms_writes_with_the_choice_over_it(tmp_path: Path) -> None:
    for found, _ in both(tmp_path, commit):
        assert found == [[True] * 3] * 4


# Recording


def record(rank: int, folder: str) -> Any:  # noqa: ANN401
    engine = Engine(rank, folder, record_path=f"{folder}/load.npz")
    loads = [HOT, HOT * 0, HOT * 3 + 2]
    for load in loads:
        engine.model_state.expert_load_pass.zero_()
        engine.serve(load)
    engine.session.stop()
    return engine.session.recorder is not None


def test_tokens_are_recorded_by_logical_expert_over_both_ranks(tmp_path: Path) -> None:
    assert both(tmp_path, record) == [True, False]
    found = read_load(tmp_path / "load.npz").counts
    copies = np.stack([np.bincount(row, minlength=EXPERTS) for row in ROWS])
    wanted = [load // copies * copies for load in (HOT, HOT * 3 + 2)]
    assert found.tolist() == np.stack(wanted).tolist()


# New weights


def reload(rank: int, folder: str) -> Any:  # noqa: ANN401
    engine = Engine(rank, folder)
    worker = engine.worker
    found = [("at first", engine.rows, engine.wrong_slots(1.0))]
    worker.reload_weights(2.0)
    found.append(("at once", engine.rows, engine.wrong_slots(2.0)))
    # In parts: what is served until the end is vLLM's own layout, table by table.
    worker.start_weight_update()
    found.append(("begun", engine.rows, engine.wrong_slots(2.0)))
    worker.update_weights(3.0)
    found.append(("a part", engine.rows, engine.wrong_slots(3.0)))
    worker.finish_weight_update()
    found.append(("in parts", engine.rows, engine.wrong_slots(3.0)))
    # What cannot be loaded leaves the old weights in vLLM's layout, and the next ones go where the map says.
    with pytest.raises(OSError, match="no such checkpoint"):
        worker.reload_weights(-1.0)
    found.append(("failed", engine.rows, engine.wrong_slots(3.0)))
    worker.start_weight_update()
    with pytest.raises(OSError, match="no such checkpoint"):
        worker.update_weights(-1.0)
    found.append(("failed", engine.rows, engine.wrong_slots(3.0)))
    worker.reload_weights(4.0)
    found.append(("after all", engine.rows, engine.wrong_slots(4.0)))
    return found, [line for line in engine.lines if "could not be loaded" in line]


def test_new_weights_fill_every_copy_and_stand_where_the_map_says(tmp_path: Path) -> None:
    mapped = {"at first", "at once", "in parts", "after all"}
    for found, lines in both(tmp_path, reload):
        for name, rows, wrong in found:
            assert (rows, wrong) == (ROWS.tolist() if name in mapped else LOADED, 0), name
        assert len(lines) == 2


def reload_while_moving(rank: int, folder: str) -> Any:  # noqa: ANN401
    engine = Engine(rank, folder, dynamic=True, min_gain=0.0)
    engine.serve(HOT, steps=2)
    live = engine.rows
    engine.worker.start_weight_update()
    engine.serve(HOT[:, ::-1], steps=4)
    during = engine.rows
    engine.worker.update_weights(2.0)
    engine.worker.finish_weight_update()
    after = engine.rows, engine.wrong_slots(2.0)
    engine.serve(HOT[:, ::-1], steps=4)
    return live, during, after, engine.rows, engine.wrong_slots(2.0), engine.session.rearrangements


def test_experts_that_have_moved_go_back_there_and_none_move_meanwhile(tmp_path: Path) -> None:
    first, second = both(tmp_path, reload_while_moving)
    assert first == second
    live, during, after, last, wrong, rearrangements = first
    assert live != ROWS.tolist()
    assert during == LOADED
    assert after == (live, 0)
    assert last != live
    assert (wrong, rearrangements) == (0, 2)


def reload_wrongly(rank: int, folder: str) -> Any:  # noqa: ANN401
    engine = Engine(rank, folder)
    load = engine.model.load

    def without_copies(version: float) -> None:
        copies = [weights[2:].clone() for weights in engine.model.weights]
        load(version)
        if rank == 1:
            for weights, copy in zip(engine.model.weights, copies, strict=True):
                weights[2:] = copy

    engine.model.load = without_copies  # type: ignore[method-assign]
    try:
        engine.worker.reload_weights(2.0)
    except Exception as error:  # noqa: BLE001 - the test tells
        return f"{type(error).__name__}: {error}"
    return None


def test_copies_that_a_loader_leaves_out_are_found(tmp_path: Path) -> None:
    for found in both(tmp_path, reload_wrongly):
        assert found.startswith("DisagreementError: slot 0 of MoE layer 0 does not hold, after loading")
