# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import pickle
import time
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from expert_maps import (
    ExpertLoad,
    ExpertMapsError,
    FormatError,
    LayoutError,
    LoadError,
    Placement,
    PlacementError,
    generate_placement,
    limits,
    plan,
    read_placement,
    rescale,
)
from expert_maps.errors import Violation, Violations, printable
from expert_maps.validation import as_array, check_product

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SMALL = Placement([[0, 1, 2, 0]], 2)


def wide(layers: int, slots: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """An array that claims far more than it holds."""
    return np.broadcast_to(np.int64(0), (layers, slots))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Placement(wide(200_000_000, 4), 2), "num_layers is 200000000; expected at most 4096"),
        (lambda: Placement(wide(1, 2**40), 2), "num_physical_experts is 1099511627776; expected at most"),
        (lambda: Placement(wide(4096, 4096), 2), "has 16777216 numbers; expected at most 8388608"),
        (lambda: Placement([[0, 1]], 10**9), "ep_size is 1000000000; expected at most 65536"),
        (lambda: Placement([[0, 1]], 10**30), "ep_size is 10+; expected at most"),
        (lambda: Placement([[0, 1]], 10**5000), "ep_size is an integer of 16610 bits; expected at most"),
        (lambda: Placement([[0, 1]], 2, num_logical_experts=20_000_000), "num_logical_experts is 20000000;"),
        (lambda: Placement.from_rank_lists([[[0], [0, 1]]], num_logical_experts=20_000_000), "is 20000000"),
        (lambda: Placement.from_rank_lists([[[0]]] * 5000), "num_layers is 5000"),
        (lambda: Placement([[0, 2**63]], 1), "physical_to_logical holds 9223372036854775808"),
        (lambda: Placement([[0, -(2**70)]], 1), "holds -1180591620717411303424; expected numbers of 64 bits"),
        (lambda: Placement(np.array([[0, 2**64 - 1]], dtype=np.uint64), 1), "holds 18446744073709551615"),
        (lambda: Placement.from_rank_lists([[[0, 2**63]]]), "expert ids holds 9223372036854775808"),
        (lambda: generate_placement(num_experts=8, ep_size=2, num_redundant_experts=2 * 10**9), "2000000008"),
        (lambda: generate_placement(num_experts=8, ep_size=2, num_layers=10**6), "num_layers is 1000000"),
        (lambda: generate_placement(num_experts=10**8, ep_size=2), "num_experts is 100000000"),
        (lambda: generate_placement(num_experts=8, ep_size=10**8), "ep_size is 100000000"),
        (lambda: plan([[1, 2]], num_physical_experts=10**9, ep_size=10**9), "ep_size is 1000000000"),
        (
            lambda: plan(
                [[1, 2]], num_physical_experts=2**31 - 2, ep_size=2, policy="deepseek", allow_duplicates=True
            ),
            "num_physical_experts is 2147483646",
        ),
        (lambda: rescale(SMALL, [[1, 2, 3]], ep_size=10**9), "ep_size is 1000000000"),
        (lambda: SMALL.routing_table(0, 0, rows=10**9), "rows is 1000000000; expected at most 65536"),
        (lambda: SMALL.weighted_routing_table(0, 0, np.ones((3, 2)) / 2, rows=10**9), "rows is 1000000000"),
        (
            lambda: ExpertLoad(np.broadcast_to(1.0, (10**6, 60, 256))),
            "a load of num_steps 1000000 · num_layers 60 · num_experts 256 has 15360000000 numbers",
        ),
        (
            lambda: ExpertLoad(cast("Any", [[1, "x" * 10**6]])),
            r"load has 'x{10,}…' at \[0, 1\], of type str; expected integers",
        ),
    ],
)
def test_counts_are_refused_at_once_by_name(call: Callable[[], object], message: str) -> None:
    start = time.process_time()
    with pytest.raises(ExpertMapsError, match=message) as error:
        call()
    assert time.process_time() - start < 1
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "slots",
    [
        [2**63 - 1, 2**63 - 1, 4],
        np.array([2**63 - 1, 2**63 - 1, 4]),
        np.array([2**63, 2**63, 2], dtype=np.uint64),
        [2**64, 0, 0],
        [2**200, -(2**200), 2],
        [1.0, 1.0, 0.0],
        [True, True, False],
        [1, True, 0],
        [1, 1, None],
        [1, 1, "0"],
        [[1], [1], [0]],
        [1, 1, [0]],
        "110",
        None.__class__,
        {0: 1},
    ],
)
def test_slots_per_rank_that_are_no_counts_are_refused(slots: object) -> None:
    with pytest.raises(ExpertMapsError, match=r"slots_per_rank"):
        Placement([[0, 1]], 3, slots_per_rank=slots, allow_uneven=True)  # type: ignore[arg-type]


