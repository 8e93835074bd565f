# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What comes from elsewhere: a stranger's configuration, records and servers. Each ends in one line."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from forking import run_module
from made_records import Arm, make
from test_accuracy_config import SMALL
from test_accuracy_server import wait_until_gone

from expert_maps import ExpertMapsError
from harness.accuracy import server as serving
from harness.accuracy.client import Job, Limits, ask_all
from harness.accuracy.config import ConfigError
from harness.accuracy.journal import Journal
from harness.accuracy.loading import MAX_BYTES, load_config, parse_config
from harness.accuracy.records import read_record
from harness.accuracy.schema import RecordError
from harness.accuracy.server import RefusedError, ServerError, fetch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Where it stands, and what it is set to.
STRANGE: dict[str, tuple[str, Any]] = {
    "code of the checkpoint": ("server.arguments", ["--trust-remote-code"]),
    "a worker": ("server.arguments", ["--worker-cls=evil.Worker"]),
    "a worker's extension": ("arms.eplb.arguments", ["--worker-extension-cls", "evil.Extension"]),
    "middleware": ("server.arguments", ["--middleware", "evil.Middleware"]),
    "a plugin": ("server.arguments", ["--tool-parser-plugin=/x/evil.py"]),
    "a plugin, abbreviated": ("server.arguments", ["--reasoning-parser-plug=/x/evil.py"]),
    "an executor": ("server.arguments", ["--distributed-executor-backend=evil.Executor"]),
    "an object": ("server.arguments", ["--compilation-config={}"]),
    "an option's object": ("server.arguments", ["--compilation-config.backend=evil"]),
    "underscores": ("server.arguments", ["--worker_cls=evil.Worker"]),
    "another model": ("server.arguments", ["--enforce-eager", "elsewhere/model"]),
    "a switch with a value": ("server.arguments", ["--enforce-eager=evil"]),
    "a number that is none": ("server.arguments", ["--seed", "--trust-remote-code"]),
    "a short name": ("server.arguments", ["-O3"]),
    "modules": ("server.environment", {"PYTHONPATH": "/x/evil"}),
    "a library": ("arms.eplb.environment", {"LD_PRELOAD": "/x/evil.so"}),
    "plugins of vLLM": ("server.environment", {"VLLM_PLUGINS": "evil"}),
    "a path in a number": ("server.environment", {"OMP_NUM_THREADS": "/x/evil"}),
    "additional config": ("arms.eplb.additional_config", {"torchair_graph_config": {"enabled": True}}),
    "a chat template": ("task.chat_template_kwargs", {"chat_template": "{{ evil }}"}),
}


def strange(name: str) -> dict[str, Any]:
    document, (place, value) = copy.deepcopy(SMALL), STRANGE[name]
    *path, last = place.split(".")
    part = document
    for one in path:
        part = part.setdefault(one, {})
    part[last] = value
    return document


@pytest.mark.parametrize("name", STRANGE)
def test_what_can_run_code_needs_trust(name: str) -> None:
    document = strange(name)
    with pytest.raises(ConfigError, match="--trust") as caught:
        parse_config(document, "theirs.yaml", trusted=False)
    assert "\n" not in str(caught.value)
    assert parse_config(document, "ours.yaml", trusted=True).name == SMALL["name"]


def test_what_a_stranger_may_set() -> None:
    document = copy.deepcopy(SMALL)
    document["server"] = {
        "arguments": ["--tensor-parallel-size=2", "--max-num-seqs", "64", "--enforce-eager", "--seed=0"],
        "environment": {"OMP_NUM_THREADS": "1", "HCCL_DETERMINISTIC": "true"},
    }
    assert parse_config(document, "theirs.yaml", trusted=False).server.arguments[-1] == "--seed=0"


def bomb() -> str:
    lines = ["a0: &a0 [x]"]
    lines += [f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 10)}]" for number in range(1, 12)]
    return "\n".join(lines)


