# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Metrics by prometheus_client's files, and routes on a FastAPI app: no engine is started."""

from __future__ import annotations

import asyncio
import multiprocessing
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient
from vllm.plugins.endpoint_plugins.interface import EndpointPlugin, attach_endpoint_plugins
from vllm.v1.metrics.prometheus import get_prometheus_registry

from vllm_ascend_moe.core import exposition
from vllm_ascend_moe.core import metric_table as table
from vllm_ascend_moe.core.activation import REPORT, Activation, leave_resolved
from vllm_ascend_moe.core.exposition import FOLDER_VARIABLE, MetricFiles, prepare_folder, withdraw
from vllm_ascend_moe.core.meter import Meter
from vllm_ascend_moe.core.settings import Settings
from vllm_ascend_moe.endpoints import NAME, PATHS, RecordEndpoints

if TYPE_CHECKING:
    from collections.abc import Iterator

LABELS = {"model_name": "tiny", "stage": "0"}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    yield
    withdraw()


def scraped() -> dict[tuple[str, str], float]:
    """Return what vLLM's `/metrics` of this process shows of the plugin's: (name, its own label) → value."""
    found: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(generate_latest(get_prometheus_registry()).decode()):
        for sample in family.samples:
            if sample.name.startswith(table.PREFIX):
                labels = dict(sample.labels)
                assert labels.pop("model_name") == "tiny"
                key = sample.name, "/".join(labels.values())
                assert key not in found
                found[key] = sample.value
    return found


def count(folder: str, stage: str, amount: int) -> None:
    meter = Meter(MetricFiles(Path(folder), {"model_name": "tiny", "stage": stage}))
    for _ in range(amount):
        meter.begin_move()
        meter.end_move(None)
    meter.skipped("cost")
    meter.unwritten(amount)


def in_another_process(*arguments: Any) -> None:  # noqa: ANN401 - of `count`
    worker = multiprocessing.get_context("fork").Process(target=count, args=arguments)
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0


@pytest.mark.parametrize("several", [False, True])
def test_what_a_worker_counts_is_shown_once(
    several: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if several:
        # As vLLM sets it for several API servers, before it makes a configuration.
        monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    folder = prepare_folder()
    assert folder is not None
    assert (folder == str(tmp_path)) == several
    # Each API server makes its own configuration, and none adds to the numbers.
    if several:
        assert prepare_folder() == folder
    in_another_process(folder, "0", 3)
    found = scraped()
    assert found["expert_maps_rearrangements_total", "0"] == 3
    assert found["expert_maps_record_unwritten_rows", "0"] == 3
    # The label that is its own comes after those of all.
    assert {
        value for (name, _), value in found.items() if name == "expert_maps_rearrangements_skipped_total"
    } == {0, 1}
    shown = {name for name, _ in found}
    assert shown == {name for metric in table.METRICS if not metric.waits for name in metric.samples}
    # A worker that is started again begins anew, and another stage counts by itself.
    in_another_process(folder, "0", 1)
    in_another_process(folder, "1", 5)
    found = scraped()
    assert found["expert_maps_rearrangements_total", "0"] == 1
    assert found["expert_maps_rearrangements_total", "1"] == 5


def test_vllms_own_metrics_stay() -> None:
    before = generate_latest(REGISTRY)
    folder = prepare_folder()
    assert folder is not None
    count(folder, "0", 1)
    names = {family.name for family in text_string_to_metric_families(before.decode())}
    assert names <= {
        family.name for family in text_string_to_metric_families(generate_latest(REGISTRY).decode())
    }


def test_a_second_engine_of_the_process_takes_the_place_of_the_first() -> None:
    first, second = prepare_folder(), prepare_folder()
    assert first is not None
    assert second is not None
    count(first, "0", 2)
    count(second, "0", 1)
    assert scraped()["expert_maps_rearrangements_total", "0"] == 1
    assert len(exposition._registered) == 1


def make_folder(told: Any) -> None:  # noqa: ANN401 - of multiprocessing
    told.send(prepare_folder())


def test_the_folder_goes_with_the_process_that_made_it() -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    front = context.Process(target=make_folder, args=(theirs,))
    front.start()
    folder = ours.recv()
    front.join(60)
    assert folder
    assert not Path(folder).exists()


# Routes


class Engine:
    """As vLLM's client: the only worker writes."""

    def __init__(self) -> None:
        self.vllm_config = SimpleNamespace(
            additional_config={}, parallel_config=SimpleNamespace(worker_extension_cls=REPORT)
        )
        leave_resolved(self.vllm_config, Activation(Settings(record_path="load.npz"), "a test"), None)
        self.asked: list[str] = []

    async def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> list[dict[str, Any]]:
        assert method == "expert_maps_record"
        self.asked.append(kwargs["action"])
        status = {"recording": True, "path": "load.npz", "rows": 1, "unwritten_steps": 0}
        return [{**status, "written_steps": 1, "failure": None}]


def client(engine: Engine, address: str, *keys: str) -> TestClient:
    """Return what asks from an address; the plugin is attached as vLLM does it."""
    app = FastAPI()
    attach_endpoint_plugins(app, ("generate",))
    (plugin,) = app.state.endpoint_plugins
    asyncio.run(plugin.init_state(engine, app.state, Namespace(api_key=list(keys) or None)))
    return TestClient(app, client=(address, 5000))


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", f"ascend_moe,{NAME}")
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


@pytest.mark.usefixtures("named")
def test_vllm_attaches_the_routes_which_are_asked_by_post() -> None:
    assert isinstance(RecordEndpoints(), EndpointPlugin)
    engine = Engine()
    asks = client(engine, "127.0.0.1")
    for path, action in PATHS.items():
        answer = asks.post(path)
        assert answer.status_code == 200
        assert answer.json() == {"recording": True, "path": "load.npz", "rows": 1, "unwritten_steps": 0}
        assert engine.asked[-1] == action
        assert asks.get(path).status_code == 405


@pytest.mark.usefixtures("named")
def test_from_elsewhere_it_is_refused_with_the_reason_and_nothing_is_asked() -> None:
    engine = Engine()
    answer = client(engine, "10.0.0.1").post("/dump_expert_distribution_record")
    assert answer.status_code == 403
    assert answer.json()["error"]["message"].startswith("asked from 10.0.0.1; expected loopback")
    keyed = client(engine, "127.0.0.1", "key")
    assert keyed.post("/dump_expert_distribution_record").status_code == 401
    assert not engine.asked
    headers = {"Authorization": "Bearer key"}
    assert (
        client(engine, "10.0.0.1", "key")
        .post("/dump_expert_distribution_record", headers=headers)
        .status_code
        == 200
    )
    # A body that is none of it is refused before a worker is asked.
    assert (
        client(engine, "127.0.0.1").post("/start_expert_distribution_record", content=b"[1]").status_code
        == 400
    )
    assert engine.asked == ["dump"]


def test_unnamed_it_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, "ascend_moe"):
        if value is None:
            monkeypatch.delenv("VLLM_PLUGINS", raising=False)
        else:
            monkeypatch.setenv("VLLM_PLUGINS", value)
        app = FastAPI()
        attach_endpoint_plugins(app, ("generate",))
        assert app.state.endpoint_plugins == []
        assert (
            TestClient(app, client=("127.0.0.1", 1)).post("/dump_expert_distribution_record").status_code
            == 404
        )
