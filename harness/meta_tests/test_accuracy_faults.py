# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Faults do what they say and are undone; harmless changes are harmless: on a small MoE layer, without vLLM."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import Arm, eplb, make

from expert_maps import ExpertMapsError, Placement, generate_placement
from expert_maps.files import read_json
from harness.accuracy import faults, halves, trials
from harness.accuracy.false_alarms import record_of
from harness.accuracy.false_alarms import trial_of as seed_of
from harness.accuracy.faults import KINDS, Fault, Kind, ServedLayer, choose, inject
from harness.accuracy.harmless import SHAPES, draw, draw_placement, draw_weights
from harness.accuracy.int8 import quantise
from harness.accuracy.offline import Order
from harness.accuracy.proof_pages import CHECKSUMS, OUTPUTS, alarms_page, faults_page
from harness.accuracy.sensitivity import is_sensitive, trial_of
from harness.accuracy.verdict import judge
from vllm_ascend_moe.core.replicas import SlotRule
from vllm_ascend_moe.npu_ops.experts import ExpertWeights, apply_experts
from vllm_ascend_moe.npu_ops.ops import take_turns_and_record

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vllm_ascend_moe.core.replicas import ReplicaChoice

EXPERTS, RANKS, HIDDEN, WIDTH, TOP_K, TOKENS = 8, 2, 32, 32, 2, 64
OF_A_REPLICA: tuple[Kind, ...] = ("neighbour", "zeroed", "noise", "dropped slot")
OF_TABLES: tuple[Kind, ...] = ("log2phy shifted by one", "physical-length map")
PAST_THE_END: Kind = "physical-length map, past its end"
PLACEMENT = generate_placement(num_experts=EXPERTS, ep_size=RANKS, num_redundant_experts=4, num_layers=1)


def weights(*, int8: bool = False) -> list[torch.Tensor]:
    """Weights of all experts, [E, out, in] as vLLM's, and their scales where they are int8."""
    generator = torch.Generator().manual_seed(1)
    w13 = torch.randn(EXPERTS, 2 * WIDTH, HIDDEN, generator=generator) / HIDDEN**0.5
    w2 = torch.randn(EXPERTS, HIDDEN, WIDTH, generator=generator) / WIDTH**0.5
    if not int8:
        return [w13, w2]
    pairs = [quantise(one.reshape(-1, one.shape[2])) for one in (w13, w2)]
    values = [pair[0].view(EXPERTS, -1, pair[0].shape[1]) for pair in pairs]
    return values + [pair[1].view(EXPERTS, -1, 1) for pair in pairs]


def serve(placement: Placement, rule: SlotRule | None = None, *, int8: bool = False) -> list[ServedLayer]:
    """Layer 0 of a placement, as each rank has it."""
    slots, count = (rule or SlotRule("rank_offset", ranks_must_agree=True)).tables(placement)
    rows = torch.from_numpy(placement.physical_to_logical[0].astype(np.int64))
    layers = []
    for rank in range(placement.ep_size):
        first, size = int(placement.rank_offsets[rank]), int(placement.slots_per_rank[rank])
        here = torch.arange(placement.num_physical_experts) - first
        own = rows[first : first + size]
        layers.append(
            ServedLayer(
                tuple(tensor[own].clone() for tensor in weights(int8=int8)),
                torch.from_numpy(slots[0].copy()),
                torch.from_numpy(count[0].copy()),
                torch.where((here >= 0) & (here < size), here, -1).int(),
                rows,
            )
        )
    return layers


def run(layers: list[ServedLayer]) -> torch.Tensor:
    """What the layer answers: the sum over ranks, float32 [T, H]."""
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator)
    logits = torch.randn(TOKENS, EXPERTS, generator=generator)
    probs, ids = logits.softmax(1).topk(TOP_K)
    total = torch.zeros(TOKENS, HIDDEN)
    for layer in layers:
        load = torch.zeros(len(layer.physical_to_logical), dtype=torch.int64)
        physical = take_turns_and_record(ids.int(), layer.slots, layer.count, load, num_tokens=0)
        w13, w2, *scales = layer.tensors
        found = ExpertWeights(
            w13.transpose(1, 2), w2.transpose(1, 2), *(scale.flatten(1) for scale in scales)
        )
        dtype = torch.bfloat16 if scales else torch.float32
        part = apply_experts(hidden.to(dtype), probs, physical, found, expert_map=layer.expert_map)
        total += part.float()
    return total


