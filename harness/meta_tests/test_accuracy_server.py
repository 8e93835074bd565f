# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Servers come up or say why not, on loopback, and never outlive who started them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from fake_server import ENVIRONMENT, Fake, install

from harness.accuracy.checks import check_url
from harness.accuracy.cpu_server import fork_on_a_cpu
from harness.accuracy.server import (
    SHOWN_LINES,
    RefusedError,
    ServerError,
    attach,
    command,
    fetch,
    last_lines,
    serve,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from harness.accuracy.server import Server


def start(tmp_path: Path, seconds: float = 60, **orders: object) -> AbstractContextManager[Server]:
    environment = install(tmp_path) | {ENVIRONMENT: json.dumps({"pid": str(tmp_path / "pid"), **orders})}
    return serve(
        "nowhere",
        [],
        tmp_path / "server.log",
        environment=environment,
        startup_seconds=seconds,
        name="fake",
        stop_seconds=5,
    )


def pid(tmp_path: Path) -> int:
    return int((tmp_path / "pid").read_text())


def is_running(process: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, 0)
        return True
    return False


def wait_until_gone(process: int) -> bool:
    deadline = time.monotonic() + 20
    while is_running(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_running(process)


def test_a_server_answers_and_is_gone_afterwards(tmp_path: Path) -> None:
    with start(tmp_path) as server:
        assert server.url.startswith("http://127.0.0.1:")
        assert server.model == "fake"
        assert server.get("/version") == {"version": "0.0.fake"}
        server.require_alive()
        running = pid(tmp_path)
        assert is_running(running)
    assert not is_running(running)
    with pytest.raises(ServerError):
        fetch(f"{server.url}/health", seconds=2)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_server_is_gone_after_an_error(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), start(tmp_path):
        raise error
    assert not is_running(pid(tmp_path))


def test_a_server_that_dies_shows_what_it_said_last(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerError, match="exit code 3 before it answered") as caught,
        start(tmp_path, dies="no memory left"),
    ):
        pass
    said = str(caught.value).splitlines()
    assert said[-1] == "  no memory left"
    assert said[1] == "  line 31"
    assert len(said) == 1 + SHOWN_LINES


def test_a_server_that_does_not_come_up_is_stopped_after_the_time_limit(tmp_path: Path) -> None:
    began = time.monotonic()
    with (
        pytest.raises(ServerError, match=r"not healthy after 2 s; it said (last:\n  fake server|nothing)"),
        start(tmp_path, 2, hangs=True),
    ):
        pass
    assert time.monotonic() - began < 30
    # On a busy machine it may not have got so far as to say who it is.
    assert not ((tmp_path / "pid").exists() and is_running(pid(tmp_path)))


def test_a_server_that_dies_later_is_noticed(tmp_path: Path) -> None:
    with start(tmp_path) as server:
        os.kill(pid(tmp_path), signal.SIGKILL)
        wait_until_gone(pid(tmp_path))
        assert server.process is not None
        server.process.wait(20)
        with pytest.raises(ServerError, match=r"the server ended with exit code 137.*\n  fake server"):
            server.require_alive()


PARENT = """
import signal, sys, time
from pathlib import Path
# Where this runs in the background it is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, sys.argv[1])
from test_accuracy_server import start
with start(Path(sys.argv[2])):
    print("up", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_server_ends_with_a_killed_harness(tmp_path: Path, number: signal.Signals) -> None:
    here = os.path.dirname(__file__)  # noqa: PTH120 - a name for another process
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, here, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        running = pid(tmp_path)
        assert is_running(running)
        parent.send_signal(number)
        parent.wait(30)
    assert wait_until_gone(running)


def test_a_server_that_ignores_sigterm_is_killed_with_its_children() -> None:
    script = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = os.fork()\n"
        "if child: print(os.getpid(), child, flush=True)\n"
        "time.sleep(600)\n"
    )
    words = [sys.executable, "-m", "harness.accuracy.guard", "1", sys.executable, "-c", script]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as guard:
        assert guard.stdin is not None
        assert guard.stdout is not None
        processes = list(map(int, guard.stdout.readline().split()))
        assert all(map(is_running, processes))
        guard.stdin.close()
        assert guard.wait(20) != 0
    assert all(map(wait_until_gone, processes))


def test_the_command_names_loopback_only() -> None:
    words = command("model", 1234, ["--x"])
    # Last, for of two of a name the last one holds.
    assert words[-5:] == ["--x", "--host", "127.0.0.1", "--port", "1234"]
    assert "model" in words


@pytest.mark.parametrize(("is_cpu", "method"), [(True, "fork"), (False, "spawn")])
def test_processes_are_forked_on_a_cpu_alone(
    is_cpu: bool, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {"VLLM_WORKER_MULTIPROC_METHOD": lambda: "spawn"}
    for name, content in {
        "vllm": {"envs": SimpleNamespace(environment_variables=variables)},
        "vllm.platforms": {"current_platform": SimpleNamespace(is_cpu=lambda: is_cpu)},
    }.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    fork_on_a_cpu()
    assert variables["VLLM_WORKER_MULTIPROC_METHOD"]() == method


def test_another_server_on_its_port_is_not_taken_for_it(tmp_path: Path) -> None:
    expected = r"serves other; expected fake-[0-9a-f]{16}: another server took"
    with pytest.raises(ServerError, match=expected), start(tmp_path, names=["other"]):
        pass
    assert wait_until_gone(pid(tmp_path))


def test_a_server_ends_with_a_killed_guard(tmp_path: Path) -> None:
    with start(tmp_path) as server:
        assert server.process is not None
        server.process.kill()
        assert wait_until_gone(pid(tmp_path))


def test_the_environment_s_proxies_do_not_stand_before_loopback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with start(tmp_path) as server:
        assert server.get("/version") == {"version": "0.0.fake"}


@pytest.fixture
def fake() -> Iterator[Fake]:
    with Fake() as server:
        yield server


def test_a_running_server_is_found(fake: Fake) -> None:
    server = attach(check_url(f"{fake.url}/v1/"))
    assert (server.url, server.model, server.is_own) == (fake.url, "fake", False)


def test_no_server_is_said() -> None:
    with Fake() as gone:
        url = gone.url
    with pytest.raises(ServerError, match=r"not healthy after 1 s: .*does not answer"):
        attach(url, seconds=1)


def test_a_refusal_keeps_its_status(fake: Fake) -> None:
    with pytest.raises(RefusedError, match="answered 404") as caught:
        fetch(f"{fake.url}/nothing")
    assert caught.value.status == 404


@pytest.mark.parametrize(
    "text", ["", "127.0.0.1:8000", "ftp://x", "http://", "http://u:p@x", "http://x?y=1", "file:///x"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ServerError, match="expected one like"):
        check_url(text)


def test_an_absent_log_has_no_lines(tmp_path: Path) -> None:
    assert last_lines(None) == last_lines(tmp_path / "absent") == ""
