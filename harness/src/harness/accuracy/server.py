# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""vLLM's OpenAI server: started on loopback, waited for, and stopped in any case; or one that runs already."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

from expert_maps import ExpertMapsError
from expert_maps.files import parse_json
from harness.accuracy.client import OK, Answered, AskError, exchange

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

LOOPBACK = "127.0.0.1"
SHOWN_LINES = 20
_STOP_SECONDS = 60.0
_GUARD_SECONDS = 30.0
_POLL_SECONDS = 0.5
_HEALTH_SECONDS = 5.0
# Of another process's server: it should be there.
_RUNNING_SECONDS = 30.0
# What is answered below this will not become healthy.
_NOT_YET = 500


class ServerError(ExpertMapsError):
    """A server did not come up, died, or refused; the message shows what it said last."""


class RefusedError(ServerError):
    """A server answered with an error.

    Attributes:
        status: HTTP's.
    """

    def __init__(self, status: int, message: str) -> None:
        """Keep the status."""
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Server:
    """A server that answers.

    Attributes:
        url: without a slash at the end, and without ``/v1``.
        model: the name under which it serves.
        log: what it prints; None for a server that was there already.
        process: its guard; None likewise.
    """

    url: str
    model: str
    log: Path | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def is_own(self) -> bool:
        """Whether the harness started it."""
        return self.process is not None

    def require_alive(self) -> None:
        """Say so if the server has ended.

        Raises:
            ServerError: it has.
        """
        _require_alive(self.process, self.log, "")

    def describe(self) -> list[Any]:
        """Return name, root and longest length of its models, at least one.

        Raises:
            ServerError: it lists none.
        """
        try:
            listed = self.get("/v1/models")["data"]
            found = [[one["id"], one.get("root"), one.get("max_model_len")] for one in listed]
        except (LookupError, TypeError, AttributeError):
            found = []
        if not found:
            msg = f"{self.url}/v1/models lists no model; expected a server of vLLM's"
            raise ServerError(msg)
        return found

    def get(self, path: str, seconds: float = 60) -> Any:  # noqa: ANN401 - JSON
        """Get JSON; see `fetch`."""
        return fetch(f"{self.url}{path}", seconds=seconds)

    def post(self, path: str, body: object, seconds: float = 600) -> Any:  # noqa: ANN401 - JSON
        """Post JSON and return the answer; see `fetch`."""
        return fetch(f"{self.url}{path}", body, seconds)


def fetch(url: str, body: object = None, seconds: float = 60) -> Any:  # noqa: ANN401 - JSON
    """Get, or with a body post, JSON; None for an empty answer.

    Args:
        url: of the server; neither proxies of the environment nor redirects stand between.
        body: what is posted.
        seconds: most in all, however slowly the answer comes.

    Raises:
        RefusedError: the answer is an error, no JSON, or has too many bytes.
        ServerError: there is no answer.
    """

    async def ask() -> Answered:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=seconds)) as session:
            return await exchange(session, url, body)

    try:
        answer = asyncio.run(ask())
    except asyncio.TimeoutError as error:
        msg = f"{url} does not answer: no whole answer in {seconds:g} s"
        raise ServerError(msg) from error
    except AskError as error:
        raise RefusedError(OK, str(error)) from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        msg = f"{url} does not answer: {error}"
        raise ServerError(msg) from error
    if answer.status != OK:
        msg = f"{url} answered {answer.status}: {answer.said}"
        raise RefusedError(answer.status, msg)
    try:
        return parse_json(answer.content, url) if answer.content.strip() else None
    except ExpertMapsError as error:
        msg = f"{url} answered with something that is no JSON"
        raise RefusedError(OK, msg) from error


def attach(url: str, seconds: float = _RUNNING_SECONDS) -> Server:
    """Find a server that runs already; the first model it lists is asked.

    Raises:
        ServerError: it does not answer, or serves nothing.
    """
    _wait_for_health(url, None, None, seconds)
    return Server(url, str(Server(url, "").describe()[0][0]))


