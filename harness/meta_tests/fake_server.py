# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""An OpenAI server that is none: answers at once and by rule, fails as told, and keeps count of what it was asked.

In a test's own process as `Fake`, or as a process of its own in the place of vLLM's (see `install`), with the plugin's
report of the placement that its arguments ask for.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from expert_maps import Placement, generate_placement, read_placement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

LAYERS, EXPERTS, RANKS = 2, 8, 2
# Tells the process what to do wrong: JSON.
ENVIRONMENT = "FAKE_SERVER"
MODULE = "vllm/entrypoints/openai/api_server.py"


def answer_to(prompt: str) -> str:
    """Return what the fake says to a prompt: right for some questions, always the same."""
    number = int(hashlib.sha256(prompt.encode()).hexdigest(), 16) % 7
    return f" some reasoning\n#### {number}\nThe final answer is {number}"


def reports(placement: Placement, **changes: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - JSON
    """Return what each rank reports of a placement; changes hold for all of them."""
    slots = placement.num_physical_experts // placement.ep_size
    return [
        {
            "active": True,
            "ep_rank": rank,
            "ep_size": placement.ep_size,
            "settings": {"dynamic": False},
            "digest": placement.digest,
            "physical_to_logical": placement.physical_to_logical.tolist(),
            "num_redundant_experts": placement.num_redundant_experts,
            "rearrangements": 0,
            "slot_checksums": [
                [f"{layer}:{expert}" for expert in row[rank * slots : (rank + 1) * slots]]
                for layer, row in enumerate(placement.physical_to_logical.tolist())
            ],
            **changes,
        }
        for rank in range(placement.ep_size)
    ]


def load_of(prompt: str) -> NDArray[np.int64]:
    """Return what a request adds to the load, [L, E]: its own for each question, more for a text that is scored."""
    if prompt == "forced":
        return np.full((LAYERS, EXPERTS), 1000)
    seed = int(hashlib.sha256(prompt.encode()).hexdigest()[:8], 16)
    return np.random.default_rng(seed).integers(1, 20, (LAYERS, EXPERTS))


class Record:
    """What the plugin writes: a row a request, continued by a server that is started again.

    Attributes:
        rows: int64 [L, E] each.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        """Read what is there.

        Args:
            path: the file.
            seconds: how long after a row the file has it.
        """
        self._path, self._seconds = path, seconds
        self._lock, self._written = threading.Lock(), 0
        self.rows = list(np.load(path)["load"]) if path.exists() else []

    def add(self, row: NDArray[np.int64]) -> None:
        self.rows.append(row)
        if self._seconds:
            threading.Timer(self._seconds, self._write, (len(self.rows),)).start()
        else:
            self._write(len(self.rows))

    def _write(self, count: int) -> None:
        with self._lock:
            # Timers of neighbours may overtake each other.
            if count > self._written:
                part = self._path.with_name("part.npz")
                np.savez(part, load=np.stack(self.rows[:count]))
                part.replace(self._path)
                self._written = count


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    # The default of 5 makes some of many clients wait a second.
    request_queue_size = 128


class Fake:
    """A server on loopback, for the time of a `with` block.

    Attributes:
        asked: how often each prompt was asked.
        answered: how often each prompt was answered in full.
        most: most requests that were in flight at a time.
        bodies: what was posted, by path.
    """

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.bodies: list[tuple[str, dict[str, Any]]] = []
        self.most = self._now = 0
        self.delay = 0.0
        # Called with a prompt and how often it was asked before: a status, "drop", "cut", "break", or None for an answer.
        self.fault: Callable[[str, int], object] = lambda _prompt, _before: None
        self.retry_after: str | None = None
        self.report: list[dict[str, Any]] | None = None
        self.log: Path | None = None
        self.names = ["fake"]
        self.record: Record | None = None
        # Whether each answer to a question moves experts.
        self.moves = False
        # Whether the workers' report cannot be read any more once questions have been answered.
        self.forgets = False
        self.lock = threading.Lock()
        self._http = _Http(("127.0.0.1", 0), _handler(self))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> Fake:  # noqa: PYI034 - of no other class
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    @contextlib.contextmanager
    def in_flight(self) -> Iterator[None]:
        with self.lock:
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            yield
        finally:
            with self.lock:
                self._now -= 1

    def took(self, prompt: str) -> int:
        with self.lock:
            before = self.asked[prompt]
            self.asked[prompt] += 1
        return before

    def gave(self, prompt: str) -> None:
        with self.lock:
            if self.record is not None:
                self.record.add(load_of(prompt))
            self.answered[prompt] += 1
            if self.log is not None:
                with self.log.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(prompt) + "\n")


def _ids(body: dict[str, Any]) -> list[int]:
    return [ord(letter) for letter in body.get("prompt") or json.dumps(body["messages"])]


def _reply(path: str, body: dict[str, Any]) -> dict[str, Any]:
    if path == "/tokenize":
        return {"tokens": _ids(body)}
    if path == "/v1/chat/completions":
        text = answer_to(json.dumps(body["messages"]))
        return {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
    choice: dict[str, Any] = {"text": answer_to(str(body["prompt"])), "finish_reason": "stop"}
    if body.get("echo"):
        values = [-((token * (place + 1)) % 97) / 100 for place, token in enumerate(body["prompt"])]
        choice["logprobs"] = {"token_logprobs": [None, *values[1:], -9.0]}
    return {"choices": [choice]}


class _Handler(BaseHTTPRequestHandler):
    fake: Fake
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        known = {
            "/health": {},
            "/version": {"version": "0.0.fake"},
            "/v1/models": {"data": [{"id": name} for name in self.fake.names]},
        }
        self._send(200, known[self.path]) if self.path in known else self._send(404, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.fake.lock:
            self.fake.bodies.append((self.path, body))
        if self.path == "/collective_rpc":
            moved = sum(count for prompt, count in self.fake.answered.items() if prompt != "forced")
            if self.fake.report is None or (self.fake.forgets and self.fake.answered["forced"]):
                self._send(404 if self.fake.report is None else 500, {})
                return
            added = moved if self.fake.moves else 0
            rows = copy.deepcopy(self.fake.report)
            if self.fake.record is not None:
                rows[0]["recorded_steps"] = len(self.fake.record.rows)
            for one in rows if added else []:
                one["rearrangements"] += added if one["settings"]["dynamic"] else 0
            self._send(200, {"results": rows})
            return
        self._answer(body)

    def _answer(self, body: dict[str, Any]) -> None:
        # As vLLM does.
        if len(body.get("stop") or ()) > 4:
            self._send(400, {"error": "stop should have at most 4 items"})
            return
        forced = bool(body.get("echo")) or self.path == "/tokenize"
        prompt = "forced" if forced else str(body.get("prompt") or json.dumps(body.get("messages")))
        before = self.fake.took(prompt)
        # It is over before the client can know, which then sends the next one.
        with self.fake.in_flight():
            time.sleep(self.fake.delay)
            fault = None if forced else self.fake.fault(prompt, before)
        content = json.dumps(_reply(self.path, body)).encode()
        if fault is None:
            self.fake.gave(prompt)
            self._send(200, content)
        elif fault == "drop":
            self.close_connection = True
        elif fault == "cut":
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        elif fault == "break":
            self._send(200, content[: len(content) // 2])
        else:
            assert isinstance(fault, int)
            self._send(fault, {"error": "as the test asked"})

    def _send(self, status: int, content: object) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if status == 429 and self.fake.retry_after is not None:
            self.send_header("Retry-After", self.fake.retry_after)
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(data)


def _handler(fake: Fake) -> type[BaseHTTPRequestHandler]:
    return type("Handler", (_Handler,), {"fake": fake})


# As a process of its own, in the place of vLLM's server.


def install(folder: Path) -> dict[str, str]:
    """Put the fake where `python -m vllm.entrypoints.openai.api_server` finds it; the environment that makes it so."""
    module = folder / MODULE
    module.parent.mkdir(parents=True, exist_ok=True)
    for parent in (module.parent, module.parent.parent, module.parent.parent.parent):
        (parent / "__init__.py").touch()
    module.write_text("import fake_server\n\nfake_server.main()\n", encoding="utf-8")
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(Path(__file__).parent)])}


def _option(name: str) -> str | None:
    words = sys.argv
    return words[words.index(name) + 1] if name in words else None


def _names() -> list[str]:
    """Return the names under which the model is to be served."""
    words = sys.argv[sys.argv.index("--served-model-name") + 1 :] if "--served-model-name" in sys.argv else []
    end = next((place for place, word in enumerate(words) if word.startswith("--")), len(words))
    return words[:end] or ["fake"]


def main() -> None:
    """Serve as the arguments and the variable say."""
    orders: dict[str, Any] = json.loads(os.environ.get(ENVIRONMENT, "{}"))
    print(f"fake server, process {os.getpid()}", flush=True)
    if "pid" in orders:
        Path(orders["pid"]).write_text(str(os.getpid()), encoding="utf-8")
    if "dies" in orders:
        print(*(f"line {number}" for number in range(50)), sep="\n")
        print(orders["dies"], flush=True)
        sys.exit(3)
    if orders.get("hangs"):
        time.sleep(600)
    options = json.loads(_option("--additional-config") or "{}").get("expert_maps")
    fake = Fake()
    fake.delay = orders.get("delay", 0.0)
    fake.names = orders.get("names", _names())
    fake.moves, fake.forgets = bool(orders.get("moves")), bool(orders.get("forgets"))
    fake.log = Path(orders["log"]) if "log" in orders else None
    if options is not None and not orders.get("no_plugin"):
        fake.report = _report(options, orders)
        if "record_path" in options:
            fake.record = Record(Path(options["record_path"]), orders.get("writes_after", 0.0))
    port = int(_option("--port") or 0)
    _Http(("127.0.0.1", port), _handler(fake)).serve_forever()


def _report(options: dict[str, Any], orders: dict[str, Any]) -> list[dict[str, Any]]:
    counts: dict[str, Any] = {"num_experts": EXPERTS, "ep_size": RANKS, "num_layers": LAYERS}
    if "expert_map_path" in options and not orders.get("ignores_map"):
        placement = read_placement(options["expert_map_path"])
    elif options.get("num_redundant_experts"):
        placement = generate_placement(
            "ring", num_redundant_experts=options["num_redundant_experts"], **counts
        )
    else:
        placement = generate_placement("linear", **counts)
    return reports(placement, settings={"dynamic": bool(options.get("dynamic"))})