def changed(layers: list[ServedLayer], fault: Fault) -> list[list[bool]]:
    """Inject a fault on all ranks; for each, which of its tensors are not as before."""
    found = []
    for layer in layers:
        before = layer.copy()
        inject(layer, fault)
        found.append([not torch.equal(old, new) for old, new in zip(before, layer.mutable, strict=True)])
    return found


@settings(max_examples=20, deadline=None)
@given(kind=st.sampled_from(OF_A_REPLICA), seed=st.integers(0, 2**31))
def test_a_fault_of_a_replica_is_on_one_rank_in_one_slot(kind: Kind, seed: int) -> None:
    fault = choose(PLACEMENT, kind, 0, seed)
    assert PLACEMENT.replica_count[0, PLACEMENT.physical_to_logical[0, fault.slot]] > 1
    layers = serve(PLACEMENT)
    before = serve(PLACEMENT)
    found = changed(layers, fault)
    owner = fault.slot // (PLACEMENT.num_physical_experts // RANKS)
    local = fault.slot - int(PLACEMENT.rank_offsets[owner])
    map_only = kind == "dropped slot"
    # w13, w2, slots, count, expert map
    assert found[owner] == [not map_only, not map_only, False, False, map_only]
    assert not any(found[1 - owner])
    for old, new in zip(before[owner].tensors, layers[owner].tensors, strict=True):
        others = torch.arange(len(old)) != local
        assert torch.equal(old[others], new[others])


def test_seeds_stand_for_other_replicas() -> None:
    copies = int((PLACEMENT.replica_count[0][PLACEMENT.physical_to_logical[0]] > 1).sum())
    drawn = [choose(PLACEMENT, "zeroed", 0, seed).slot for seed in range(copies + 1)]
    assert len(set(drawn)) == copies
    assert drawn[copies] == drawn[0]


def test_what_a_faulty_replica_holds() -> None:
    for seed in range(8):
        fault = choose(PLACEMENT, "neighbour", 0, seed)
        owner = fault.slot // (PLACEMENT.num_physical_experts // RANKS)
        local = fault.slot - int(PLACEMENT.rank_offsets[owner])
        own = int(PLACEMENT.physical_to_logical[0, fault.slot])

        def broken(kind: Kind, fault: Fault = fault, owner: int = owner) -> ServedLayer:
            layer = serve(PLACEMENT)[owner]
            inject(layer, Fault(kind, 0, fault.slot, fault.seed))
            return layer

        first = broken("neighbour").tensors[0][local]
        holders = [expert for expert in range(EXPERTS) if torch.equal(weights()[0][expert], first)]
        assert len(holders) == 1
        assert holders != [own]
        assert not broken("zeroed").tensors[1][local].any()
        for whole, good in zip(broken("noise").tensors, weights(), strict=True):
            noise = (whole[local] - good[own]).std() / good[own].std()
            assert noise.item() == pytest.approx(faults.NOISE, rel=0.1)
        assert broken("dropped slot").expert_map[fault.slot] == -1


@pytest.mark.parametrize("kind", [*OF_A_REPLICA, *OF_TABLES])
def test_each_fault_changes_what_the_layer_answers_and_is_undone(kind: Kind) -> None:
    right = run(serve(PLACEMENT))
    layers = serve(PLACEMENT)
    digests = [layer.digest() for layer in layers]
    copies = [layer.copy() for layer in layers]
    changed(layers, choose(PLACEMENT, kind, 0, 0))
    assert [layer.digest() for layer in layers] != digests
    assert (run(layers) - right).abs().max() > 1e-3
    for layer, kept in zip(layers, copies, strict=True):
        layer.restore(kept)
    assert [layer.digest() for layer in layers] == digests
    assert torch.equal(run(layers), right)


def test_ids_past_the_last_slot_do_not_exist() -> None:
    layers = serve(PLACEMENT)
    found = changed(layers, choose(PLACEMENT, PAST_THE_END, 0, 0))
    assert found == [[False, False, True, False, False]] * RANKS
    assert layers[0].slots.max() >= PLACEMENT.num_physical_experts
    with pytest.raises(IndexError):
        run(layers)