def test_real_sizes_pass() -> None:
    # 94 layers of 512 experts on 2,048 ranks: the largest that anyone has announced, and twice over.
    row = np.arange(4096) % 512
    placement = Placement(np.broadcast_to(row, (94, 4096)), 2048)
    check_product("global_log2phy", {"L": 94, "R": 2048, "E": 512})
    assert placement.global_log2phy(93).shape == (2048, 512)
    assert limits.MAX_LOAD_NUMBERS >= 1000 * 94 * 512
    assert limits.MAX_FILE_BYTES >= 1000 * 94 * 512 * 8 + 128


def test_many_ranks_may_exist_but_their_tables_are_refused() -> None:
    ranks = 60_000
    placement = Placement(np.broadcast_to(np.arange(ranks) % 256, (10, ranks)), ranks)
    for call in (placement.global_expert_map, placement.global_log2phy):
        with pytest.raises(
            ExpertMapsError, match="num_layers 10 · ep_size 60000 · num_logical_experts 256 has"
        ):
            call()
        assert call(9).shape == (ranks, 256)
    # Every rank's copy of one expert.
    shared = np.stack([np.arange(ranks) % 500, np.full(ranks, 500)], axis=1).ravel()
    with pytest.raises(ExpertMapsError, match=r"logical_to_physical of .* most replicas 60000"):
        _ = Placement(np.broadcast_to(shared, (5, 2 * ranks)), ranks).logical_to_physical


def test_duplicates_on_many_ranks_are_found_without_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expert_maps._rules.MAX_TABLE", 1)
    assert Placement([[0, 1, 2, 0]], 2) == SMALL
    with pytest.raises(PlacementError, match="stands twice"):
        Placement([[0, 1, 2, 2]], 2)


