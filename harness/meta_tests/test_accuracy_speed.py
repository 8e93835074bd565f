# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The speed of arms: what is asked, how rounds take turns, and how often a verdict is wrong."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from rich.console import Console

from expert_maps import ExpertMapsError
from harness.accuracy import performance, speed
from harness.accuracy.arm_run import ArmRun
from harness.accuracy.loading import load_config, parse_config
from harness.accuracy.overview import speed_code
from harness.accuracy.server import Server, ServerError
from harness.accuracy.settings import RunSettings
from harness.accuracy.stream_client import Client
from harness.accuracy.streams import Performance, Stream
from harness.record import history

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
CLIENT = """
import json, os, sys, time
def add_cli_args(parser):
    pass
def main(words):
    if "--hang" in words:
        time.sleep(60)
    if "--fail" in words:
        raise ValueError("no such dataset")
    return {"completed": 2, "failed": 1, "errors": ["", "Traceback\\n  x\\nTimeoutError: late"], "words": words,
            "p50_ttft_ms": 1.5, "date": "today", "seed": int(os.environ["PYTHONHASHSEED"])}
"""


# Verdicts.


def verdict(arm: float, noise: float, rounds: int, seed: int, margin: float = 5.0) -> str:
    draw = np.random.default_rng(seed)
    own, other = (value * np.exp(draw.normal(0, noise, rounds)) for value in (arm, 1.0))
    ratio = speed.time_ratio("p50_e2el_ms", list(own), list(other))
    return speed.answer_of(ratio, rounds, margin, 0, (100.0, 100.0))[0]


@pytest.mark.parametrize(
    ("arm", "answer"), [(0.8, "faster"), (1.0, "no slower"), (1.03, "no slower"), (1.3, "slower")]
)
def test_answers(arm: float, answer: str) -> None:
    assert verdict(arm, 0.002, 8, 1) == answer


def test_noise_is_undecided_and_a_rate_is_turned_round() -> None:
    assert verdict(1.05, 0.1, 8, 1) == "undecided"
    ratio = speed.time_ratio("output_throughput", [50.0, 50.0], [100.0, 100.0])
    assert ratio is not None
    assert (ratio.value, ratio.low, ratio.high) == (2.0, 2.0, 2.0)


def test_wrong_verdicts_are_as_rare_as_is_said() -> None:
    """Over heavy tails, too: an interval's end is wrong in at most about 3 % of cases each."""
    draw, cases, wrong = np.random.default_rng(7), 400, [0, 0]
    for case in range(cases):
        noise = draw.normal(0, 0.05, 8) if case % 2 else 0.05 * draw.standard_t(4, 8)
        ratio = speed.time_ratio("p50_e2el_ms", list(np.exp(noise)), [1.0] * 8)
        assert ratio is not None
        wrong[0] += ratio.high < 1
        wrong[1] += ratio.low > 1
    assert max(wrong) / cases <= 0.03 + 3 * math.sqrt(0.03 * 0.97 / cases)
    # And with the rounds that decide, a slowdown of a fifth is seen in noise of 5 %.
    assert [verdict(1.2, 0.05, 10, seed) for seed in range(20)].count("slower") >= 18


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"failed": 2}, "2 requests failed"),
        ({"rounds": 7}, "7 rounds; at least 8 decide"),
        ({"tokens": (90.0, 100.0)}, "the arm generated 90 tokens, the baseline 100"),
        ({"ratio": None}, "a round has no time"),
    ],
)
def test_what_was_not_measured_is_undecided(changes: dict[str, Any], why: str) -> None:
    given: dict[str, Any] = {
        "ratio": speed.Ratio(0.5, 0.5, 0.5),
        "rounds": 8,
        "margin": 5.0,
        "failed": 0,
        "tokens": (1, 1),
    }
    assert speed.answer_of(**given) == ("faster", "")
    assert speed.answer_of(**given | changes) == ("undecided", why)
    assert speed.time_ratio("p50_e2el_ms", [1.0, 0.0], [1.0, 1.0]) is None
    assert speed.time_ratio("p50_e2el_ms", [1.0, math.nan], [1.0, 1.0]) is None


