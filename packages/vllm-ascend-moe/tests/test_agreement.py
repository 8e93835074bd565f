# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from expert_maps import ExpertMapsError
from vllm_ascend_moe.core import agreement
from vllm_ascend_moe.core.agreement import DisagreementError, gather, require_agreement

if TYPE_CHECKING:
    from collections.abc import Callable

# Far more than two processes need; it only ends a test that would hang.
LONG = 120
SAME, OTHER = "aaaabbbbccccdddd", "eeeeffffgggghhhh"


# One process


def test_without_a_group_a_rank_is_alone() -> None:
    value = {"any": [1, 2]}
    assert gather(value, None) == [value]
    require_agreement("placements", SAME, "map.json", None)
    require_agreement("placements", None, "no placement", None)


def test_an_error_stops_a_rank_that_is_alone() -> None:
    with pytest.raises(DisagreementError, match=r"^rank 0: map\.json: no such file$"):
        require_agreement("placements", None, "no placement", None, error="map.json: no such file")
    assert issubclass(DisagreementError, ExpertMapsError)


# What several ranks are told


def tell(monkeypatch: pytest.MonkeyPatch, *entries: tuple[str | None, str, str | None]) -> str | None:
    """Return what ranks are told where these are their values, details and errors."""
    monkeypatch.setattr(agreement, "gather", lambda *_: list(entries))
    try:
        require_agreement("placements", *entries[0][:2], None, entries[0][2])
    except DisagreementError as error:
        return str(error)
    return None


def test_the_same_value_from_other_places_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tell(monkeypatch, (SAME, "/a/map.json", None), (SAME, "/b/map.json", None)) is None


def test_ranks_are_grouped_by_what_they_have(monkeypatch: pytest.MonkeyPatch) -> None:
    told = tell(
        monkeypatch,
        (SAME, "/a/map.json", None),
        (OTHER, "layout ring", None),
        (SAME, "/a/map.json", None),
        (SAME, "/b/map.json", None),
    )
    assert told == (
        "ranks have different placements: ranks 0, 2 aaaabbbbcccc (/a/map.json); rank 1 eeeeffffgggg "
        "(layout ring); rank 3 aaaabbbbcccc (/b/map.json); expected the same on every rank"
    )


def test_a_rank_without_a_value_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    told = tell(monkeypatch, (SAME, "map.json", None), (None, "no placement", None))
    assert told is not None
    assert "rank 0 aaaabbbbcccc (map.json); rank 1 None (no placement)" in told


def test_errors_come_first_and_all_of_them_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = tell(monkeypatch, (SAME, "", None), (OTHER, "", "no such file"), (None, "", "no JSON"))
    assert told == "rank 1: no such file; rank 2: no JSON"


# Two processes


def scenarios(rank: int, group: Any) -> dict[str, Callable[[], object]]:  # noqa: ANN401 - torch's
    mine = (SAME, OTHER)[rank]
    place = f"/node{rank}/map.json"
    broken = None if rank == 0 else "map.json: no such file"
    return {
        "gather": lambda: gather({"rank": rank, "rows": [rank] * 3}, group),
        "same": lambda: require_agreement("placements", SAME, place, group),
        "different": lambda: require_agreement("placements", mine, place, group),
        "one broken": lambda: require_agreement("placements", SAME, place, group, broken),
        "both broken": lambda: require_agreement("records", None, "", group, f"error {rank}"),
        "one without": lambda: require_agreement("placements", (SAME, None)[rank], place, group),
        # After each of these both ranks stand at the same place: nobody waits for the other.
        "same again": lambda: require_agreement("placements", SAME, place, group),
    }


def run_rank(rank: int, folder: str) -> None:
    if Path("/sys/class/net/lo").exists():
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=LONG),
    )
    outcomes: dict[str, Any] = {}
    for name, scenario in scenarios(rank, torch.distributed.group.WORLD).items():
        try:
            outcomes[name] = scenario()
        except DisagreementError as error:
            outcomes[name] = str(error)
    Path(folder, f"{rank}.json").write_text(json.dumps(outcomes), encoding="utf-8")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Run all scenarios in two processes at once; what each of them met."""
    folder = tmp_path_factory.mktemp("ranks")
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=run_rank, args=(rank, str(folder))) for rank in range(2)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(LONG)
        assert [process.exitcode for process in processes] == [0, 0]
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join(LONG)
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


def test_values_arrive_in_the_order_of_ranks(outcomes: list[dict[str, Any]]) -> None:
    wanted = [{"rank": rank, "rows": [rank] * 3} for rank in range(2)]
    assert [found["gather"] for found in outcomes] == [wanted, wanted]


@pytest.mark.parametrize("name", ["same", "same again"])
def test_ranks_that_agree_go_on(outcomes: list[dict[str, Any]], name: str) -> None:
    assert [found[name] for found in outcomes] == [None, None]


DIFFERENT = "ranks have different placements: {}; expected the same on every rank"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "different",
            DIFFERENT.format("rank 0 aaaabbbbcccc (/node0/map.json); rank 1 eeeeffffgggg (/node1/map.json)"),
        ),
        ("one broken", "rank 1: map.json: no such file"),
        ("both broken", "rank 0: error 0; rank 1: error 1"),
        (
            "one without",
            DIFFERENT.format("rank 0 aaaabbbbcccc (/node0/map.json); rank 1 None (/node1/map.json)"),
        ),
    ],
)
def test_both_ranks_stop_with_the_same_error(outcomes: list[dict[str, Any]], name: str, message: str) -> None:
    assert [found[name] for found in outcomes] == [message, message]