TEXTS: dict[str, Callable[[], str]] = {
    "an alias bomb": bomb,
    "lists in lists": lambda: "a: " + "[" * 3000 + "]" * 3000,
    "mappings in mappings": lambda: "\n".join(f"{' ' * depth}a:" for depth in range(500)),
    "many keys": lambda: "\n".join(f"k{number}: 1" for number in range(20_000)),
    "a large file": lambda: "# " + "x" * MAX_BYTES,
    "a tag": lambda: "name: !!python/object/apply:os.system ['true']",
    "a date that is none": lambda: "name: 2020-13-45",
    "a key twice": lambda: "name: a\nname: b",
    "a list that holds itself": lambda: "name: &a [*a]",
    "a number without end": lambda: f"name: {'9' * 5000}",
    "no text": lambda: "\0\x01",
    "two documents": lambda: "a: 1\n---\nb: 2",
    "a bracket that is open": lambda: "name: [",
    "nothing": lambda: "",
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_hostile_file_ends_in_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / "theirs.yaml"
    path.write_text(TEXTS[name](), encoding="utf-8")
    with pytest.raises(ExpertMapsError) as caught:
        load_config(str(path))
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 1000


def test_what_is_no_file_ends_in_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    for name in ("pipe.yaml", "zero.yaml", "absent.yaml"):
        done = run_module("harness.accuracy", "validate", str(tmp_path / name), cwd=tmp_path, seconds=20)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), name


def write(folder: Path, document: dict[str, Any]) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


def test_validate_says_what_would_be_run_and_what_would_not(tmp_path: Path) -> None:
    def validate(document: dict[str, Any], *words: str) -> tuple[int, str]:
        path = write(tmp_path, document)
        done = run_module("harness.accuracy", "validate", str(path), *words, cwd=tmp_path, seconds=60)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout + done.stderr

    assert validate(SMALL) == (
        0,
        "small: baseline (baseline), eplb (eplb); the data is on the hub, and was not looked at\n",
    )
    document = strange("a worker")
    assert validate(document)[0] == 2
    assert validate(document, "--trust")[0] == 0
    for name in ("test", "train"):
        (tmp_path / f"{name}.jsonl").write_text('{"question": "a", "answer": "#### 1"}\n', encoding="utf-8")
    data = {name: str(tmp_path / f"{name}.jsonl") for name in ("test", "train")}
    document = copy.deepcopy(SMALL)
    document["task"]["data"] = data
    assert validate(document)[1].endswith("the data is checked\n")
    (tmp_path / "test.jsonl").write_text('{"question": "a", "question": "b", "answer": "#### 1"}\n')
    code, said = validate(document)
    assert (code, "line 1" in said) == (2, True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layout": "ring"}, "expert_map_path"),
        ({"replica_choice": "weighted"}, "replica_weights_path is missing"),
        ({"max_moves": 4, "policy": "deepseek"}, "max_moves is 4"),
    ],
)
def test_options_of_the_plugin_are_checked_together(options: dict[str, Any], said: str) -> None:
    pytest.importorskip("vllm_ascend_moe")
    document = copy.deepcopy(SMALL)
    # The map that is planned is one of them.
    document["arms"]["eplb"]["additional_config"] = {"expert_maps": options}
    with pytest.raises(ConfigError, match=said):
        parse_config(document, "small")


