# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from expert_maps import (
    ExpertMapsError,
    FormatError,
    Placement,
    ReplicaWeights,
    generate_placement,
    write_weights,
)
from vllm_ascend_moe.core.replicas import (
    MAX_SLOTS,
    ReplicaChoiceError,
    SlotRule,
    build_routing_table,
    read_replica_weights,
)
from vllm_ascend_moe.core.settings import ReplicaChoiceName, Settings
from vllm_ascend_moe.core.sources import PlacementSource
from vllm_ascend_moe.npu_ops.ops import map_to_physical, take_turns

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

CHOICES: tuple[ReplicaChoiceName, ...] = get_args(ReplicaChoiceName)


@dataclass(frozen=True)
class Case:
    placement: Placement
    weights: NDArray[np.float64]
    tp_size: int
    splits_tokens: bool

    def rule(self, choice: ReplicaChoiceName, rank: int) -> SlotRule:
        weights = self.weights if choice == "weighted" else None
        turn = rank if self.splits_tokens else rank // self.tp_size
        return SlotRule(choice, turn, self.tp_size, weights=weights)


def shares(placement: Placement, seed: int) -> NDArray[np.float64]:
    """Return random weights of a placement's copies, float64 [L, E, X]; some are 0."""
    rng = np.random.default_rng(seed)
    exists = placement.logical_to_physical >= 0
    weights = rng.random(exists.shape) * (rng.random(exists.shape) < 0.8) * exists
    weights[..., 0] += weights.sum(axis=2) == 0
    return weights / weights.sum(axis=2, keepdims=True)


def write(placement: Placement, weights: NDArray[np.float64], path: Path) -> str:
    """Write weights as `expert-maps weights` does; what ranks carry by them is not in the file."""
    loads, bound = np.zeros((placement.num_layers, placement.ep_size)), np.zeros(placement.num_layers)
    write_weights(ReplicaWeights(placement, weights, loads, bound), path)
    return str(path)


def a_file(placement: Placement) -> PlacementSource:
    return PlacementSource("map.json", placement, is_file=True, num_layers=placement.num_layers)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw a placement of up to 3 layers on tp_size · dp_size ranks, and weights for it."""
    tp_size, dp_size = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    ep_size, experts = tp_size * dp_size, draw(st.integers(1, 9))
    per_rank = draw(st.integers(-(-experts // ep_size), experts))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        # Runs of different experts, dealt to the ranks in any order: on no rank is one twice.
        order = rng.permutation(experts)[np.arange(per_rank * ep_size) % experts].reshape(ep_size, per_rank)
        rows.append(rng.permuted(rng.permutation(order), axis=1).ravel())
    placement = Placement(np.array(rows), ep_size, num_logical_experts=experts)
    return Case(placement, shares(placement, seed), tp_size, draw(st.booleans()))


def taken(slots: NDArray[np.int64], count: NDArray[np.int64], layer: int, tokens: int) -> torch.Tensor:
    """Return where each of some tokens is sent for every expert by vLLM's tables: [tokens, E]."""
    ids = torch.arange(slots.shape[1]).repeat(tokens, 1)
    return take_turns(ids, torch.from_numpy(slots[layer]), torch.from_numpy(count[layer]))


# The tables


@pytest.mark.parametrize("choice", CHOICES)
@examples(deadline=None, max_examples=60)
@given(cases(), st.data())
def test_every_listed_slot_is_a_copy_of_its_expert(
    choice: ReplicaChoiceName, case: Case, data: st.DataObject
) -> None:
    rank = data.draw(st.integers(0, case.placement.ep_size - 1))
    slots, count = case.rule(choice, rank).tables(case.placement)
    layers, experts = case.placement.replica_count.shape
    assert {slots.dtype, count.dtype} == {np.dtype(np.int64)}
    assert slots.shape[:2] == count.shape == (layers, experts)
    assert count.min() >= 1
    assert count.max() <= slots.shape[2] <= MAX_SLOTS
    for layer in range(layers):
        for expert in range(experts):
            listed = slots[layer, expert, : count[layer, expert]]
            assert (case.placement.physical_to_logical[layer, listed] == expert).all()


@pytest.mark.parametrize("choice", CHOICES)
@examples(deadline=None, max_examples=40)
@given(cases())
def test_past_the_count_there_is_nothing(choice: ReplicaChoiceName, case: Case) -> None:
    slots, count = case.rule(choice, 0).tables(case.placement)
    past = np.arange(slots.shape[2]) >= count[..., None]
    assert (slots[past] == -1).all()


