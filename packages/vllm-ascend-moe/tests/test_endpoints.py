# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Who may ask for the record over HTTP, and what is answered; `tests_vllm` asks a live server."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import fake_vllm
import pytest

from vllm_ascend_moe import endpoints
from vllm_ascend_moe.core.activation import REPORT, Activation
from vllm_ascend_moe.core.settings import Settings
from vllm_ascend_moe.endpoints import RecordEndpoints, RequestError, check_allowed, read_fresh

if TYPE_CHECKING:
    from collections.abc import Mapping

KEYS = ["first", "second"]


def refused(client: str | None, headers: Mapping[str, str], keys: list[str]) -> int | None:
    try:
        check_allowed(client, headers, keys)
    except RequestError as error:
        return error.status
    return None


@pytest.mark.parametrize("client", ["127.0.0.1", "127.8.0.1", "::1", "::ffff:127.0.0.1"])
def test_without_a_key_this_machine_may_ask(client: str) -> None:
    assert refused(client, {"user-agent": "curl"}, []) is None
    # A key that nobody has asked for changes nothing.
    assert refused(client, {"authorization": "Bearer x"}, []) is None


@pytest.mark.parametrize(
    "client",
    [
        "10.0.0.1",
        "192.168.0.7",
        "0.1.2.3",
        "::",
        "fe80::1",
        "::ffff:10.0.0.1",
        "localhost",
        "127.0.0.1.a.b",
        "",
        None,
    ],
)
def test_without_a_key_nobody_else_may(client: str | None) -> None:
    assert refused(client, {}, []) == 403


@pytest.mark.parametrize("header", ["forwarded", "x-forwarded-for", "x-real-ip", "origin"])
def test_nor_through_a_proxy_or_a_page_on_this_machine(header: str) -> None:
    assert refused("127.0.0.1", {header: "127.0.0.1"}, []) == 403
    assert refused("127.0.0.1", {header: ""}, []) == 403


def test_with_keys_one_of_them_decides_wherever_it_comes_from() -> None:
    for client in ("127.0.0.1", "10.0.0.1", None):
        assert refused(client, {}, KEYS) == 401
        for given in (
            "Bearer third",
            "Bearer",
            "Bearer ",
            "Basic first",
            "first",
            "Bearer firs",
            "Bearer FIRST",
        ):
            assert refused(client, {"authorization": given}, KEYS) == 401
        for given in ("Bearer first", "bearer second", "Bearer  first"):
            assert refused(client, {"authorization": given, "x-forwarded-for": "10.0.0.1"}, KEYS) is None


def test_a_body_is_nothing_or_says_fresh() -> None:
    assert not read_fresh(b"")
    assert not read_fresh(b" \n")
    assert not read_fresh(b"{}")
    assert not read_fresh(b'{"fresh": false}')
    assert read_fresh(b'{"fresh": true}')
    for body in (
        b"fresh",
        b"[]",
        b"1",
        b'{"fresh": 1}',
        b'{"path": "x"}',
        b'{"fresh": true' + b" " * 5000 + b"}",
        b"\xff",
    ):
        with pytest.raises(RequestError, match="expected") as error:
            read_fresh(body)
        assert error.value.status == 400


class Engine:
    """As vLLM's client: two workers, of which the second writes."""

    def __init__(self, *, settings: Settings | None = None, extension: str = REPORT) -> None:
        activation = Activation(settings or Settings(record_path="load.npz"), "a test")
        self.vllm_config = fake_vllm.config(activation, num_experts=8, device="cpu", load_format="auto")
        self.vllm_config.parallel_config.worker_extension_cls = extension
        self.asked: list[dict[str, Any]] = []
        self.written, self.rows, self.failure = 0, 3, None

    async def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> list[dict[str, Any]]:
        assert method == "expert_maps_record"
        assert kwargs["wait"] is False
        self.asked.append(kwargs)
        # It takes two questions until it is written.
        self.written += 1
        status = {
            "recording": kwargs["action"] != "stop",
            "path": "load.npz",
            "rows": self.rows,
            "unwritten_steps": 0,
            "written_steps": self.written,
            "failure": self.failure,
        }
        return [{}, status | ({"until": 3} if kwargs["action"] in {"stop", "dump"} else {})]


