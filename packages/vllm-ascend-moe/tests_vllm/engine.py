# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""vLLM as the tests start it: offline or as a server, on loopback, with a time limit, stopped in any case."""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from multiprocessing.context import ForkServerContext

HERE = Path(__file__).parent
# Two ranks on a machine with few cores and one NUMA node.
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # What stands in front of the environment, such as another vLLM, stays there.
    "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(HERE)])),
}
# Of the key-value cache: enough for 64 sequences, and soon cleared.
BLOCKS = 256
# One rank without processes of its own starts in a third of the time.
IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
# A limit for what hangs, not for a busy machine.
START_SECONDS = 600


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment with the tests', and without options of the plugin's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    return {**kept, **ENVIRONMENT, **(changes or {})}


def random_prompts(count: int, vocabulary: int, seed: int = 0) -> list[list[int]]:
    """Return prompts of 8 to 40 token ids; the first ids of a vocabulary are special."""
    draw = random.Random(seed)  # noqa: S311 - a test's data
    return [[draw.randrange(8, vocabulary) for _ in range(draw.randrange(8, 41))] for _ in range(count)]


@dataclass(frozen=True)
class Run:
    """What an offline run gave.

    Attributes:
        rounds: for each round, each prompt's ``ids`` and ``logprobs`` (of the prompt and what follows it).
        reports: before the first round and after each: every rank's `expert_maps_report`.
        routes: every rank's independent counts, [R, L, E]; None where they were not asked for.
        seconds: of each round.
        log: standard output and error.
    """

    rounds: list[list[dict[str, Any]]]
    reports: list[list[dict[str, Any]]]
    routes: list[list[list[int]]] | None
    seconds: list[float]
    log: str

    @property
    def tokens(self) -> list[list[list[int]]]:
        """The ids that were generated, by round and prompt."""
        return [[output["ids"] for output in outputs] for outputs in self.rounds]

    def logprobs(self, round_: int = 0) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the log-probabilities of one round, all prompts in a row."""
        return np.concatenate([np.array(output["logprobs"]) for output in self.rounds[round_]])


class FailedError(RuntimeError):
    """vLLM did not start; the message is its log."""


def run(
    model: Path,
    prompts: Sequence[Sequence[int]],
    folder: Path,
    *,
    max_tokens: int = 16,
    rounds: int = 1,
    expert_maps: dict[str, Any] | None = None,
    observes: bool = False,
    weights: Mapping[int, Path] | None = None,
    environ: Mapping[str, str] | None = None,
    **engine: Any,  # noqa: ANN401 - vLLM's
) -> Run:
    """Run vLLM offline in a process of its own; before some rounds it loads the weights of another folder.

    Raises:
        FailedError: it failed, or took too long.
    """
    options = _options(model, expert_maps, observes=observes) | engine
    request = {
        "engine": options,
        "prompts": [list(prompt) for prompt in prompts],
        "max_tokens": max_tokens,
        "rounds": rounds,
        "observes": observes,
        "weights": {round_: str(path) for round_, path in (weights or {}).items()},
        # What is recorded is written at the end; nothing else waits for vLLM to stop its processes.
        "ends_in_order": "record_path" in (expert_maps or {}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    ask, answer = folder / "request.json", folder / "response.json"
    ask.write_text(json.dumps(request), encoding="utf-8")
    log = _run_to_end((str(ask), str(answer)), folder / "log.txt", environment(environ))
    if not answer.exists():
        raise FailedError(log)
    response = json.loads(answer.read_text(encoding="utf-8"))
    return Run(
        [round_["outputs"] for round_ in response["rounds"]],
        response["reports"],
        response["routes"],
        [round_["seconds"] for round_ in response["rounds"]],
        log,
    )


def _options(model: Path, expert_maps: dict[str, Any] | None, *, observes: bool) -> dict[str, Any]:
    """Return vLLM's arguments; those of a run come over them."""
    options: dict[str, Any] = {
        "model": str(model),
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 128,
        "max_num_seqs": 64,
        "num_gpu_blocks_override": BLOCKS,
        "enable_prefix_caching": False,
        "seed": 0,
        # By its own name, the report in a configuration that the plugin has not seen is refused.
        "worker_extension_cls": "observer.Observer"
        if observes or expert_maps is None
        else "vllm_ascend_moe.report.WorkerReport",
    }
    if expert_maps is not None:
        options["additional_config"] = {"expert_maps": expert_maps}
    return options


def _run_to_end(arguments: tuple[str, str], log: Path, environ: Mapping[str, str]) -> str:
    """Run to the end, or end it and all that it started after the time limit; return the log."""
    process = ForkedProcess("generate", arguments, log, environ)
    late = False
    try:
        process.wait(START_SECONDS)
    except subprocess.TimeoutExpired:
        late = True
    finally:
        _end_session(process)
    text = log.read_text(encoding="utf-8", errors="replace")
    return f"{text}\nended by the test: it took too long\n" if late else text