@examples(deadline=None, max_examples=60)
@given(cases(), st.data())
def test_in_turn_every_copy_stands_once(case: Case, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, case.placement.ep_size - 1))
    rule = case.rule("rank_offset", rank)
    slots, count = rule.tables(case.placement)
    np.testing.assert_array_equal(count, case.placement.replica_count)
    copies = case.placement.logical_to_physical
    for layer, expert in np.ndindex(*count.shape):
        n = count[layer, expert]
        wanted = [copies[layer, expert, (i + rule.turn) % n] for i in range(n)]
        assert slots[layer, expert, :n].tolist() == wanted


@examples(deadline=None, max_examples=60)
@given(cases(), st.data())
def test_a_choice_by_rank_lists_one_copy(case: Case, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, case.placement.ep_size - 1))
    copies, n = case.placement.logical_to_physical, case.placement.replica_count
    group, expert = rank // case.tp_size, np.arange(n.shape[1])
    # With tokens split among them the ranks of a group choose for themselves.
    static = rank if case.splits_tokens else group
    slots, count = case.rule("static", rank).tables(case.placement)
    np.testing.assert_array_equal(count, np.ones_like(n))
    np.testing.assert_array_equal(slots, np.take_along_axis(copies, (static % n)[..., None], axis=2))
    if case.splits_tokens:
        turn = (rank % case.tp_size + group + expert) % n
        slots, count = case.rule("tensor_parallel", rank).tables(case.placement)
        np.testing.assert_array_equal(count, np.ones_like(n))
        np.testing.assert_array_equal(slots, np.take_along_axis(copies, turn[..., None], axis=2))


@pytest.mark.parametrize("choice", CHOICES)
@examples(deadline=None, max_examples=60)
@given(cases(), st.data())
def test_they_send_tokens_where_the_routing_tables_do(
    choice: ReplicaChoiceName, case: Case, data: st.DataObject
) -> None:
    # Where ranks see different tokens, so that the rank itself is the turn.
    assume(case.splits_tokens or case.tp_size == 1)
    assume(choice != "tensor_parallel" or case.tp_size > 1)
    rank = data.draw(st.integers(0, case.placement.ep_size - 1))
    layer = data.draw(st.integers(0, case.placement.num_layers - 1))
    weights = {}
    if choice == "weighted":
        # Of one layer, whose copies are as many as the most of all layers.
        weights["replica_weights"] = case.weights[layer]
    table = build_routing_table(case.placement, layer, rank, choice, tp_size=case.tp_size, **weights)
    slots, count = case.rule(choice, rank).tables(case.placement)
    tokens = min(2 * len(table), 300)
    ids = torch.arange(case.placement.num_logical_experts).repeat(tokens, 1)
    assert torch.equal(taken(slots, count, layer, tokens), map_to_physical(ids, table).long())


@examples(deadline=None, max_examples=60)
@given(cases(), st.data())
def test_each_copy_is_taken_as_often_as_its_weight_says(case: Case, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, case.placement.ep_size - 1))
    slots, count = case.rule("weighted", rank).tables(case.placement)
    several = case.placement.replica_count > 1
    assert (count[~several] == 1).all()
    assert len(set(count[several].tolist())) <= 1
    for layer, expert in np.ndindex(*count.shape):
        n = count[layer, expert]
        for index, slot in enumerate(case.placement.logical_to_physical[layer, expert]):
            times = (slots[layer, expert, :n] == slot).sum() if slot >= 0 else 0
            assert abs(times - n * case.weights[layer, expert, index]) < 1 or (slot < 0 and times == 0)


@examples(deadline=None, max_examples=40)
@given(cases(), st.data())
def test_every_prefix_of_tokens_is_as_fair_as_the_whole(case: Case, data: st.DataObject) -> None:
    layer = data.draw(st.integers(0, case.placement.num_layers - 1))
    equal = np.where(case.placement.logical_to_physical >= 0, 1 / case.placement.replica_count[..., None], 0)
    for choice, weights in (("weighted", case.weights), ("rank_offset", equal)):
        slots, count = case.rule(choice, 0).tables(case.placement)  # type: ignore[arg-type]
        tokens = data.draw(st.integers(1, 40))
        sent = taken(slots, count, layer, tokens).numpy()
        for expert in range(sent.shape[1]):
            for index, slot in enumerate(case.placement.logical_to_physical[layer, expert]):
                times = (sent[:, expert] == slot).sum() if slot >= 0 else 0
                assert abs(times - tokens * weights[layer, expert, index]) < 1 + 1e-6