def ready(engine: Any, **args: object) -> RecordEndpoints:  # noqa: ANN401 - a stand-in, or None
    made = RecordEndpoints()
    asyncio.run(made.init_state(engine, SimpleNamespace(), SimpleNamespace(**args)))
    return made


def act(made: RecordEndpoints, action: str, *, fresh: bool = False) -> dict[str, Any]:
    return asyncio.run(made._act(action, fresh=fresh))


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "_POLL_SECONDS", 0.001)
    monkeypatch.setattr(endpoints, "_WRITE_SECONDS", 0.01)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


def test_what_the_writing_worker_says_is_answered_once_it_is_written() -> None:
    engine = Engine()
    assert act(ready(engine), "dump") == {
        "recording": True,
        "path": "load.npz",
        "rows": 3,
        "unwritten_steps": 0,
    }
    assert [asked["action"] for asked in engine.asked] == ["dump", "status", "status"]
    assert act(ready(engine), "stop")["recording"] is False
    assert act(ready(engine), "start", fresh=True)["recording"]
    assert engine.asked[-1]["fresh"] is True


def test_a_write_that_fails_or_takes_too_long_is_an_error() -> None:
    engine = Engine()
    engine.failure = "No space left on device"  # type: ignore[assignment]
    with pytest.raises(RequestError, match="could not be written: No space left") as error:
        act(ready(engine), "dump")
    assert error.value.status == 500
    engine = Engine()
    engine.written = -1000
    with pytest.raises(RequestError, match="was not written within") as error:
        act(ready(engine), "dump")
    assert error.value.status == 504


def test_nothing_recorded_and_fresh_elsewhere_are_errors() -> None:
    engine = Engine()
    engine.rows = 0
    with pytest.raises(RequestError, match="nothing is recorded yet") as error:
        act(ready(engine), "dump")
    assert error.value.status == 409
    assert act(ready(engine), "stop")["rows"] == 0
    with pytest.raises(RequestError, match="expected it with start only"):
        act(ready(engine), "dump", fresh=True)


@pytest.mark.parametrize(
    ("engine", "why"),
    [
        (None, "no engine"),
        (Engine(settings=Settings()), "record_path is not given"),
        (Engine(extension="mine.Extension"), "worker_extension_cls is mine.Extension"),
    ],
)
def test_a_server_without_a_record_says_what_is_missing(engine: Engine | None, why: str) -> None:
    with pytest.raises(RequestError, match=why) as error:
        act(ready(engine), "start")
    assert error.value.status == 409


def test_an_inactive_plugin_says_so() -> None:
    engine = Engine()
    engine.vllm_config.additional_config = {}
    engine.vllm_config.parallel_config.worker_extension_cls = ""
    with pytest.raises(
        RequestError, match="vllm-ascend-moe is inactive: expert_maps is not in the additional config"
    ):
        act(ready(engine), "start")


def test_where_no_worker_of_this_server_writes_another_is_to_be_asked() -> None:
    engine = Engine()

    async def silent(*_: object, **__: object) -> list[dict[str, Any]]:
        return [{}, {}]

    engine.collective_rpc = silent  # type: ignore[method-assign]
    with pytest.raises(RequestError, match="ask the server beside expert-parallel rank 0"):
        act(ready(engine), "dump")


def test_keys_are_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ready(Engine())._keys == []
    assert ready(Engine(), api_key=["one", "two"])._keys == ["one", "two"]
    monkeypatch.setenv("VLLM_API_KEY", "three")
    assert ready(Engine(), api_key=None)._keys == ["three"]
    # The command line comes first, as in vLLM.
    assert ready(Engine(), api_key=["one"])._keys == ["one"]