def test_tables_are_shifted_or_looked_up_by_logical_ids() -> None:
    good = serve(PLACEMENT)[0]
    shifted, by_logical = serve(PLACEMENT)[0], serve(PLACEMENT)[0]
    inject(shifted, choose(PLACEMENT, "log2phy shifted by one", 0, 0))
    inject(by_logical, choose(PLACEMENT, "physical-length map", 0, 0))
    used = good.slots >= 0
    for layer in (shifted, by_logical):
        assert torch.equal(layer.slots >= 0, used)
        assert torch.equal(layer.count, good.count)
    assert torch.equal(shifted.slots[used], (good.slots[used] + 1) % PLACEMENT.num_physical_experts)
    expert = torch.arange(EXPERTS)[:, None].expand_as(good.slots)
    assert torch.equal(by_logical.slots[used], expert[used])


def test_stale_scales_are_those_of_another_expert() -> None:
    layers = serve(PLACEMENT, int8=True)
    right = run(layers)
    fault = choose(PLACEMENT, "stale scale", 0, 0)
    found = changed(layers, fault)
    owner = fault.slot // (PLACEMENT.num_physical_experts // RANKS)
    # w13, w2, their scales, slots, count, expert map
    assert found[owner] == [False, False, True, True, False, False, False]
    assert not any(found[1 - owner])
    assert (run(layers) - right).abs().max() > 1e-2


def test_a_fault_that_has_nothing_to_change_is_refused() -> None:
    fault = choose(PLACEMENT, "stale scale", 0, 0)
    layer = next(one for one in serve(PLACEMENT) if one.expert_map[fault.slot] >= 0)
    with pytest.raises(ValueError, match=r"torch\.float32; expected int8"):
        inject(layer, fault)
    with pytest.raises(ValueError, match="no expert with several copies"):
        choose(generate_placement(num_experts=EXPERTS, ep_size=RANKS), "zeroed", 0, 0)


def drawn_placements(seed: int, ranks: int, redundant: int) -> Placement:
    rng = np.random.default_rng(seed)
    return draw_placement(rng, experts=EXPERTS, ranks=ranks, redundant=redundant, layers=3)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), ranks=st.sampled_from([1, 2, 4]), share=st.integers(0, 8))
def test_drawn_placements_are_valid(seed: int, ranks: int, share: int) -> None:
    redundant = min(share * ranks, EXPERTS * (ranks - 1))
    # Constructing it has checked that every expert is there, none twice on a rank, and ranks are even.
    placement = drawn_placements(seed, ranks, redundant)
    assert placement.num_redundant_experts == redundant
    assert placement.num_layers == 3
    shares = draw_weights(np.random.default_rng(seed), placement)
    np.testing.assert_allclose(shares.sum(axis=2), 1)
    assert ((shares > 0) == (placement.logical_to_physical >= 0)).all()


def test_draws_that_no_placement_fits_are_refused() -> None:
    with pytest.raises(ExpertMapsError):
        drawn_placements(0, 2, 3)
    with pytest.raises(ValueError, match="redundant is 10; expected at most 8"):
        drawn_placements(0, 2, EXPERTS + 2)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), choice=st.sampled_from(["rank_offset", "weighted"]))
def test_drawn_placements_and_shares_do_not_change_answers(seed: int, choice: ReplicaChoice) -> None:
    right = run(serve(PLACEMENT))
    placement = drawn_placements(seed, 4, 8)
    shares: NDArray[np.float64] | None = None
    if choice == "weighted":
        shares = draw_weights(np.random.default_rng(seed), placement)
    rule = SlotRule(choice, ranks_must_agree=True, weights=shares)
    np.testing.assert_allclose(run(serve(placement, rule)), right, atol=1e-5)


def test_draws_repeat_and_go_through_all_shapes() -> None:
    changes = [draw(seed, "float32") for seed in range(2 * len(SHAPES))]
    assert changes == [draw(seed, "float32") for seed in range(2 * len(SHAPES))]
    assert {(one.shape.ranks, one.shape.redundant) for one in changes} == set(SHAPES)
    # Seeds of a shape share an engine.
    assert len({one.shape for one in changes}) == len(SHAPES)
    assert len({(one.at_once, one.choice) for one in changes}) > 2
    for one in changes:
        assert one.shape.is_repeat == (one.choice == "none")
        if not one.shape.is_repeat:
            found = one.placement(16, 4)
            assert found.ep_size == one.shape.ranks
            assert (one.weights(found) is None) == (one.choice != "weighted")