# Near copies


@examples(deadline=None, max_examples=100)
@given(cases(), st.data())
def test_local_takes_the_nearest_copies_in_turn(case: Case, data: st.DataObject) -> None:
    placement, ep_size = case.placement, case.placement.ep_size
    rank = data.draw(st.integers(0, ep_size - 1))
    nodes = data.draw(st.sampled_from([n for n in range(1, ep_size + 1) if ep_size % n == 0]))
    rule = SlotRule.from_settings(
        Settings(replica_choice="local"),
        ep_size=ep_size,
        tp_size=case.tp_size,
        ep_rank=rank,
        splits_tokens=case.splits_tokens,
        num_nodes=nodes,
    )
    if rule.ranks_must_agree and placement.num_redundant_experts:
        with pytest.raises(ReplicaChoiceError, match="replica choice is local"):
            rule.tables(placement)
        return
    slots, count = rule.tables(placement)
    alike = (
        [rank]
        if case.splits_tokens
        else [r for r in range(ep_size) if r // case.tp_size == rank // case.tp_size]
    )
    on_node = [r for r in range(ep_size) if r * nodes // ep_size == alike[0] * nodes // ep_size]
    for layer, expert in np.ndindex(*count.shape):
        copies = [slot for slot, held in enumerate(placement.physical_to_logical[layer]) if held == expert]
        nearest = next(
            found
            for ranks in (alike, on_node, range(ep_size))
            if (found := [slot for slot in copies if placement.slot_rank[slot] in ranks])
        )
        start = rule.turn % len(nearest)
        assert slots[layer, expert, : count[layer, expert]].tolist() == nearest[start:] + nearest[:start]
        assert (slots[layer, expert, count[layer, expert] :] == -1).all()


def test_local_keeps_tokens_on_their_rank_or_else_on_their_node() -> None:
    # Two nodes of two ranks: expert 0 on every rank, 1 on one of each node, 2 and 3 on one node.
    placement = Placement(np.array([[0, 1, 0, 2, 0, 1, 0, 3]]), 4)
    homes = []
    for rank in range(4):
        slots, count = SlotRule("local", rank, num_nodes=2).tables(placement)
        assert count.tolist() == [[1, 1, 1, 1]]
        homes.append(placement.slot_rank[slots[0, :, 0]].tolist())
    assert homes == [[0, 0, 1, 3], [1, 0, 1, 3], [2, 2, 1, 3], [3, 2, 1, 3]]


# Ranks beside each other


def spread(choice: ReplicaChoiceName, weights: tuple[float, ...]) -> list[int]:
    """Return how often each copy of expert 0 is taken by 32 ranks that have a single token each."""
    rows = np.stack([np.arange(32), np.roll(np.arange(32), 1)], axis=1).reshape(1, 64)
    placement = Placement(rows, 32)
    copies = placement.logical_to_physical[0, 0]
    assert len(copies) == 2
    table = np.tile(np.array(weights), (1, 32, 1)) if choice == "weighted" else None
    taken_by_rank = []
    for rank in range(32):
        slots, count = SlotRule(choice, rank, weights=table).tables(placement)
        taken_by_rank.append(taken(slots, count, 0, 1)[0, 0].item())
    return [taken_by_rank.count(copy) for copy in copies]


def test_one_token_on_each_of_32_ranks_is_spread_over_the_copies() -> None:
    assert spread("rank_offset", ()) == [16, 16]
    assert spread("static", ()) == [16, 16]
    assert spread("own_rank", ()) == [16, 16]
    assert spread("weighted", (0.5, 0.5)) == [16, 16]
    assert spread("weighted", (0.75, 0.25)) == [24, 8]


def from_settings(case: Case, choice: ReplicaChoiceName, rank: int, folder: Path) -> SlotRule:
    path = None
    if choice == "weighted":
        path = write(case.placement, case.weights, folder / "weights.npz")
    return SlotRule.from_settings(
        Settings(replica_choice=choice, replica_weights_path=path),
        a_file(case.placement),
        ep_size=case.placement.ep_size,
        tp_size=case.tp_size,
        ep_rank=rank,
        splits_tokens=case.splits_tokens,
    )


@pytest.mark.parametrize("choice", CHOICES)
@examples(deadline=None, max_examples=60)
@given(cases())
def test_ranks_that_see_the_same_tokens_get_equal_tables_or_none(
    choice: ReplicaChoiceName, tmp_path_factory: pytest.TempPathFactory, case: Case
) -> None:
    folder = tmp_path_factory.getbasetemp()
    ranks = range(case.placement.ep_size)
    rules = [from_settings(case, choice, rank, folder) for rank in ranks]
    assert {rule.choice for rule in rules} == {choice}
    refused = 0
    tables = []
    for rule in rules:
        try:
            tables.append(rule.tables(case.placement))
        except ReplicaChoiceError:
            refused += 1
    # All ranks refuse, or none does.
    assert refused in {0, len(rules)}
    if refused:
        assert choice in {"static", "own_rank", "tensor_parallel", "local"}
        assert not case.splits_tokens
        assert case.placement.num_redundant_experts
        return
    if case.splits_tokens:
        return  # every rank has tokens of its own
    for rank in ranks:
        first = rank - rank % case.tp_size
        for found, wanted in zip(tables[rank], tables[first], strict=True):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("choice", ["static", "own_rank", "tensor_parallel", "local"])
@pytest.mark.parametrize(
    ("ep_size", "tp_size", "splits", "choices_refused"),
    [
        (4, 4, False, {"static", "own_rank", "tensor_parallel", "local"}),  # one group sees all tokens
        (4, 2, False, {"own_rank", "tensor_parallel"}),  # the ranks of each group see the same
        (4, 1, False, set()),  # each rank sees its own
        (4, 4, True, set()),
        (4, 2, True, set()),
    ],
)
def test_a_choice_by_rank_is_refused_where_it_would_lose_tokens(
    choice: ReplicaChoiceName, ep_size: int, tp_size: int, splits: bool, choices_refused: set[str]
) -> None:
    def rule(**more: Any) -> SlotRule:  # noqa: ANN401 - options
        options = {"ep_size": ep_size, "tp_size": tp_size, "ep_rank": 1, "splits_tokens": splits}
        return SlotRule.from_settings(Settings(replica_choice=choice), **{**options, **more})

    copies = generate_placement("ring", num_experts=8, ep_size=ep_size, num_redundant_experts=4)
    if choice in choices_refused:
        with pytest.raises(
            ReplicaChoiceError, match=f"replica choice is {choice}, .*; expected rank_offset or weighted"
        ):
            rule().tables(copies)
    else:
        rule().tables(copies)
    # Without copies there is nothing to disagree on.
    rule().tables(generate_placement("ring", num_experts=8, ep_size=ep_size))


@pytest.mark.parametrize(
    ("tp_size", "splits", "turns"),
    [(1, False, [0, 1, 2, 3]), (2, False, [0, 0, 1, 1]), (4, False, [0, 0, 0, 0]), (2, True, [0, 1, 2, 3])],
)
def test_turns_are_those_of_ranks_with_tokens_of_their_own(
    tp_size: int, splits: bool, turns: list[int]
) -> None:
    found = [
        SlotRule.from_settings(
            Settings(), ep_size=4, tp_size=tp_size, ep_rank=rank, splits_tokens=splits
        ).turn
        for rank in range(4)
    ]
    assert found == turns


# Weights


def two_layers() -> tuple[Placement, NDArray[np.float64]]:
    """Layer 0 has an expert with three copies, layer 1 none with more than two."""
    placement = Placement([[0, 1, 0, 2, 0, 1], [0, 1, 2, 0, 1, 2]], 3)
    return placement, shares(placement, 0)


def test_weights_are_those_of_the_layer() -> None:
    placement, weights = two_layers()
    slots, count = SlotRule("weighted", 1, weights=weights).tables(placement)
    second = Placement(placement.physical_to_logical[1:], 3)
    # Alone, the second layer has fewer copies than weights; those past them are 0.
    assert second.logical_to_physical.shape[2] == 2
    found, found_count = SlotRule("weighted", 1, weights=weights).tables(second, first_layer=1)
    np.testing.assert_array_equal(found_count[0], count[1])
    np.testing.assert_array_equal(found[0], slots[1])


def test_weights_narrower_than_the_placement_are_filled_with_zeros() -> None:
    placement, weights = two_layers()
    weights[0, 0] = [0.25, 0.75, 0]
    wide, narrow = (
        SlotRule("weighted", weights=part).tables(placement) for part in (weights, weights[:, :, :2])
    )
    np.testing.assert_array_equal(wide[0], narrow[0])
    np.testing.assert_array_equal(wide[1], narrow[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"weights": np.ones((1, 3, 3)) / 3},
            r"replica_weights has shape \[1, 3, 3\]; expected at least 2 layers",
        ),
        ({"weights": np.ones((2, 4, 3)) / 3}, r"replica_weights has shape \[4, 3\]; expected \[3, 3\]"),
        ({"weights": np.ones((2, 3, 4)) / 4}, r"replica_weights has shape \[3, 4\]; expected \[3, 3\]"),
        ({"at": (0, 2, 1), "value": 0.5}, "expert 2, replica 1 is 0.5; expected 0, because there is no such"),
        ({"at": (1, 0, 0), "value": -1.0}, "expert 0, replica 0 is -1.0; expected at least 0"),
        ({"at": (1, 0, 0), "value": np.nan}, "expert 0, replica 0 is nan"),
        ({"at": (1, 1, 1), "value": 7.0}, "expert 1 sum to 7.*; expected 1"),
    ],
)
def test_weights_that_are_no_shares_are_refused(change: dict[str, Any], message: str) -> None:
    placement, weights = two_layers()
    if "at" in change:
        weights[change["at"]] = change["value"]
    rule = SlotRule("weighted", weights=change.get("weights", weights))
    with pytest.raises(ExpertMapsError, match=message):
        rule.tables(placement)