LINES: dict[str, tuple[str, Callable[[str], str]]] = {
    "Infinity": ("logprobs.jsonl", lambda line: line.replace("-0.0002", "-Infinity", 1)),
    "NaN": ("logprobs.jsonl", lambda line: line.replace("-0.0002", "NaN", 1)),
    "too large": ("logprobs.jsonl", lambda line: line.replace("-0.0002", "-1e400", 1)),
    "too large, elsewhere": ("questions.jsonl", lambda line: line.replace("{", '{"more": 1e400, ', 1)),
    "a truth for a number": ("logprobs.jsonl", lambda line: line.replace("-0.0002", "false", 1)),
    "a truth for an index": ("questions.jsonl", lambda line: line.replace('"index": 0', '"index": false', 1)),
    "a truth for right": ("questions.jsonl", lambda line: line.replace('"correct": 1', '"correct": true', 1)),
    "a key twice": ("questions.jsonl", lambda line: line.replace("{", '{"correct": 0, ', 1)),
    "a key of the summary twice": ("summary.json", lambda line: line.replace("{", '{"dtype": "x",', 1)),
    "deep": (
        "questions.jsonl",
        lambda line: line.replace("{", '{"more": ' + "[" * 9999 + "]" * 9999 + ", ", 1),
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_a_record_with_what_is_no_number_is_refused(tmp_path: Path, name: str) -> None:
    folder = make(tmp_path, Arm(questions=3)).folder
    file, change = LINES[name]
    text = (folder / file).read_text(encoding="utf-8")
    assert change(text) != text
    (folder / file).write_text(change(text), encoding="utf-8")
    with pytest.raises((RecordError, ValueError), match=file) as caught:
        read_record(folder)
    assert len(str(caught.value)) < 500


@contextlib.contextmanager
def raw(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Answer every request on a socket as told; the address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    one, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=_answer, args=(one, answer), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def _answer(one: socket.socket, answer: Callable[[socket.socket], None]) -> None:
    with one, contextlib.suppress(OSError):
        one.recv(2**16)
        answer(one)


def drip(one: socket.socket) -> None:
    one.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        one.sendall(b" ")
        threading.Event().wait(0.05)


def drip_headers(one: socket.socket) -> None:
    one.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        one.sendall(b"x")
        threading.Event().wait(0.05)


def flood(one: socket.socket) -> None:
    one.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        one.sendall(b" " * 2**20)


@pytest.mark.parametrize("answer", [drip, drip_headers])
def test_a_server_that_drips_is_not_waited_for(answer: Callable[[socket.socket], None]) -> None:
    with raw(answer) as url, pytest.raises(ServerError, match=r"no whole answer in 0\.4 s"):
        fetch(url, seconds=0.4)


def test_a_body_without_end_is_not_kept(tmp_path: Path) -> None:
    with raw(flood) as url:
        with pytest.raises(RefusedError, match="more than 67,108,864 bytes"):
            fetch(url, seconds=60)
        with contextlib.closing(Journal(tmp_path / "journal.jsonl")) as journal:

            async def run(post: Any) -> dict[str, Any]:  # noqa: ANN401
                return dict(await post("/v1/completions", {}))

            with pytest.raises(Exception, match="more than 67,108,864 bytes"):
                ask_all(url, [Job("key", run)], journal, Limits(1, 1, 60.0))


def test_workers_end_with_a_guard_that_was_killed(tmp_path: Path) -> None:
    # A server with a worker, which is no child of the guard's.
    code = (
        "import pathlib, subprocess, sys, time\n"
        "worker = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(tmp_path)!r}, 'worker').write_text(str(worker.pid))\n"
        "time.sleep(600)\n"
    )
    with serving.start([sys.executable, "-c", code], tmp_path / "log", {}, 5) as process:
        while not (told := tmp_path / "worker").exists() or not told.read_text():
            threading.Event().wait(0.05)
        os.kill(process.pid, signal.SIGKILL)
        assert wait_until_gone(int(told.read_text()))


def test_a_file_by_name_is_this_checkout_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).resolve().parents[2]
    monkeypatch.chdir(root)
    assert "--trust-remote-code" in load_config("deepseek-r1-w8a8").server.arguments
    with pytest.raises(ConfigError, match="--trust"):
        load_config("accuracy/models/deepseek-r1-w8a8.yaml")
    assert json.dumps(load_config("accuracy/models/tiny-moe.yaml").expected.accuracy) == "99.47"