@given(
    seed=st.none() | st.integers(0, 2**32), at_once=st.none() | st.integers(1, 50), count=st.integers(1, 60)
)
def test_an_order_asks_every_question_once(seed: int | None, at_once: int | None, count: int) -> None:
    parts = Order(seed, at_once).parts(count)
    asked = [index for part in parts for index in part]
    assert sorted(asked) == list(range(count))
    assert max(map(len, parts)) <= (at_once or count)
    if seed is None:
        assert asked == sorted(asked)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.floats(1e-3, 1e3))
def test_int8_is_off_by_half_a_step_at_most(seed: int, size: float) -> None:
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(seed)) * size
    weight[2] = 0
    values, scale = quantise(weight)
    assert values.dtype == torch.int8
    # The largest of a channel may be cut by the rounding of its scale, which has 8 bits.
    error = (values.float() * scale.float() - weight).abs() / scale.float().clamp(min=1e-30)
    assert error.max() <= 0.5 + 127 * 2**-8
    assert not values[2].any()


def trial(fault: Fault, folder: Path, arm: Arm) -> dict[str, Any]:
    baseline, record = make(folder, Arm()), make(folder, arm)
    return trial_of(fault, judge(baseline, record), record.summary.value, restored=0.0)


def faults_of(folder: Path, arms: dict[Kind, Arm]) -> dict[str, Any]:
    """A record with one made-up arm for each fault, in the layer 1."""
    baseline, clean = make(folder, Arm()), make(folder, eplb(name="clean"))
    part = {
        **trials.about(baseline),
        "dtype": "float32",
        "experts": "float32",
        "digest": "b" * 64,
        "clean": trials.trial_as_json(judge(baseline, clean), clean.summary.value),
        "faults": [trial(Fault(kind, 1, 5, 0), folder, arm) for kind, arm in arms.items()],
    }
    return {**trials.about(baseline), "parts": [part]}


def test_the_page_says_what_caught_a_fault(tmp_path: Path) -> None:
    differ = {"placement.replica_checksums": "differ", "placement.faults": ["copies differ"]}
    record = faults_of(
        tmp_path,
        {
            "zeroed": eplb(name="zeroed", shift=0.3),
            "noise": eplb(name="noise", changes=differ),
            "neighbour": eplb(name="neighbour", wrong=range(40), changed=range(40), shift=1.0),
        },
    )
    (part,) = record["parts"]
    part["faults"].append(trial_of(Fault(PAST_THE_END, 0, 5, 0), None, stopped="the engine stopped"))
    assert is_sensitive(part)
    text = faults_page(record)
    assert "**4 of 4 injected faults make the gate fail; 3 of 4 by the answers alone" in text
    table = text[: text.index("## The halves")]
    row = {line.split(" | ")[0]: line for line in table.splitlines() if line.startswith("| ")}
    assert (
        "checksums of the replicas 1, log-probabilities 2, identical texts 1, accuracy 1; the engine stops at 1"
        in text
    )
    assert re.search(r"0 of 1 .*1 of 1 \(3\.0e-01\)", row["| zeroed"])
    assert "replicas equal, as declared" in text
    assert "did not serve" in row[f"| {PAST_THE_END}"]
    assert [one["caught_by_answers_alone"] for one in part["faults"]] == [True, False, True, True]
    assert part["faults"][3]["caught_by"] == ["did not serve"]
    assert {"loss", "identical texts"} <= set(part["faults"][2]["caught_by"])


def test_a_fault_that_nothing_catches_is_not_called_caught(tmp_path: Path) -> None:
    record = faults_of(tmp_path, {"noise": eplb(name="noise")})
    (part,) = record["parts"]
    assert not is_sensitive(part)
    assert "**0 of 1 injected faults" in faults_page(record)
    # An odd trial, with no limits of harmless changes.
    assert halves.prove_faults("float32", None, part["faults"]).count == 1


def test_a_clean_arm_that_fails_is_no_proof(tmp_path: Path) -> None:
    (part,) = faults_of(tmp_path, {"zeroed": eplb(name="zeroed", shift=0.3)})["parts"]
    assert is_sensitive(part)
    part["clean"]["verdict"] = "worse"
    assert not is_sensitive(part)