@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_a_file_of_weights_is_read(tmp_path: Path, suffix: str) -> None:
    placement, weights = two_layers()
    path = write(placement, weights, tmp_path / f"weights{suffix}")
    found = read_replica_weights(path, a_file(placement))
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, weights)
    rule = SlotRule.from_settings(
        Settings(replica_weights_path=path), a_file(placement), ep_size=3, tp_size=1
    )
    assert rule.choice == "weighted"
    assert rule.weights is not None
    np.testing.assert_array_equal(rule.weights, weights)
    assert SlotRule.from_settings(Settings(), ep_size=4, tp_size=1).weights is None


def test_weights_for_another_map_are_refused(tmp_path: Path) -> None:
    placement, weights = two_layers()
    path = write(placement, weights, tmp_path / "weights.npz")
    # The same copies on other ranks: every count and shape is right.
    other = Placement(np.roll(placement.physical_to_logical, 2, axis=1), 3)
    assert other.logical_to_physical.shape == placement.logical_to_physical.shape
    message = rf"weights\.npz holds weights for the map {placement.digest[:12]}; expected {other.digest[:12]}, the map"
    with pytest.raises(FormatError, match=message):
        SlotRule.from_settings(Settings(replica_weights_path=path), a_file(other), ep_size=3, tp_size=1)