GOLDEN = {
    "num_layers": 2,
    "num_logical_experts": 3,
    "slots_per_rank": [2, 2],
    "physical_to_logical": [[0, 1, 2, 0]],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 200_000_000}, "num_layers is 200000000; expected an integer from 1 to 4096"),
        ({"num_layers": 10**18}, "num_layers is 10+; expected an integer from 1"),
        *(
            ({"num_layers": value}, "num_layers is")
            for value in cast("list[object]", [None, True, 1.0, "2", [2], {}, 0, -1, 10**900])
        ),
        ({"num_logical_experts": 20_000_000}, "num_logical_experts is 20000000; expected an integer from 1"),
        ({"num_logical_experts": "x\x1b" * 9**6}, "num_logical_experts is .x.*u001bx"),
        ({"slots_per_rank": [2**63 - 1, 2**63 - 1, 4]}, r"slots_per_rank\[0\] is 9223372036854775807"),
        ({"slots_per_rank": 4}, "slots_per_rank is 4; expected a list"),
        ({"slots_per_rank": []}, "slots_per_rank is .*expected a list of 1 to"),
        ({"slots_per_rank": [2] * 70_000}, "slots_per_rank is .*expected a list of 1 to 65536"),
        ({"slots_per_rank": [2, "a" * 10**6]}, r"slots_per_rank\[1\] is .aaa"),
        (
            {"physical_to_logical": [[0, 1, 2, 0], [0, 1]]},
            r"physical_to_logical\[1\] has 2 entries; expected 4",
        ),
        (
            {"physical_to_logical": [[0, 1, 2, [0]]]},
            r"physical_to_logical\[0\]\[3\] is \[0\]; expected an integer",
        ),
        ({"physical_to_logical": [[[0, 1, 2, 0]]]}, r"physical_to_logical\[0\]\[0\] is"),
        ({"physical_to_logical": [0, 1, 2, 0]}, r"physical_to_logical\[0\] is 0"),
        (
            {"physical_to_logical": [[0, 1, 2, 0]] * 3},
            "physical_to_logical has 3 rows; expected 1 or num_layers 2",
        ),
        ({"physical_to_logical": [[0, 1, 2, "x" * 10**6]]}, r"physical_to_logical\[0\]\[3\] is .xxx"),
        ({"physical_to_logical": [[0, 1, 2, None]]}, r"physical_to_logical\[0\]\[3\] is null"),
        ({"physical_to_logical": [[0, 1, 2, 0.0]]}, r"physical_to_logical\[0\]\[3\] is 0.0"),
        ({"physical_to_logical": [[0, 1, 2, True]]}, r"physical_to_logical\[0\]\[3\] is true"),
        ({"physical_to_logical": [[0, 1, 2, 2**63]]}, "is 9223372036854775808; expected an integer"),
        ({"physical_to_logical": []}, "physical_to_logical"),
        ({"physical_to_logical": [[]]}, "physical_to_logical"),
        ({"physical_to_logical": {}}, "physical_to_logical"),
        ({"physical_to_logical": "x" * 10**6}, "physical_to_logical is .x"),
    ],
)
def test_a_golden_map_is_not_trusted(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "map.json"
    path.write_text(json.dumps(GOLDEN | change))
    with pytest.raises(FormatError, match=message) as error:
        read_placement(path)
    assert len(str(error.value)) < 400
    assert str(error.value).isprintable()


def test_every_kind_of_violation_is_reported_at_once() -> None:
    with pytest.raises(PlacementError) as error:
        Placement.from_rank_lists([[[0, 1, 1], [2, 9]], [[0, 0], [1, 4]]], num_logical_experts=4)
    found = [(v.kind, v.layer, v.rank, v.slot, v.expert) for v in error.value.violations]
    assert found == [
        ("uneven", 0, 0, None, None),
        ("out_of_range", 0, 1, 1, 9),
        ("out_of_range", 1, 1, 1, 4),
        ("missing", 0, None, None, 3),
        ("missing", 1, None, None, 2),
        ("missing", 1, None, None, 3),
        ("duplicate", 0, 0, 2, 1),
        ("duplicate", 1, 0, 1, 0),
    ]
    with pytest.raises(PlacementError) as error:
        Placement.from_rank_lists([[[0, 1], [2]], [[0], [2, 7]]], num_logical_experts=3, allow_uneven=True)
    kinds = [violation.kind for violation in error.value.violations]
    assert kinds == ["uneven", "uneven", "out_of_range", "missing"]


def test_millions_of_violations_are_counted_and_some_listed() -> None:
    table = np.full((64, 2**16), -1)
    table[:, ::2] = 7
    start = time.process_time()
    with pytest.raises(PlacementError) as error:
        Placement(table, 64, num_logical_experts=60_000)
    assert time.process_time() - start < 5
    violations = error.value.violations
    out_of_range, missing, duplicates = 64 * 2**15, 64 * 59_999, 64 * (2**15 - 64)
    assert len(violations) == out_of_range + missing + duplicates
    text = str(error.value)
    assert text.startswith(
        f"invalid placement, {len(violations)} violations:\n  layer 0, rank 0, slot 1: expert -1"
    )
    assert text.endswith(f"\n  and {len(violations) - limits.MAX_LISTED} more")
    assert text.count("\n") == limits.MAX_LISTED + 1
    assert violations[-1].message.startswith("layer 63, rank 63, slot 1022: expert 7 stands twice")
    assert violations[out_of_range].message.startswith("layer 0: expert 0 is missing")
    assert repr(violations) == f"<{len(violations)} violations>"


def test_violations_are_a_sequence_and_survive_pickling() -> None:
    with pytest.raises(PlacementError) as caught:
        Placement([[0, 1, 1, 5]], 2, num_logical_experts=4)
    error = caught.value
    assert isinstance(error.violations, Violations)
    listed = list(error.violations)
    assert [violation.kind for violation in listed] == ["out_of_range", "missing", "missing"]
    assert error.violations[1:] == tuple(listed[1:])
    assert error.violations[-1] == listed[-1]
    with pytest.raises(IndexError):
        error.violations[3]
    assert listed[0].to_dict() == {
        "kind": "out_of_range",
        "message": "layer 0, rank 1, slot 1: expert 5 is out of range; expected 0 … 3",
        "layer": 0,
        "rank": 1,
        "slot": 1,
        "expert": 5,
        "found": 5,
        "expected": "0 … 3",
    }
    json.dumps([violation.to_dict() for violation in listed])
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - made here
    assert str(again) == str(error)
    assert list(again.violations) == listed
    one = PlacementError([Violation("missing", "layer 0: expert 1 is missing", 0, expert=1)])
    assert str(one) == "invalid placement: layer 0: expert 1 is missing"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([[1, 2], [3, 4]], np.array([[1, 2], [3, 4]])),
        ([(1, 2.5), range(2)], np.array([[1, 2.5], [0, 1]])),
        ([np.int8(3), 4], np.array([3, 4])),
        ([np.arange(2), np.arange(2)], np.array([[0, 1], [0, 1]])),
        ([True, False], np.array([True, False])),
        ([[], []], np.zeros((2, 0))),
        (np.float32(2), np.float32(2)),
        (5, np.array(5)),
    ],
)
def test_lists_become_the_array_that_numpy_makes(
    value: object, expected: np.ndarray[tuple[int, ...], np.dtype[np.generic]]
) -> None:
    found = as_array("x", value)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype.kind in {expected.dtype.kind, "i"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[1, 2], [3]], r"x is ragged: 1 entries at \[1\]; expected 2"),
        ([[1, 2], 3], r"x is ragged: 3 at \[1\]"),
        ([[[1], [2]], [[3], [4, 5]]], r"ragged: 2 entries at \[1, 1\]"),
        ([np.arange(2), np.arange(3)], "ragged"),
        ([[[[[[[[[1]]]]]]]]], "nested more than 8 deep"),
        ([1, {"a": 1}], r"x has an object of 1 entries at \[1\], of type dict; expected integers or floats"),
        ([1, 1j], "of type complex"),
        ([1.0, 10**400], "holds an integer of"),
        ("text", "x is 'text'; expected an array"),
        (None, "x is None; expected an array"),
    ],
)
def test_what_is_no_array_is_refused(value: object, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        as_array("x", value, LoadError)


def test_foreign_text_does_not_reach_the_terminal() -> None:
    assert printable("a key") == "a key"
    assert printable("\x1b]0;title\x07\n\u202e\ud800é…") == r"\x1b]0;title\x07\n\u202e\ud800é…"
    assert printable("x" * 100) == "x" * 59 + "…"


def test_layout_errors_are_of_their_kind() -> None:
    with pytest.raises(LayoutError):
        generate_placement(num_experts=10**8, ep_size=2)
    with pytest.raises(LayoutError):
        plan([[1, 2]], num_physical_experts=10**9, ep_size=10**9)


def test_violations_are_counted_without_being_made() -> None:
    made = []

    class Group:
        def __len__(self) -> int:
            return 10**9

        def __getitem__(self, index: int, /) -> Violation:
            made.append(index)
            return Violation("missing", f"expert {index} is missing", expert=index)

    one = Violation("uneven", "rank 0 has 2 slots", rank=0)
    found = Violations([(one,), Group()])
    assert found.count_kinds() == {"uneven": 1, "missing": 10**9}
    assert made == [0]
    said = found.with_first(Violation("uneven", "rank 0 has 2 slots; say so", rank=0))
    assert len(said) == len(found)
    assert [violation.message for violation in said[:2]] == [
        "rank 0 has 2 slots; say so",
        "expert 0 is missing",
    ]