def test_an_arm_is_what_its_streams_are() -> None:
    assert speed.overall({"a": "faster", "b": "faster"}) == "faster"
    assert speed.overall({"a": "faster", "b": "no slower"}) == "no slower"
    assert speed.overall({"a": "faster", "b": "undecided"}) == "undecided"
    assert speed.overall({"a": "undecided", "b": "slower"}) == "slower"


# Configurations.


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        ({}, "one of concurrency"),
        ({"concurrency": 2, "rate": 1.0}, "one of concurrency"),
        ({"rate": 0}, "greater than 0"),
        ({"concurrency": 2, "input_tokens": 8}, "without output_tokens"),
        ({"trace": "t.jsonl", "output_tokens": 8}, "a trace says the lengths"),
        ({"concurrency": 2, "requests": 1}, "greater than or equal to 2"),
        ({"concurrency": 2, "burst": 1}, "Extra inputs are not permitted"),
    ],
)
def test_a_stream_that_is_none_is_refused_in_one_line(stream: dict[str, Any], error: str) -> None:
    document = load_config(str(ROOT / "accuracy" / "models" / "tiny-moe.yaml")).model_dump(mode="json")
    document["performance"] = {"streams": {"one": stream}}
    with pytest.raises(ExpertMapsError, match=error) as raised:
        parse_config(document, "it", trusted=False)
    assert "performance.streams.one" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_words_of_the_client() -> None:
    file = Path("prompts.jsonl")

    def words(**fields: Any) -> str:  # noqa: ANN401 - of a stream
        return " ".join(Stream(**fields).words(file, seed=3, max_tokens=9, stop=["x"]))

    closed = words(concurrency=4)
    assert "--max-concurrency 4" in closed
    assert "--request-rate" not in closed
    assert (
        '--custom-output-len 9 --skip-chat-template --disable-shuffle --extra-body {"stop": ["x"]}' in closed
    )
    # A chat's template has put in whatever a prompt begins with.
    told = Stream(concurrency=4).words(file, seed=3, max_tokens=9, stop=["x"], is_chat=True)
    assert json.loads(told[-1]) == {"stop": ["x"], "add_special_tokens": False}
    assert "--request-rate 2.5" in words(rate=2.5)
    made = words(concurrency=4, input_tokens=7, output_tokens=5)
    assert "--dataset-name random --random-input-len 7 --random-output-len 5" in made
    assert f"--dataset-name timed_trace --dataset-path {file}" in words(trace="t")
    for one in (closed, made):
        assert "--seed 3 --temperature 0" in one


# The client's process.


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """vLLM's client, which is none."""
    for folder, name, text in (
        ("benchmarks", "serve", CLIENT),
        (
            "utils",
            "argparse_utils",
            "class FlexibleArgumentParser:\n    def parse_args(self, words):\n        return words",
        ),
    ):
        path = tmp_path / "vllm" / folder
        path.mkdir(parents=True)
        # Before an installed one: a folder without this file would come after it.
        for package in (path, path.parent):
            (package / "__init__.py").touch()
        (path / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *(path for path in sys.path if path)]))
    found = Client(tmp_path / "client.log")
    yield found
    found.close()


def test_the_client_measures_fails_and_hangs(client: Client) -> None:
    found = client.run(["--seed", "1"], 120)
    assert found == {
        "completed": 2,
        "failed": 1,
        "p50_ttft_ms": 1.5,
        "seed": 0,
        "error": "TimeoutError: late",
    }
    with pytest.raises(ServerError, match="failed \\(ValueError: no such dataset\\)"):
        client.run(["--fail"], 120)
    assert client.run([], 120)["completed"] == 2
    with pytest.raises(ServerError, match=r"did not end within 0\.2 s"):
        client.run(["--hang"], 0.2)


