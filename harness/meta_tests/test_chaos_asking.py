# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The chaos run's clients and its watch: what is wrong, lost or grows is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

from harness.accuracy.server import Server
from harness.chaos.answers import MAX_TOKENS, Answer, prompts, right_answers
from harness.chaos.clients import Tally, ask_for
from harness.chaos.watching import Samples, Watch, below, growth, name_of, still_there

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Array = np.ndarray[Any, np.dtype[Any]]

# Requests


class Model(BaseHTTPRequestHandler):
    """Counts on from a prompt's last id; what it does else is in `how`, by prompt length."""

    how: ClassVar[dict[int, str]] = {}

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        how = self.how.get(len(asked["prompt"]), "")
        tokens = [asked["prompt"][-1] + 1 + at for at in range(asked["max_tokens"])]
        if how == "wrong":
            tokens[-1] += 1
        # As probabilities' logarithms: the token's, and the next best's.
        top = [{"a": -0.1, "b": -0.1 if how == "unclear" else -3.0} for _ in tokens]
        content = json.dumps({"choices": [{"token_ids": tokens, "logprobs": {"top_logprobs": top}}]})
        if how == "cut":
            content = content[:-5]
        if how == "hung up":
            self.connection.close()
            return
        self.send_response(500 if how == "refused" else 200)
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(Model, "how", {})
    with ThreadingHTTPServer(("127.0.0.1", 0), Model) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield Server(f"http://127.0.0.1:{http.server_port}", "model")
        finally:
            http.shutdown()
            thread.join()


def test_only_prompts_with_clear_answers_are_asked(server: Server) -> None:
    asked = prompts(30, 100, seed=1)
    assert asked == prompts(30, 100, seed=1) != prompts(30, 100, seed=2)
    Model.how = {len(asked[0]): "unclear"}
    found = right_answers(server, asked)
    assert [answer.prompt for answer in found] == [one for one in asked if len(one) != len(asked[0])]
    first = found[0]
    assert first.tokens == tuple(first.prompt[-1] + 1 + at for at in range(MAX_TOKENS))


@pytest.mark.parametrize("how", ["", "wrong", "refused", "cut", "hung up"])
def test_every_request_is_right_wrong_or_lost(server: Server, how: str) -> None:
    answers = [Answer((1,) * length, tuple(range(2, 2 + MAX_TOKENS))) for length in (3, 5)]
    Model.how = {5: how}
    tally = Tally()
    ask_for(server, answers, is_over=lambda: tally.sent >= 40, clients=3, seed=1, tally=tally)
    assert tally.sent == tally.right + tally.wrong + tally.lost
    assert tally.right > 0
    assert (tally.wrong > 0) == (how == "wrong")
    assert (tally.lost > 0) == (how in {"refused", "cut", "hung up"})
    assert bool(tally.said) == bool(how)


# What grows


def samples(mib: Callable[[Array], Array], descriptors: Array | int = 7, every: float = 10) -> Samples:
    seconds = every * np.arange(120.0)
    noise = np.random.default_rng(1).normal(0, 0.3, len(seconds))
    return Samples(
        "a server",
        seconds.tolist(),
        (100 + noise + mib(seconds)).tolist(),
        np.broadcast_to(descriptors, seconds.shape).tolist(),
    )


def test_a_leak_is_told_and_a_start_or_a_jump_is_none() -> None:
    quiet = {
        "flat": samples(lambda at: 0 * at),
        "start": samples(lambda at: -300 * np.exp(-at / 30)),
        "a jump back and forth": samples(lambda at: 50.0 * (abs(at - 700) < 50)),
    }
    for name, one in quiet.items():
        found = growth(one, 200)
        assert found is not None
        assert found.problems() == [], name
        assert 99 < found.mib < 101
    leak, descriptors = (
        growth(samples(lambda at: at / 50), 200),
        growth(samples(lambda at: 0 * at, np.arange(120) // 10), 200),
    )
    assert leak is not None
    assert descriptors is not None
    assert ["MiB" in one for one in leak.problems()] == [True]
    assert leak.mib_grown == pytest.approx(990 / 50, rel=0.05)
    assert ["descriptors" in one for one in descriptors.problems()] == [True]
    assert growth(samples(lambda at: at), 1150) is None
    # In a minute a server still meets what it has not seen.
    meeting, leaking = (
        growth(samples(lambda at: at, every=1), 20),
        growth(samples(lambda at: 4 * at, every=1), 20),
    )
    assert meeting is not None
    assert leaking is not None
    assert meeting.problems() == []
    assert ["MiB" in one for one in leaking.problems()] == [True]


def test_processes_are_watched_with_those_below() -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script], stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"  # both are up
        found = below(process.pid)
        watch = Watch(process.pid)
        for one in found:
            watch._sample(one)
        assert [
            watch.samples[one].mib[0] > 1 and watch.samples[one].descriptors[0] >= 3 for one in found
        ] == [True] * 2
        assert still_there([process.pid], 0) == [process.pid]
        assert name_of(process.pid).startswith("python")
        process.communicate(b"\n")
    assert still_there(found) == []
    assert os.getpid() in below(os.getppid())