def command(model: str, port: int, arguments: Sequence[str]) -> list[str]:
    """Return the command that serves a model on loopback.

    `vllm serve` where vLLM is installed as such; its CPU build has the modules without the metadata that this
    command needs, and the same server under another name, here with processes that are forked.
    """
    # Of two of a name the last one holds.
    place = [*arguments, "--host", LOOPBACK, "--port", str(port)]
    vllm = shutil.which("vllm", path=str(Path(sys.executable).parent)) or shutil.which("vllm")
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        if vllm and importlib.metadata.version("vllm"):
            return [vllm, "serve", model, *place]
    return [sys.executable, "-m", "harness.accuracy.cpu_server", "--model", model, *place]


@contextlib.contextmanager
def serve(
    model: str,
    arguments: Sequence[str],
    log: Path,
    *,
    environment: Mapping[str, str],
    startup_seconds: float,
    name: str = "model",
    stop_seconds: float = _STOP_SECONDS,
) -> Iterator[Server]:
    """Serve for the time of a `with` block.

    Args:
        model: a folder or a name on the hub.
        arguments: of ``vllm serve``, beside model, host and port.
        log: a file for what it prints; written anew.
        environment: variables beside this process's own; VLLM_ variables of this process are left out, so that
            a record names all that acted.
        startup_seconds: most seconds until it answers.
        name: under which the model is served.
        stop_seconds: most seconds to stop by itself.

    Raises:
        ServerError: it did not come up, or another server answers in its place.
    """
    with socket.socket() as probe:  # a port that nothing listens on
        probe.bind((LOOPBACK, 0))
        port = int(probe.getsockname()[1])
    # A second name that no other server has: what answers on the port could be another process's.
    mark = f"{name}-{secrets.token_hex(8)}"
    words = command(model, port, [*arguments, "--served-model-name", name, mark])
    with start(words, log, environment, stop_seconds) as process:
        url = f"http://{LOOPBACK}:{port}"
        _wait_for_health(url, process, log, startup_seconds)
        server = Server(url, name, log, process)
        models = [str(one[0]) for one in server.describe()]
        if mark not in models:
            server.require_alive()
            msg = f"{url} serves {', '.join(models)}; expected {mark}: another server took the port, run it again"
            raise ServerError(msg)
        yield server


@contextlib.contextmanager
def start(
    words: Sequence[str], log: Path, environment: Mapping[str, str], stop_seconds: float
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command under a guard for the time of a `with` block; see `harness.accuracy.guard`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    guard = [sys.executable, "-m", "harness.accuracy.guard", str(stop_seconds), *words]
    with log.open("wb") as stream:
        process = subprocess.Popen(  # noqa: S603 - this interpreter and the server
            guard,
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**inherited, **environment},
            start_new_session=True,
        )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        # The guard kills what does not stop by itself, and then ends; and if it is stuck, so does its own guard.
        try:
            process.wait(stop_seconds + _GUARD_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_GUARD_SECONDS)


def _require_alive(process: subprocess.Popen[bytes] | None, log: Path | None, when: str) -> None:
    if process is not None and process.poll() is not None:
        msg = f"the server ended with exit code {process.returncode}{when}{last_lines(log)}"
        raise ServerError(msg)


def _wait_for_health(
    url: str, process: subprocess.Popen[bytes] | None, log: Path | None, seconds: float
) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            fetch(f"{url}/health", seconds=_HEALTH_SECONDS)
        except ServerError as error:
            reason = error
        else:
            return
        if process is None and isinstance(reason, RefusedError) and reason.status < _NOT_YET:
            msg = f"{reason}; expected a server of vLLM's"
            raise ServerError(msg) from reason
        _require_alive(process, log, " before it answered")
        if time.monotonic() > deadline:
            place = last_lines(log) if log else f": {reason}"
            msg = f"the server was not healthy after {seconds:g} s{place}"
            raise ServerError(msg)
        time.sleep(_POLL_SECONDS)


def last_lines(log: Path | None) -> str:
    """Return what a server printed last, ready to follow a message; nothing without a log."""
    if log is None or not log.exists():
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-SHOWN_LINES:]
    return "".join(["; it said last:", *(f"\n  {line}" for line in lines)]) if lines else "; it said nothing"