# Rounds.


class Stopwatch:
    """A client that answers from a rule, and keeps what it was asked."""

    def __init__(self, _log: Path) -> None:
        self.asked: list[list[str]] = []

    def run(self, words: list[str], _seconds: float) -> dict[str, Any]:
        self.asked.append(words)
        fast = "http://arm" in words
        return {
            "completed": 8,
            "failed": 0,
            "total_output_tokens": 80,
            "p50_e2el_ms": 1.0 if fast else 2.0,
            "output_throughput": 20.0 if fast else 10.0,
            "error": None,
        }

    def close(self) -> None:
        """Nothing to end."""


def test_rounds_take_turns_and_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(performance, "Client", Stopwatch)
    monkeypatch.setattr(performance, "_PAUSE_SECONDS", 0)
    config = load_config(str(ROOT / "accuracy" / "models" / "tiny-moe.yaml"))
    plan = Performance(streams={"closed": Stream(concurrency=2), "open": Stream(rate=5.0)}, rounds=8)
    settings = RunSettings(
        config, "m", "float32", None, {}, tmp_path, 1, 1, 1, Console(quiet=True), performance=plan
    )
    settings.make_folder(settings.work)
    prompts: Any = [
        SimpleNamespace(content=f"question {index}", stop=("stop",), is_chat=False) for index in range(3)
    ]
    with contextlib.ExitStack() as stack:
        rounds = performance.Rounds(settings, prompts, stack)
        monkeypatch.setattr(rounds, "_baseline", Server("http://baseline", "tiny-moe"))
        run = ArmRun(settings, "eplb-static")
        rounds.measure(run, Server("http://arm", "tiny-moe"))
    asked = rounds._client.asked  # type: ignore[attr-defined]
    places = ["arm" if "http://arm" in words else "baseline" for words in asked]
    # One to warm up, then who is first changes; both get the same seed, so the same times and prompts.
    assert places[:6] == ["baseline", "arm", "baseline", "arm", "arm", "baseline"]
    seeds = [words[words.index("--seed") + 1] for words in asked[2:6]]
    assert seeds == ["0", "0", "1", "1"]
    written = (settings.work / ".streams" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["prompt"] for line in written] == [prompt.content for prompt in prompts]
    (record,) = history.read(settings.folder / performance.RECORDS)
    assert (record.kind, record.name, record.quality) == (
        "performance",
        "eplb-static",
        {"answer": "faster"},
    )
    assert record.performance["closed"]["ratios"]["output_throughput"] == {
        "value": 0.5,
        "low": 0.5,
        "high": 0.5,
    }
    assert len(record.performance["open"]["arm"]["p50_e2el_ms"]) == 8
    assert record.provenance.date
    # A record of answers finds its own speed, and no other run's.
    assert performance.of_arm(settings.folder, "eplb-static", run.started) == record
    assert performance.of_arm(settings.folder, "eplb-static", "2020-01-01T00:00:00+00:00") is None
    assert performance.of_arm(settings.folder, "eplb-dynamic", run.started) is None


def test_speed_decides_the_exit_code_only_where_it_was_asked_to(tmp_path: Path) -> None:
    class Arm:
        def __init__(self, answer: str | None) -> None:
            self.timed = None if answer is None else type("Timed", (), {"quality": {"answer": answer}})

    answers = (None, "slower", "undecided", "faster", "no slower")
    assert [speed_code(Arm(one)) for one in answers] == [3, 1, 3, 0, 0]  # type: ignore[arg-type]
    assert tmp_path.exists()


def test_a_short_run_takes_seconds() -> None:
    plan = load_config(str(ROOT / "accuracy" / "models" / "tiny-moe.yaml")).performance
    short = plan.shortened()
    assert len(plan.streams) == 3
    assert (len(short.streams), short.rounds) == (1, 1)
    assert short.streams["closed"].requests == 8