def test_weights_for_a_layout_are_for_all_its_layers(tmp_path: Path) -> None:
    layout = {"num_experts": 8, "ep_size": 4, "num_redundant_experts": 4}
    served = generate_placement("ring", **layout, num_layers=3)  # type: ignore[arg-type]
    path = write(served, shares(served, 0), tmp_path / "weights.npz")
    one = generate_placement("ring", **layout)  # type: ignore[arg-type]
    for known in (3, None):
        source = PlacementSource("layout ring", one, is_file=False, num_layers=known)
        assert len(read_replica_weights(path, source)) == 3
    for other, layers in ((one, 2), (generate_placement("append", **layout), 3)):  # type: ignore[arg-type]
        source = PlacementSource("layout", other, is_file=False, num_layers=layers)
        with pytest.raises(FormatError, match="weights hold for one map"):
            read_replica_weights(path, source)


def test_a_file_that_is_not_there_or_names_no_map_is_refused(tmp_path: Path) -> None:
    placement, weights = two_layers()
    with pytest.raises(FormatError, match="no such file"):
        read_replica_weights(str(tmp_path / "none.npz"), a_file(placement))
    np.save(tmp_path / "bare.npy", weights)
    with pytest.raises(FormatError, match=r"bare\.npy: a bare \.npy array, which does not say which map"):
        read_replica_weights(str(tmp_path / "bare.npy"), a_file(placement))
    (tmp_path / "text.npz").write_text("0.5 0.5")
    with pytest.raises(FormatError, match=r"text\.npz: not valid JSON"):
        read_replica_weights(str(tmp_path / "text.npz"), a_file(placement))


# vLLM's table


@pytest.mark.parametrize("choice", CHOICES)
def test_as_many_copies_as_vllm_has_room_for_fit(choice: ReplicaChoiceName) -> None:
    placement = Placement(np.zeros((1, MAX_SLOTS), dtype=int), MAX_SLOTS)
    weights = np.full((1, 1, MAX_SLOTS), 1 / MAX_SLOTS) if choice == "weighted" else None
    slots, count = SlotRule(choice, 7, weights=weights).tables(placement)
    assert slots.shape[2] <= MAX_SLOTS
    assert count.max() <= slots.shape[2]
