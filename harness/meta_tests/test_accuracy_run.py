# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A whole run, with a server that is none in the place of vLLM's; what asks goes through lm-eval where it is here."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from fake_server import ENVIRONMENT, EXPERTS, LAYERS, RANKS, Fake, install, reports
from forking import Forked, run_module
from made_loads import is_once_but_for, rank_loads

from expert_maps import generate_placement, plan, read_placement
from harness.accuracy.records import read_record
from harness.accuracy.versions import model_identity

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k"
QUESTIONS = 30
needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed; nox -s accuracy -- test"
)
needs_gsm8k = pytest.mark.skipif(not (GSM8K / "test.jsonl").exists(), reason="GSM8K is not here")


class Bench:
    """A folder with data, a configuration and the fake server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = folder / "results"
        self.results = self.output / "small"
        self.environment = install(folder / "fake")
        self.orders: dict[str, Any] = {"log": str(folder / "answered.jsonl"), "pid": str(folder / "pid")}
        model = folder / "model"
        model.mkdir()
        (model / "config.json").write_text("{}", encoding="utf-8")
        for name, count in (("test", QUESTIONS), ("train", 8)):
            lines = [
                json.dumps({"question": f"What is {name} {number}?", "answer": f"So.\n#### {number % 7}"})
                for number in range(count)
            ]
            (model / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.config: dict[str, Any] = {
            "name": "small",
            "model": str(model),
            "dtype": "float32",
            "concurrency": 4,
            "startup_seconds": 60,
            "task": {
                "name": "gsm8k",
                "dataset": "problems",
                "data": {"test": "{model}/test.jsonl", "train": "{model}/train.jsonl"},
                "num_fewshot": 0,
                "max_tokens": 16,
            },
            "expected": {"accuracy": None, "reason": "a test"},
            "arms": {
                "baseline": {
                    "role": "baseline",
                    "record_load": True,
                    "additional_config": {"expert_maps": {}},
                },
                "eplb-static": {
                    "role": "eplb",
                    "plan": {"load_of": "baseline", "num_redundant_experts": 2, "ep_size": 2},
                },
            },
        }

    def command(self, *arguments: object) -> list[str]:
        self.config["server"] = {"environment": {ENVIRONMENT: json.dumps(self.orders), **self.environment}}
        path = self.folder / "small.yaml"
        path.write_text(yaml.safe_dump(self.config, sort_keys=False), encoding="utf-8")
        words = ["--model", str(path), "--trust", "--output", str(self.output), *map(str, arguments)]
        return [sys.executable, "-m", "harness.accuracy", "run", *words]

    def start(self, *arguments: object) -> Forked:
        """Start a run whose own words nobody reads."""
        _, _, module, *words = self.command(*arguments)
        return Forked(module, *words, cwd=self.folder, said=[Path(os.devnull)] * 2)

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        _, _, module, *words = self.command(*arguments)
        return run_module(module, *words, cwd=self.folder, seconds=300)

    def answered(self) -> Counter[str]:
        path = Path(self.orders["log"])
        return Counter(path.read_text(encoding="utf-8").splitlines() if path.exists() else [])

    def questions(self) -> int:
        return sum(count for prompt, count in self.answered().items() if "forced" not in prompt)

    def summary(self, arm: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.results / arm / "summary.json").read_text(encoding="utf-8"))
        return found

    def server_is_gone(self) -> bool:
        process = int(Path(self.orders["pid"]).read_text(encoding="utf-8"))
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                os.kill(process, 0)
            except ProcessLookupError:
                return True
            time.sleep(0.05)
        return False


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@needs_lm_eval
def test_all_arms_are_asked_recorded_and_judged(bench: Bench) -> None:
    done = bench.run("--margin", 15)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("| dataset | version | metric | mode | model |") == 2
    assert "eplb-static: no worse" in done.stdout
    baseline, arm = (read_record(bench.results / name) for name in ("baseline", "eplb-static"))
    assert [question.index for question in baseline.questions] == list(range(QUESTIONS))
    assert baseline.questions == arm.questions
    assert 0 < baseline.summary.num_correct < QUESTIONS
    assert baseline.logprobs is not None
    assert [one.logprobs for one in baseline.logprobs] == [one.logprobs for one in arm.logprobs or ()]
    # One for each token, which the fake makes of each letter.
    assert [len(one.logprobs) for one in baseline.logprobs] == [len(one.text) for one in baseline.questions]
    assert not baseline.summary.placement.eplb_active
    assert arm.summary.placement.eplb_active
    assert arm.summary.placement.num_redundant_experts == 2
    assert arm.summary.placement.replica_checksums == "equal"
    planned = read_placement(bench.results / "eplb-static" / "expert_map.json")
    assert planned.digest == arm.summary.placement.digest
    assert arm.summary.versions.vllm == "0.0.fake"
    assert bench.server_is_gone()
    # Where it was made stays there.
    for name in ("baseline", "eplb-static"):
        words = bench.summary(name)["server"]["arguments"]
        assert str(bench.folder) not in " ".join(words)
        assert bench.summary(name)["server"]["started_by_harness"] is True
    assert bench.summary("baseline")["load"]["rank_load"] == rank_loads(bench.answered())


@needs_lm_eval
def test_the_load_is_that_of_the_questions_however_late_it_is_written(bench: Bench) -> None:
    bench.orders["writes_after"] = 1.0
    bench.config["arms"]["eplb-static"]["record_load"] = True
    done = bench.run("--margin", 15)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = rank_loads(bench.answered())
    assert bench.summary("baseline")["load"]["rank_load"] == expected
    # Copies share, so that only the sum is the same in every placement.
    arm = bench.summary("eplb-static")["load"]["rank_load"]
    assert np.sum(arm, axis=1) == pytest.approx(np.sum(expected, axis=1), abs=0.2)
    planned = plan(
        np.load(bench.results / "work" / "baseline" / "load.npz")["load"].sum(axis=0),
        num_physical_experts=EXPERTS + 2,
        ep_size=RANKS,
    ).placement
    assert bench.summary("eplb-static")["placement"]["digest"] == planned.digest


@needs_lm_eval
def test_the_load_of_a_run_that_was_cut_off_while_texts_were_scored(bench: Bench) -> None:
    bench.orders["delay"] = 0.05
    stop_after(bench, "baseline", QUESTIONS + 5)
    done = bench.run("--margin", 15)
    assert done.returncode == 0, done.stdout + done.stderr
    assert bench.questions() == 2 * QUESTIONS
    assert bench.summary("baseline")["load"]["rank_load"] == rank_loads(bench.answered())
    assert not bench.summary("baseline")["load"]["cut_off"]


@needs_lm_eval
@pytest.mark.parametrize("arm", ["baseline", "eplb-static"])
def test_killed_and_run_again_gives_the_same_and_asks_no_answered_question(
    bench: Bench, tmp_path: Path, arm: str
) -> None:
    other = tmp_path / "whole"
    other.mkdir()
    whole = Bench(other)
    assert whole.run("--margin", 15).returncode == 0
    bench.orders["delay"] = 0.15
    journal = bench.results / "work" / arm / "journal.jsonl"
    stop_after(bench, arm, 9)
    assert bench.summary(arm)["status"] == "incomplete"
    known = journal.read_bytes().count(b"\n")
    assert 9 <= known < QUESTIONS
    before = bench.questions()
    # The delay stays: it is told through the environment, which is part of who was asked.
    done = bench.run("--margin", 15)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{arm}: questions: {known} of {QUESTIONS} are there" in done.stderr
    if arm != "baseline":
        assert "baseline: complete, from the run that was cut off" in done.stderr
    expected = QUESTIONS - known if arm != "baseline" else 2 * QUESTIONS - known
    assert bench.questions() - before == expected
    for name in ("baseline", "eplb-static"):
        for file in ("questions.jsonl", "logprobs.jsonl"):
            assert (bench.results / name / file).read_bytes() == (whole.results / name / file).read_bytes()
        same = ["status", "value", "num_questions", "num_correct", "task"]
        # What is planned from a load that was cut off may be another placement.
        same += ["placement", "load"] if arm != "baseline" else []
        assert {key: bench.summary(name)[key] for key in same} == {
            key: whole.summary(name)[key] for key in same
        }
    if arm == "baseline":
        load = bench.summary(arm)["load"]
        assert load["cut_off"]
        assert is_once_but_for(bench.config["concurrency"], load["rank_load"], bench.answered())


@needs_lm_eval
def test_a_run_that_is_complete_begins_anew(bench: Bench) -> None:
    for times in (1, 2):
        assert bench.run("--arm", "baseline").returncode == 0
        assert bench.questions() == times * QUESTIONS


# What is changed in the file, and what is given on the command line.
OPTIONS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "seconds": ({"request_seconds": 77, "startup_seconds": 59}, []),
    "expected": ({"expected": {"accuracy": None, "reason": "another"}}, []),
    "numbers": ({"concurrency": 5}, ["--concurrency", "3", "--attempts", "2"]),
    "--largest": ({}, ["--largest", "0.5"]),
}


@needs_lm_eval
@pytest.mark.parametrize("option", OPTIONS)
def test_a_run_goes_on_under_options_that_change_no_answer(bench: Bench, option: str) -> None:
    bench.orders["delay"] = 0.05
    stop_after(bench, "eplb-static", 4)
    before = bench.questions()
    known = (bench.results / "work" / "eplb-static" / "journal.jsonl").read_bytes().count(b"\n")
    changes, words = OPTIONS[option]
    bench.config |= changes
    # An arm that comes later is no matter of those before it.
    bench.config["arms"]["third"] = copy.deepcopy(bench.config["arms"]["eplb-static"])
    done = bench.run("--margin", 15, "--arm", "baseline", "--arm", "eplb-static", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "baseline: complete, from the run that was cut off" in done.stderr
    assert bench.questions() - before == QUESTIONS - known


@needs_lm_eval
def test_nothing_that_was_answered_is_deleted(bench: Bench) -> None:
    bench.orders["delay"] = 0.05
    work = bench.results / "work"

    def kept() -> int:
        return sum(path.read_bytes().count(b"\n") for path in work.glob("*/journal*.jsonl"))

    stop_after(bench, "eplb-static", 4)
    known = kept()
    # Each time something else is asked: other weights, fewer questions, all of them anew.
    (bench.folder / "model" / "config.json").write_text('{"other": true}', encoding="utf-8")
    for words in (["--questions", "5"], [], ["--no-resume"]):
        done = bench.run("--margin", 80 if words else 15, *words)
        assert done.returncode in {0, 3}, done.stdout + done.stderr
        assert kept() > known
        known = kept()


@needs_lm_eval
def test_a_journal_of_another_configuration_is_not_used(bench: Bench) -> None:
    bench.orders["delay"] = 0.2
    journal = bench.results / "work" / "baseline" / "journal.jsonl"
    with bench.start("--arm", "baseline") as process:
        while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= 4):
            time.sleep(0.01)
        process.terminate()
        assert process.wait(60) == 130
    assert bench.server_is_gone()
    assert bench.summary("baseline")["reason"] == "the run was interrupted"
    before = bench.questions()
    (bench.folder / "model" / "config.json").write_text('{"other": true}', encoding="utf-8")
    assert bench.run("--arm", "baseline").returncode == 0
    assert bench.questions() - before == QUESTIONS


@needs_lm_eval
@pytest.mark.parametrize(
    ("orders", "said"),
    [
        ({"no_plugin": True}, "VLLM_SERVER_DEV_MODE=1"),
        ({"ignores_map": True}, "EPLB is active with 0 redundant experts"),
    ],
)
def test_an_arm_without_eplb_is_not_asked_anything(bench: Bench, orders: dict[str, Any], said: str) -> None:
    load = bench.folder / "load.npz"
    np.savez(load, load=np.ones((1, LAYERS, EXPERTS)))
    bench.config["arms"]["eplb-static"]["plan"] = {
        "load": str(load),
        "num_redundant_experts": 2,
        "ep_size": 2,
    }
    bench.orders |= orders
    done = bench.run("--arm", "eplb-static")
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 1
    assert "arm eplb-static was not asked anything" in done.stderr
    assert said in done.stderr
    assert bench.answered() == Counter()
    summary = bench.summary("eplb-static")
    assert summary["status"] == "failed"
    assert said in summary["reason"]
    assert summary["value"] is None
    assert bench.server_is_gone()


@needs_lm_eval
def test_a_dynamic_arm_that_never_moved_is_none(bench: Bench) -> None:
    bench.config["arms"]["eplb-static"] = {
        "role": "eplb",
        "dynamic": True,
        "additional_config": {"expert_maps": {"num_redundant_experts": 2, "dynamic": True}},
    }
    done = bench.run()
    assert done.returncode == 1
    assert "no experts moved while the questions were asked" in done.stderr
    assert bench.summary("eplb-static")["status"] == "failed"
    assert bench.summary("eplb-static")["value"] is None
    assert bench.summary("baseline")["status"] == "complete"


def stop_after(bench: Bench, arm: str, answers: int) -> None:
    """Run until an arm has so many answers, then kill the run."""
    journal = bench.results / "work" / arm / "journal.jsonl"
    with bench.start("--margin", 15) as process:
        while process.poll() is None and not (
            journal.exists() and journal.read_bytes().count(b"\n") >= answers
        ):
            time.sleep(0.01)
        process.kill()
        assert process.wait(60) == -signal.SIGKILL
    assert bench.server_is_gone()


@needs_lm_eval
@pytest.mark.parametrize("answers", [9, QUESTIONS + 5])
def test_a_dynamic_arm_that_was_cut_off_can_be_finished(bench: Bench, answers: int) -> None:
    bench.config["arms"]["eplb-static"] = {
        "role": "eplb",
        "dynamic": True,
        "additional_config": {"expert_maps": {"num_redundant_experts": 2, "dynamic": True}},
    }
    bench.orders |= {"delay": 0.1, "moves": True}
    stop_after(bench, "eplb-static", answers)
    done = bench.run("--margin", 15)
    assert done.returncode == 0, done.stdout + done.stderr
    assert bench.summary("eplb-static")["placement"]["rearrangements"] > 0
    # Asked once in each arm, though after all answers nothing moves any more; but for what was in flight at the kill.
    asked = Counter({prompt: count for prompt, count in bench.answered().items() if "forced" not in prompt})
    assert sum(count > 2 for count in asked.values()) <= bench.config["concurrency"]
    assert max(asked.values()) <= 3


@needs_lm_eval
def test_an_arm_may_follow_the_baseline_in_a_run_of_its_own(bench: Bench) -> None:
    assert bench.run("--arm", "baseline").returncode == 0
    done = bench.run("--arm", "eplb-static", "--margin", 15)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "eplb-static: no worse" in done.stdout
    assert bench.questions() == 2 * QUESTIONS
    # Other questions than the baseline's are refused before a server is started.
    done = bench.run("--arm", "eplb-static", "--questions", 12, "--output", bench.output)
    assert done.returncode == 2
    assert f"answered {QUESTIONS} questions; expected 12" in done.stderr


@needs_lm_eval
def test_an_arm_without_a_baseline_is_undecided(bench: Bench, fakes: dict[str, Fake]) -> None:
    done = bench.run("--arm", "eplb-static", "--base-url", f"eplb-static={fakes['eplb-static'].url}")
    assert done.returncode == 3
    assert "eplb-static: not judged" in done.stdout


@needs_lm_eval
@pytest.mark.parametrize("change", ["data", "weights"])
def test_what_was_answered_to_something_else_is_not_taken(bench: Bench, change: str) -> None:
    bench.orders["delay"] = 0.1
    stop_after(bench, "eplb-static", 4)
    name, content = {
        "data": ("test.jsonl", json.dumps({"question": "Another?", "answer": "#### 1"}) + "\n"),
        "weights": ("weights.bin", "others"),
    }[change]
    with (bench.folder / "model" / name).open("a", encoding="utf-8") as stream:
        stream.write(content)
    done = bench.run("--margin", 15)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "from the run that was cut off" not in done.stderr


@needs_lm_eval
@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["{"], "line 1"),
        (["[]"], "expected a JSON object with question and answer"),
        ([], "0 different questions; expected at least 1"),
        ([{"question": "a", "answer": "1"}], "expected '#### NUMBER' in it"),
        ([{"question": "a", "answer": "#### 1"}] * 2, "line 2: the same question as in line 1"),
    ],
)
def test_data_is_checked_before_a_server_is_started(bench: Bench, lines: list[Any], said: str) -> None:
    text = "".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in lines)
    (bench.folder / "model" / "test.jsonl").write_text(text, encoding="utf-8")
    done = bench.run()
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path(bench.orders["pid"]).exists()


@needs_lm_eval
def test_more_examples_than_there_are_is_refused(bench: Bench) -> None:
    bench.config["task"]["num_fewshot"] = 9
    done = bench.run()
    assert done.returncode == 2
    assert "8 different questions; expected at least 9" in done.stderr


@needs_lm_eval
def test_a_placement_by_name_is_served_without_a_load(bench: Bench) -> None:
    bench.config["arms"]["eplb-static"]["plan"] = {
        "layout": "ring",
        "num_experts": EXPERTS,
        "num_layers": LAYERS,
        "num_redundant_experts": 2,
        "ep_size": RANKS,
    }
    done = bench.run("--margin", 15)
    assert done.returncode == 0, done.stdout + done.stderr
    ring = generate_placement(
        "ring", num_experts=EXPERTS, ep_size=RANKS, num_layers=LAYERS, num_redundant_experts=2
    )
    assert bench.summary("eplb-static")["placement"]["digest"] == ring.digest


@needs_lm_eval
def test_a_server_that_dies_at_the_end_says_why(bench: Bench) -> None:
    bench.orders["forgets"] = True
    done = bench.run("--arm", "baseline", "--margin", 15)
    # A baseline need not be readable, but one that was must stay so.
    assert done.returncode == 0
    assert bench.summary("baseline")["placement"]["faults"] == ["the placement could not be read at the end"]


@needs_lm_eval
def test_a_server_that_dies_at_the_start_is_shown(bench: Bench) -> None:
    bench.orders["dies"] = "not enough memory for 2 ranks"
    done = bench.run()
    assert done.returncode == 1
    assert "exit code 3 before it answered" in done.stderr
    assert "not enough memory for 2 ranks" in done.stderr
    assert "Traceback" not in done.stderr
    assert bench.summary("baseline")["status"] == "failed"
    assert bench.answered() == Counter()


@needs_lm_eval
def test_an_arm_that_is_planned_needs_a_load(bench: Bench) -> None:
    done = bench.run("--arm", "eplb-static")
    assert done.returncode == 2
    assert "load.npz, which is absent" in done.stderr


@pytest.fixture
def fakes() -> Iterator[dict[str, Fake]]:
    with Fake() as baseline, Fake() as arm:
        baseline.report = reports(generate_placement("linear", num_experts=8, ep_size=RANKS, num_layers=2))
        arm.report = reports(
            generate_placement("ring", num_experts=8, ep_size=RANKS, num_layers=2, num_redundant_experts=2)
        )
        yield {"baseline": baseline, "eplb-static": arm}


def urls(fakes: dict[str, Fake]) -> list[str]:
    return [word for name, fake in fakes.items() for word in ("--base-url", f"{name}={fake.url}")]


@needs_lm_eval
def test_in_16_bits_the_baseline_is_asked_twice(bench: Bench, fakes: dict[str, Fake]) -> None:
    bench.config["dtype"] = "bfloat16"
    done = bench.run("--margin", 15, *urls(fakes))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "repeat: no worse" in done.stdout
    assert bench.summary("repeat")["role"] == "repeat"
    asked = [
        body["prompt"]
        for path, body in fakes["baseline"].bodies
        if path == "/v1/completions" and "echo" not in body
    ]
    # In another order the second time, and the same questions.
    assert sorted(asked[:QUESTIONS]) == sorted(asked[QUESTIONS:]) != asked[QUESTIONS:]
    baseline, again = (read_record(bench.results / name) for name in ("baseline", "repeat"))
    assert [one.text for one in baseline.questions] == [one.text for one in again.questions]
    assert [one.logprobs for one in baseline.logprobs or ()] == [one.logprobs for one in again.logprobs or ()]


@needs_lm_eval
def test_a_dry_run_starts_nothing(bench: Bench) -> None:
    done = bench.run("--dry-run")
    assert done.returncode == 0, done.stderr
    assert f"small: {bench.folder / 'model'} in float32, {QUESTIONS} questions of problems" in done.stdout
    assert "eplb-static (eplb, planned from baseline): vllm serve" in done.stdout
    assert not bench.output.exists()
    assert not Path(bench.orders["pid"]).exists()


@needs_lm_eval
def test_servers_that_run_already_are_asked(bench: Bench, fakes: dict[str, Fake]) -> None:
    done = bench.run("--margin", 15, *urls(fakes))
    assert done.returncode == 0, done.stdout + done.stderr
    assert not Path(bench.orders["pid"]).exists()
    for name, fake in fakes.items():
        assert (
            len([path for path, body in fake.bodies if path == "/v1/completions" and "echo" not in body])
            == QUESTIONS
        )
        summary = bench.summary(name)
        assert summary["server"] == {"arguments": [], "environment": {}, "started_by_harness": False}
        assert summary["versions"]["torch"] is None
        assert fake.url not in json.dumps(summary)


@needs_lm_eval
def test_a_running_server_without_the_endpoint_is_told_how_to_start(
    bench: Bench, fakes: dict[str, Fake]
) -> None:
    fakes["eplb-static"].report = None
    done = bench.run(*urls(fakes))
    assert done.returncode == 1
    assert "VLLM_SERVER_DEV_MODE=1" in done.stderr
    assert [path for path, _ in fakes["eplb-static"].bodies] == ["/collective_rpc"]


@needs_lm_eval
def test_replicas_that_differ_make_it_worse(bench: Bench, fakes: dict[str, Fake]) -> None:
    report = fakes["eplb-static"].report
    assert report is not None
    report[0]["slot_checksums"][1][0] = "other"
    done = bench.run("--margin", 15, *urls(fakes))
    assert done.returncode == 1
    assert "eplb-static: worse" in done.stdout
    assert bench.summary("eplb-static")["placement"]["replica_checksums"] == "differ"


@needs_lm_eval
@needs_gsm8k
@pytest.mark.parametrize(
    ("task", "shots", "chat", "path"),
    [
        ("gsm8k", 5, False, "/v1/completions"),
        ("gsm8k", 0, True, "/v1/chat/completions"),
        ("gsm8k_cot_llama", 8, False, "/v1/completions"),
        ("gsm8k_cot_llama", 8, True, "/v1/chat/completions"),
    ],
)
def test_stock_tasks_are_asked_from_local_files(
    bench: Bench, fakes: dict[str, Fake], task: str, shots: int, chat: bool, path: str
) -> None:
    bench.config["task"] |= {"name": task, "num_fewshot": shots, "chat_template": chat}
    # What answers by rule has none of twelve right.
    words = ["--margin", 40, "--questions", 12, "--data", GSM8K, "--waive", "baseline sound"]
    done = bench.run(*words, *urls(fakes))
    assert done.returncode == 0, done.stdout + done.stderr
    record = read_record(bench.results / "eplb-static")
    assert len(record.questions) == 12
    assert record.summary.task.num_fewshot == shots
    bodies = [body for where, body in fakes["baseline"].bodies if where == path and "echo" not in body]
    assert len(bodies) == 12
    first = bodies[0]
    assert first["temperature"] == 0
    assert first["max_tokens"] == 16
    prompt = json.dumps(first["messages"], ensure_ascii=False) if chat else first["prompt"]
    assert any("Janet" in json.dumps(body, ensure_ascii=False) for body in bodies)
    assert prompt.count("Question:" if task == "gsm8k" else "Problem:") == shots + 1
    if chat:
        assert len(first["messages"]) == 2 * shots + 1
    for question in record.questions:
        # lm-eval's scoring beside a plain reading of what was said.
        said = question.text.rsplit(" ", maxsplit=1)[-1]
        right = question.target.rsplit(" ", maxsplit=1)[-1].replace(",", "")
        assert question.correct == (said == right)


def test_bad_input_is_one_line_and_exit_code_2(bench: Bench) -> None:
    for words in (
        ["--model", "absent"],
        ["--arm", "absent"],
        ["--base-url", "absent=http://127.0.0.1:1"],
        ["--base-url", "baseline"],
        ["--data", bench.folder / "absent"],
        ["--checkpoint", bench.folder / "absent"],
        ["--margin", "-1"],
    ):
        done = bench.run(*words)
        assert done.returncode == 2, words
        assert done.stderr.startswith("error: "), words
        assert len(done.stderr.splitlines()) == 1, words
    assert not bench.output.exists()


def test_two_runs_at_once_are_refused(bench: Bench) -> None:
    import fcntl

    bench.results.mkdir(parents=True)
    folder = os.open(bench.results, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    done = bench.run()
    os.close(folder)
    if importlib.util.find_spec("lm_eval") is None:
        assert done.returncode == 2
        assert "lm-eval cannot be imported" in done.stderr
    else:
        assert done.returncode == 2
        assert "is in use" in done.stderr


def test_a_checkpoint_is_told_from_another(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}", encoding="utf-8")
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    first, second = (model_identity(str(tmp_path / name)) for name in ("a", "b"))
    assert first == second
    (tmp_path / "b" / "model.safetensors").write_bytes(b"weightS")
    assert model_identity(str(tmp_path / "b")) != first
    assert model_identity("some/model") == {"name": "some/model"}
