# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""An arm without EPLB is told apart, and ranks or copies that disagree are."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from fake_server import Fake, reports
from hypothesis import given
from hypothesis import strategies as st

from expert_maps import Placement, generate_placement
from harness.accuracy.arms import Arm
from harness.accuracy.evidence import Evidence, find_faults
from harness.accuracy.proof import (
    ProofError,
    State,
    agree,
    compare_replicas,
    read_state,
    require_arm,
)
from harness.accuracy.server import attach

if TYPE_CHECKING:
    from collections.abc import Iterator

LINEAR = generate_placement("linear", num_experts=8, ep_size=2, num_layers=2)
RING = generate_placement("ring", num_experts=8, ep_size=2, num_layers=2, num_redundant_experts=2)
BASELINE, EPLB = Arm(role="baseline"), Arm(role="eplb", num_redundant_experts=2)
DYNAMIC = Arm(role="eplb", num_redundant_experts=2, dynamic=True)


def ring(**changes: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - JSON
    return copy.deepcopy(reports(RING, **changes))


def test_an_arm_that_is_what_it_says_may_be_asked() -> None:
    require_arm(BASELINE, agree(reports(LINEAR)))
    require_arm(EPLB, agree(ring()), RING)
    require_arm(DYNAMIC, agree(ring(settings={"dynamic": True})))
    # A server without the plugin is a baseline, though nobody can read it.
    require_arm(BASELINE, None)
    require_arm(BASELINE, agree([{"active": False}] * 2))


@pytest.mark.parametrize(
    ("arm", "found", "said"),
    [
        (EPLB, None, "VLLM_SERVER_DEV_MODE=1"),
        (EPLB, [{"active": False}] * 2, "reports no placement"),
        (EPLB, [{"active": True, "ep_rank": 0, "ep_size": 1, "settings": {}}], "reports no placement"),
        (EPLB, reports(LINEAR), "0 redundant experts.*expected 2"),
        (Arm(role="eplb"), reports(LINEAR), "0 redundant experts.*expected at least 1"),
        (Arm(role="eplb", num_redundant_experts=4), reports(RING), "2 redundant experts.*expected 4"),
        (DYNAMIC, reports(RING), "does not move experts"),
        (EPLB, reports(RING, settings={"dynamic": True}), "moves experts; expected an arm without"),
        (BASELINE, reports(RING), "baseline serves with EPLB: 2 redundant"),
        (BASELINE, reports(LINEAR, settings={"dynamic": True}), "baseline serves with EPLB"),
    ],
)
def test_an_arm_that_is_something_else_is_not(
    arm: Arm, found: list[dict[str, Any]] | None, said: str
) -> None:
    with pytest.raises(ProofError, match=said):
        require_arm(arm, None if found is None else agree(found))


def test_another_map_than_the_planned_is_not() -> None:
    planned = generate_placement("append", num_experts=8, ep_size=2, num_layers=2, num_redundant_experts=2)
    assert planned.digest != RING.digest
    with pytest.raises(ProofError, match=f"{RING.digest[:12]}; expected {planned.digest[:12]}"):
        require_arm(EPLB, agree(ring()), planned)


@pytest.mark.parametrize("name", ["digest", "ep_size", "rearrangements", "physical_to_logical"])
def test_ranks_that_disagree_are_named(name: str) -> None:
    found = ring()
    other: dict[str, object] = {"digest": LINEAR.digest, "physical_to_logical": [[0]]}
    found[1][name] = other.get(name, 7)
    with pytest.raises(ProofError, match=f"different values of {name}: .* on rank 0, .* on rank 1"):
        agree(found)


def test_a_rank_that_is_heard_twice_or_inactive_is_noticed() -> None:
    found = ring()
    found[1]["ep_rank"] = 0
    with pytest.raises(ProofError, match=r"\[0, 0\] of 2"):
        agree(found)
    with pytest.raises(ProofError, match="active on 1 of 2"):
        agree([ring()[0], {"active": False}])


def test_a_digest_of_another_map_is_noticed() -> None:
    with pytest.raises(ProofError, match="for a map of digest"):
        agree(ring(digest=LINEAR.digest))


def test_checksums_of_other_slots_are_noticed() -> None:
    found = ring()
    found[1]["slot_checksums"][1].pop()
    with pytest.raises(
        ProofError, match=r"rank 1 reports checksums of \[5, 4\] slots in its layers; expected \[5, 5\]"
    ):
        agree(found)


@st.composite
def placements(draw: st.DrawFn) -> Placement:
    ranks = draw(st.integers(2, 4))
    experts = ranks * draw(st.integers(1, 4))
    redundant = ranks * draw(st.integers(0, 2))
    if redundant > experts * (ranks - 1):
        redundant = 0
    layout = "ring" if redundant else "linear"
    return generate_placement(
        layout,
        num_experts=experts,
        ep_size=ranks,
        num_layers=draw(st.integers(1, 3)),
        num_redundant_experts=redundant,
    )


@given(placements())
def test_what_is_read_is_what_is_served(placement: Placement) -> None:
    state = agree(reports(placement))
    assert state.digest == placement.digest
    assert state.num_redundant_experts == placement.num_redundant_experts
    assert state.is_eplb == (placement.num_redundant_experts > 0)
    assert compare_replicas(state) == ("equal", None)


@given(placements().filter(lambda placement: placement.num_redundant_experts > 0), st.data())
def test_a_copy_with_other_weights_is_found(placement: Placement, data: st.DataObject) -> None:
    found = reports(placement)
    layer = data.draw(st.integers(0, placement.num_layers - 1))
    row = placement.physical_to_logical[layer].tolist()
    slot = data.draw(st.sampled_from([slot for slot, expert in enumerate(row) if row.count(expert) > 1]))
    slots = len(row) // placement.ep_size
    found[slot // slots]["slot_checksums"][layer][slot % slots] = "other"
    outcome, said = compare_replicas(agree(found))
    assert outcome == "differ"
    assert f"layer {layer}: the copies of expert {row[slot]} differ" in str(said)


def test_copies_are_equal_only_where_all_ranks_were_heard() -> None:
    assert compare_replicas(agree(ring()[:1]))[0] == "not read"
    assert compare_replicas(agree(ring()[1:]))[0] == "not read"
    assert compare_replicas(agree(ring(slot_checksums=None)))[0] == "not read"
    assert compare_replicas(None)[0] == compare_replicas(State())[0] == "not read"


def test_faults_of_an_arm() -> None:
    before = agree(ring(settings={"dynamic": True}))
    after = replace(before, rearrangements=3)
    assert find_faults(DYNAMIC, before, after) == []
    assert "no experts moved" in find_faults(DYNAMIC, before, before)[0]
    assert "no experts moved" in find_faults(DYNAMIC, after, after)[0]
    still = agree(ring())
    assert find_faults(EPLB, still, still) == []
    moved = replace(still, placement=LINEAR, checksums=None)
    assert f"changed from {RING.digest[:12]} to {LINEAR.digest[:12]}" in find_faults(EPLB, still, moved)[0]
    assert "could not be read at the end" in find_faults(EPLB, still, None)[0]
    assert find_faults(BASELINE, None, None) == []
    # Which a run before this one saw.
    assert find_faults(DYNAMIC, before, before, earlier=2) == []
    assert Evidence(before, before, [], 2).rearrangements == 2
    # There and back again.
    assert "moved 3 times in a static arm" in find_faults(EPLB, still, replace(still, rearrangements=3))[0]
    assert "with EPLB at the end" in find_faults(BASELINE, None, still)[0]
    assert find_faults(BASELINE, None, agree(reports(LINEAR))) == []


def test_a_report_that_is_none_is_refused(fake: Fake) -> None:
    broken: list[dict[str, Any]] = [
        {"physical_to_logical": []},
        {"num_redundant_experts": None},
        {"ep_size": "2"},
    ]
    for changes in broken:
        fake.report = ring(**changes)
        with pytest.raises(ProofError, match=r"malformed|expected"):
            read_state(attach(fake.url))
    fake.report = ring()
    del fake.report[0]["rearrangements"]
    with pytest.raises(ProofError, match="malformed"):
        read_state(attach(fake.url))
    fake.report = ring(slot_checksums=[[None] * 5] * 2)
    with pytest.raises(ProofError, match="slots without a checksum"):
        read_state(attach(fake.url), checksums=True)


def test_a_record_says_what_was_read() -> None:
    before = agree(ring(settings={"dynamic": True}, rearrangements=1))
    record = Evidence(before, replace(before, rearrangements=4)).as_record()
    assert record == {
        "eplb_active": True,
        "digest": RING.digest,
        "digest_at_end": RING.digest,
        "num_redundant_experts": 2,
        "rearrangements": 3,
        "ep_size": 2,
        "replica_checksums": "equal",
        "faults": [],
        "dynamic": True,
    }
    nothing = Evidence(None, None).as_record()
    assert nothing["eplb_active"] is False
    assert nothing["replica_checksums"] == "not read"
    assert nothing["num_redundant_experts"] is nothing["rearrangements"] is nothing["digest"] is None


@pytest.fixture
def fake() -> Iterator[Fake]:
    with Fake() as server:
        yield server


def test_the_workers_are_asked_over_http(fake: Fake) -> None:
    server = attach(fake.url)
    assert read_state(server) is None
    fake.report = ring()
    state = read_state(server, checksums=True)
    assert state is not None
    assert state.digest == RING.digest
    assert ("/collective_rpc", {"method": "expert_maps_report", "args": [True]}) in fake.bodies


@pytest.mark.parametrize("found", [[], ["text"], [None]])
def test_no_reports_are_refused(fake: Fake, found: Any) -> None:  # noqa: ANN401 - JSON
    fake.report = found
    with pytest.raises(ProofError, match="expected a list of reports"):
        read_state(attach(fake.url))