def harmless(folder: Path, shifts: list[float]) -> dict[str, Any]:
    baseline = make(folder, Arm())
    records = [make(folder, eplb(name=f"seed-{index}", shift=shift)) for index, shift in enumerate(shifts)]
    judged = [
        seed_of(draw(seed, "float32"), "b" * 64, record.summary.value, judge(baseline, record))
        for seed, record in enumerate(records)
    ]
    return record_of(baseline, judged)


def test_the_page_of_alarms_counts_them(tmp_path: Path) -> None:
    found = harmless(tmp_path, [0.0, 0.1])
    assert (found["changes"], found["alarms"]) == (2, 1)
    text = alarms_page(found)
    assert "**1 alarms in 2 harmless changes**" in text
    assert "worse: log-probabilities, largest, log-probabilities, mean" in text
    assert found["dtypes"]["float32"]["rate_upper_limit_95"] == halves.rate_limit(1, 1) == 1.0


def test_limits_are_set_on_one_half_and_proven_on_the_other(tmp_path: Path) -> None:
    # Even seeds set 10 times their most, 2e-9; the verdict alone would pass all of them.
    found = harmless(tmp_path, [1e-10, 1e-10, 2e-10, 1.9e-9, 1e-10, 2.1e-9])
    assert found["alarms"] == 0
    proof = halves.prove_harmless("float32", found["seeds"])
    assert proof.mean == pytest.approx(2e-9, rel=1e-3)
    assert (proof.setting, proof.proving, proof.count) == (3, 3, 1)
    assert proof.rate == halves.rate_limit(1, 3)
    # What proves sets nothing.
    more = harmless(tmp_path / "more", [1e-10, 9e-9, 2e-10])
    assert halves.prove_harmless("float32", more["seeds"]).mean == pytest.approx(2e-9, rel=1e-3)
    # Limits that one half sets catch a fault that the verdict's do not.
    weak = trial(Fault("noise", 1, 5, 0), tmp_path / "weak", eplb(name="noise", shift=5e-9))
    assert not weak["caught"]
    assert halves.prove_faults("float32", proof, [weak]).count == 0


def test_the_needed_seeds_bound_the_rate() -> None:
    assert halves.rate_limit(0, halves.NEEDED) <= 0.05 < halves.rate_limit(0, halves.NEEDED - 1)
    assert sum(map(halves.proves, range(halves.SEEDS))) == halves.NEEDED
    # Both halves have every shape.
    for half in (False, True):
        shapes = {draw(seed, "float32").shape for seed in range(halves.SEEDS) if halves.proves(seed) == half}
        assert len(shapes) == len(SHAPES)
    # No alarm in n: the rate at which that has a chance of 5 %.
    assert halves.rate_limit(0, 20) == pytest.approx(1 - 0.05 ** (1 / 20))
    assert halves.rate_limit(1, 20) > halves.rate_limit(0, 20)
    assert halves.rate_limit(0, 0) == 1


@pytest.mark.parametrize("model", ["tiny-moe"])
def test_the_kept_pages_are_those_of_the_kept_records(model: str) -> None:
    folder = Path(__file__).resolve().parents[2] / "accuracy" / "results" / model
    alarms, faults = (read_json(folder / f"{name}.json") for name in ("false_alarms", "sensitivity"))
    assert (
        (folder / "false_alarms.md").read_text(encoding="utf-8").startswith(alarms_page(cast("Any", alarms)))
    )
    page = faults_page(cast("Any", faults), cast("Any", alarms))
    assert (folder / "sensitivity.md").read_text(encoding="utf-8").startswith(page)


def test_criteria_by_name(tmp_path: Path) -> None:
    found = trial(Fault("zeroed", 1, 5, 0), tmp_path, eplb(name="zeroed", shift=0.3))
    assert halves.failed(found, CHECKSUMS) == []
    assert halves.failed(found) == list(OUTPUTS[:2])
    assert {*OUTPUTS, *CHECKSUMS, "EPLB acted"} <= {one["name"] for one in found["criteria"]}
    assert halves.measured(found, "log-probabilities, largest") == pytest.approx(0.3)
    assert halves.measured(found, "no such criterion") is None


def test_all_kinds_are_tested() -> None:
    assert set(KINDS) == {*OF_A_REPLICA, *OF_TABLES, PAST_THE_END, "stale scale"}
