# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The embedded model through vLLM's CPU build and lm-eval, in short: three arms, one of them killed and run again.

A server without the plugin stands beside: what the arms are timed against, and what is no EPLB arm.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from expert_maps import read_placement
from harness.accuracy import proof, speed
from harness.accuracy.loading import load_config
from harness.accuracy.options import SHORT_QUESTIONS as QUESTIONS
from harness.accuracy.records import read_record
from harness.accuracy.server import serve
from harness.record import history

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.accuracy.server import Server

ROOT = Path(__file__).resolve().parents[2]
ARMS = ("baseline", "eplb-static", "eplb-dynamic")
# As many answers at a time as leave others to be asked after a kill.
SLOWER = ("--concurrency", "16")


def command(output: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "harness.accuracy", "run", "--short", "--output", str(output), *arguments]


def run(output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(output, *arguments), cwd=ROOT, check=False, capture_output=True, text=True, timeout=900
    )


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def descendants(root: int) -> set[int]:
    """Processes that a process has started, and theirs; which of them have ended is not among them."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # A name may hold spaces and brackets.
            state, parent = path.read_text(encoding="utf-8").rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            parents[int(path.parent.name)] = int(parent)
    found: set[int] = set()
    new = {root}
    while new:
        new = {process for process, parent in parents.items() if parent in new}
        found |= new
    return found


def running(processes: set[int]) -> set[int]:
    """Return those that have not ended; one that nobody waits for any more has."""
    found = set()
    for process in processes:
        try:
            status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
        except OSError:
            continue
        if status.rpartition(")")[2].split()[0] != "Z":
            found.add(process)
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server as the baseline's, of vLLM alone."""
    config = load_config(str(ROOT / "accuracy" / "models" / "tiny-moe.yaml"))
    with serve(
        str(ROOT / config.model),
        [*config.server.arguments, "--dtype", "float32"],
        tmp_path_factory.mktemp("plain") / "server.log",
        environment={**config.server.environment, "VLLM_SERVER_DEV_MODE": "1"},
        startup_seconds=300,
        name=config.name,
    ) as server:
        yield server


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records of a run whose second arm was killed, and went on."""
    output = tmp_path_factory.mktemp("results")
    folder = output / "tiny-moe"
    journal = folder / "work" / "eplb-static" / "journal.jsonl"
    log = output / "first.log"
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            command(output, *SLOWER),
            cwd=ROOT,
            stdout=stream,
            stderr=stream,
        )
        deadline = time.monotonic() + 600
        while process.poll() is None and lines(journal) < 8 and time.monotonic() < deadline:
            time.sleep(0.02)
        # The guard, the server, its engine and two workers.
        started = descendants(process.pid)
        assert len(started) >= 5
        process.send_signal(signal.SIGKILL)
        process.wait()
    known = lines(journal)
    assert 8 <= known < QUESTIONS, log.read_text(encoding="utf-8")
    deadline = time.monotonic() + 90
    while running(started) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not running(started)
    # Not before: it would stand beside the first run for nothing.
    plain: Server = request.getfixturevalue("plain")
    arms = [word for name in ARMS[1:] for word in ("--arm", name)]
    done = run(output, *SLOWER, *arms, "--performance", "--base-url", f"baseline={plain.url}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"eplb-static: questions: {known} of {QUESTIONS} are there" in done.stderr
    for name in ARMS[1:]:
        assert f"{name}: no worse" in done.stdout
    return folder


def summary(folder: Path, arm: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / arm / "summary.json").read_text(encoding="utf-8"))
    return found


def test_all_arms_answer_alike(results: Path) -> None:
    records = [read_record(results / arm) for arm in ARMS]
    assert [len(record.questions) for record in records] == [QUESTIONS] * len(ARMS)
    texts = [[question.text for question in record.questions] for record in records]
    assert texts[0] == texts[1] == texts[2]
    # The model knows its task, and lm-eval finds the answers.
    assert records[0].summary.num_correct > QUESTIONS * 0.9
    first = records[0].logprobs
    assert first is not None
    for record in records[1:]:
        assert record.logprobs is not None
        for one, other in zip(first, record.logprobs, strict=True):
            assert one.doc_hash == other.doc_hash
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=5e-5)
    # Greedy texts of a model that knows its task are likely to it.
    values = np.concatenate([one.logprobs for one in first if one.logprobs])
    assert values.max() <= 0
    assert np.median(values) > -0.1


def test_the_arms_were_what_they_say(results: Path) -> None:
    baseline, static, dynamic = (summary(results, arm)["placement"] for arm in ARMS)
    assert not baseline["eplb_active"]
    assert (baseline["num_redundant_experts"], baseline["rearrangements"]) == (0, 0)
    planned = read_placement(results / "eplb-static" / "expert_map.json")
    assert static["eplb_active"]
    assert static["digest"] == static["digest_at_end"] == planned.digest
    assert not (planned.physical_to_logical == planned.physical_to_logical[0]).all()
    assert dynamic["eplb_active"]
    assert dynamic["rearrangements"] > 0
    assert dynamic["digest"] != dynamic["digest_at_end"]
    for found in (baseline, static, dynamic):
        assert found["ep_size"] == 2
        assert found["replica_checksums"] == "equal"
        assert found["faults"] == []
    for found in (static, dynamic):
        assert found["num_redundant_experts"] == 4


def test_records_say_what_acted_and_not_where(results: Path) -> None:
    for arm in ARMS:
        found = summary(results, arm)
        assert found["versions"]["vllm"].startswith("0.")
        for name in ("torch", "lm_eval", "transformers", "python", "vllm_ascend_moe", "expert_maps"):
            assert found["versions"][name], name
        assert found["versions"]["torch_npu"] is None
        assert found["dtype"] == "float32"
        text = json.dumps(found)
        assert str(ROOT) not in text
        assert str(results) not in text
        assert "accuracy/tiny-moe" in found["server"]["arguments"]
    assert (
        summary(results, "eplb-static")["load"]["balancedness"]
        > summary(results, "baseline")["load"]["balancedness"]
    )


def test_the_load_is_that_of_the_questions_and_of_no_token_more(results: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(ROOT / "accuracy" / "tiny-moe" / "tokenizer.json"))
    config = json.loads((ROOT / "accuracy" / "tiny-moe" / "config.json").read_text(encoding="utf-8"))
    held_out = (ROOT / "accuracy" / "tiny-moe" / "held_out.jsonl").read_text(encoding="utf-8").splitlines()
    tokens = 0
    for question in read_record(results / "baseline").questions:
        prompt = f"Question: {json.loads(held_out[question.index])['question']}\nAnswer:"
        # All but the last token are computed: what ends a text is in its place.
        tokens += len(tokenizer.encode(prompt).ids) + len(tokenizer.encode(question.text).ids)
    for layer in summary(results, "baseline")["load"]["rank_load"]:
        assert sum(layer) == pytest.approx(tokens * config["num_experts_per_tok"], rel=0.01)


def test_a_server_without_the_plugin_is_no_eplb_arm_and_lives_on(plain: Server, tmp_path: Path) -> None:
    done = run(tmp_path / "results", "--arm", "eplb-static", "--base-url", f"eplb-static={plain.url}")
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 1
    assert "expert_maps in --additional-config" in done.stderr
    assert summary(tmp_path / "results" / "tiny-moe", "eplb-static")["status"] == "failed"
    assert proof.read_state(plain, needed=False) is None
    body = {"model": plain.model, "prompt": "Question:", "max_tokens": 1}
    assert plain.post("/v1/completions", body)["choices"]


def test_arms_are_timed_beside_a_server_of_vllm_alone(results: Path) -> None:
    records = history.read(results / "performance.jsonl")
    assert [record.name for record in records] == list(ARMS[1:])
    for record in records:
        assert record.quality == {"answer": "undecided"}
        assert record.proof["eplb_active"]
        (stream,) = record.performance.values()
        assert "decide" in stream["why"]
        assert stream["failed"] == 0
        # Who is faster says nothing here; that each metric was measured of both does.
        for side in ("arm", "baseline"):
            assert set(stream[side]) == set(speed.METRICS)
            assert all(value > 0 for values in stream[side].values() for value in values)
        assert stream["ratios"]["output_throughput"]["value"] > 0