class ForkedProcess:
    """A program in a fork of a process that has imported vLLM; as much of `subprocess.Popen` as is used here.

    Attributes:
        pid: of the process, which leads a session.
    """

    def __init__(self, module: str, arguments: Sequence[str], log: Path, environ: Mapping[str, str]) -> None:
        """Start it.

        Args:
            module: in this folder; its `main` is called.
            arguments: of that.
            log: for what it prints, written anew.
            environ: all of its variables.
        """
        log.write_text("", encoding="utf-8")
        words = (module, *arguments)
        self._process = fork_server().Process(target=_be_program, args=(words, str(log), dict(environ)))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: it runs on.
        """
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)


def fork_server() -> ForkServerContext:
    """Return what forks a process that has imported vLLM, which takes longer than all the rest."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["vllm.entrypoints.llm", "vllm.entrypoints.openai.api_server", "preloaded"]
    )
    own = dict(os.environ)
    try:
        # It starts with the first run, under the variables of all of them.
        os.environ.update(ENVIRONMENT)
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(own)
    return context


def _be_program(words: tuple[str, ...], log: str, environ: dict[str, str]) -> None:
    """Be a process that was started with a log and variables of its own."""
    os.setsid()
    opened = os.open(log, os.O_WRONLY | os.O_APPEND)
    for number in (1, 2):
        os.dup2(opened, number)
    os.environ.clear()
    os.environ.update(environ)
    module, *arguments = words
    importlib.import_module(module).main(*arguments)


def _end_session(process: subprocess.Popen[bytes] | ForkedProcess) -> None:
    """End the process and its children: they are a session of their own."""
    _kill_session(process.pid)
    process.wait(30)


def _kill_session(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def free_port() -> int:
    """Return a port on loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """A server that answers."""

    process: subprocess.Popen[bytes] | ForkedProcess
    port: int
    model: str
    log_path: Path

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def post(self, path: str, body: object) -> Any:  # noqa: ANN401 - JSON
        """Post JSON and return the answer."""
        return json.loads(fetch(self.port, path, json.dumps(body).encode()))

    def complete(self, prompts: Sequence[Sequence[int]], max_tokens: int = 16) -> list[dict[str, Any]]:
        """Complete all prompts greedily, several at a time; in order."""

        def one(prompt: Sequence[int]) -> dict[str, Any]:
            body = {
                "model": self.model,
                "prompt": list(prompt),
                "max_tokens": max_tokens,
                "temperature": 0,
                "logprobs": 0,
                "ignore_eos": True,
                "return_token_ids": True,
            }
            choice: dict[str, Any] = self.post("/v1/completions", body)["choices"][0]
            return choice

        with ThreadPoolExecutor(16) as pool:
            return list(pool.map(one, prompts))

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(90)


def fetch(port: int, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> bytes:
    """Get or post on loopback."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        data=body,
        headers={"Content-Type": "application/json", **(headers or {})},
    )
    with urllib.request.urlopen(request, timeout=120) as response:  # noqa: S310 - loopback
        content: bytes = response.read()
    return content


def start_server(
    model: Path,
    folder: Path,
    *arguments: str,
    environ: Mapping[str, str] | None = None,
    forks: bool = False,
) -> tuple[subprocess.Popen[bytes] | ForkedProcess, int, Path]:
    """Start vLLM's OpenAI server; it need not come up."""
    folder.mkdir(parents=True, exist_ok=True)
    port, log = free_port(), folder / "server.log"
    words = ["--model", str(model), "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    words += ["--enforce-eager", "--max-model-len", "128", "--no-enable-prefix-caching"]
    words += ["--num-gpu-blocks-override", str(BLOCKS), *arguments]
    # The development endpoints carry the report.
    variables = environment({"VLLM_SERVER_DEV_MODE": "1", **(environ or {})})
    if forks:
        return ForkedProcess("forked_server", words, log, variables), port, log
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=variables,
            start_new_session=True,
        )
    return process, port, log


@contextlib.contextmanager
def server(
    model: Path,
    folder: Path,
    *arguments: str,
    environ: Mapping[str, str] | None = None,
    forks: bool = False,
) -> Iterator[Server]:
    """Serve for the time of a `with` block; its processes are started anew, as vLLM does, or forked.

    Raises:
        FailedError: it did not come up.
    """
    process, port, log = start_server(model, folder, *arguments, environ=environ, forks=forks)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                fetch(port, "/health")
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise FailedError(log.read_text(encoding="utf-8", errors="replace"))
            time.sleep(0.5)
        yield Server(process, port, str(model), log)
    finally:
        _end_session(process)


def wait_all(
    processes: Sequence[subprocess.Popen[bytes] | ForkedProcess], seconds: float
) -> list[int | None]:
    """Wait for all to stop by themselves, then end what has not; the exit codes, None for those."""
    deadline = time.monotonic() + seconds
    codes: list[int | None] = []
    for process in processes:
        try:
            codes.append(process.wait(max(0.1, deadline - time.monotonic())))
        except subprocess.TimeoutExpired:
            codes.append(None)
    for process in processes:
        _end_session(process)
    return codes
