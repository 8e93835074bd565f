# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the routing ops: what is wrong gets no time, and silence is not a pass."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from expert_maps.errors import FormatError
from harness.bench.npu import environment, records, report
from harness.bench.npu.cases import (
    TOKENS,
    VARIANTS,
    Case,
    Implementation,
    Selection,
    cases_of,
    fits,
    variants_of,
)
from harness.bench.npu.compare import OtherDeviceError, compare, failures
from harness.bench.npu.devices import Device, NoDeviceError, detect, first_line
from harness.bench.npu.families import FAMILIES
from harness.bench.npu.models import MODELS
from harness.bench.npu.plugin import PLANNED
from harness.bench.npu.points import Bench, Pace, Point, points_of
from harness.bench.npu.run import MissingBaselineError, load_baseline

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
CPU = Device("cpu", "Test 1")
# Every model's routing at sizes that a test can afford.
SMALL = [
    dataclasses.replace(model, hidden_size=32, intermediate_size=16, ep_size=ranks, redundant=ranks)
    for model in MODELS.values()
    for ranks in [model.num_experts // 4]
]


def outcome(name: str, median: float | None = 10.0, **changes: object) -> dict[str, Any]:
    """Return what the benchmark would write for `op/implementation/model/phase/tokens/variant`."""
    op, implementation, model, phase, tokens, variant = name.split("/")
    line: dict[str, Any] = {
        "benchmark": name,
        "op": op,
        "implementation": implementation,
        "about": "",
        "is_peer": implementation == "vllm",
        "model": model,
        "phase": phase,
        "tokens": int(tokens),
        "variant": variant,
        "bytes_moved": 4000,
        "flops": 0,
        "status": "ok" if median is not None else "wrong",
    }
    if median is not None:
        line |= {"median_us": median, "iqr_us": 1.0, "min_us": median, "max_us": median, "rounds": 5}
    return line | changes


def kept(*outcomes: dict[str, Any], device: str = "cpu-test-1") -> list[dict[str, Any]]:
    """Return the records of outcomes."""
    return records.complete(outcomes, {"device": device, "device_kind": "cpu", "device_name": "Test 1"})


A, B = "gating/torch/deepseek-v3/decode/16/warm", "map/torch/deepseek-v3/decode/16/warm"


# The comparison


@pytest.mark.parametrize(
    ("current", "verdict", "fails"),
    [
        ([outcome(A, 10.0), outcome(B)], "same", False),
        ([outcome(A, 14.9), outcome(B)], "same", False),
        ([outcome(A, 15.1), outcome(B)], "regression", True),
        ([outcome(A, 1.0), outcome(B)], "faster", False),
        ([outcome(A, None, detail="ids[0] is 3"), outcome(B)], "failed", True),
        ([outcome(B)], "vanished", True),
    ],
)
def test_a_benchmark_against_its_baseline(current: list[dict[str, Any]], verdict: str, fails: bool) -> None:
    rows = {row.name: row for row in compare(kept(*current), kept(outcome(A), outcome(B)), threshold=1.5)}
    assert rows[A].verdict == verdict
    assert rows[A].is_bad == fails
    assert rows[B].verdict == "same"
    assert failures(list(rows.values())) == ({verdict: 1} if fails else {})
    if verdict == "failed":
        assert "ids[0] is 3" in rows[A].detail


def test_a_benchmark_that_the_baseline_lacks_fails() -> None:
    rows = compare(kept(outcome(A), outcome(B)), kept(outcome(A)))
    assert failures(rows) == {"no baseline": 1}
    # One that failed when the baseline was made is none either.
    assert failures(compare(kept(outcome(A)), kept(outcome(A, None)))) == {"no baseline": 1}


def test_an_empty_run_is_not_a_pass() -> None:
    assert failures(compare([], kept(outcome(A), outcome(B)))) == {"vanished": 2}


def test_only_what_was_asked_for_can_vanish() -> None:
    selection = Selection(ops=("map",))
    rows = compare(
        kept(outcome(B)),
        kept(outcome(A), outcome(B)),
        expected=lambda one: selection.takes(op=one["op"], model=one["model"], tokens=one["tokens"]),
    )
    assert [row.name for row in rows] == [B]


def test_baselines_of_another_device_or_thread_count_are_refused() -> None:
    with pytest.raises(OtherDeviceError, match=r"the baseline's device is npu-910b .*; expected cpu-test-1"):
        compare(kept(outcome(A)), kept(outcome(A), device="npu-910b"))
    other = [{**record, "omp_num_threads": "7"} for record in kept(outcome(A))]
    with pytest.raises(OtherDeviceError, match="omp_num_threads is 7"):
        compare(kept(outcome(A)), other)


def test_a_baseline_that_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingBaselineError, match="there is no baseline"):
        load_baseline(tmp_path, CPU, 1.5)
    good = json.dumps(kept(outcome(A))[0])
    for text, message in (
        ("", "holds no record"),
        ("{", "line 1 is not JSON"),
        ("[1]", "line 1 is list; expected a JSON object"),
        ('{"status": "ok"}', "record 1 has no benchmark"),
        (f"{good}\n{good}", "stands twice"),
        (good.replace('"median_us": 10.0', '"median_us": 0'), "median_us is 0; expected a time above 0"),
    ):
        (tmp_path / records.FILE).write_text(text, encoding="utf-8")
        with pytest.raises(FormatError, match=message):
            load_baseline(tmp_path, CPU, 1.5)


# Records


def test_a_record_has_rates_and_ratios() -> None:
    copy = outcome("copy/torch/-/start/0/warm", 2.0, bytes_moved=8000)
    mine, peer = kept(copy, outcome(A, 10.0), outcome(A.replace("torch", "vllm"), 25.0))[1:]
    assert mine["gb_per_s"] == 0.4
    assert (mine["copy_gb_per_s"], mine["ratio_to_copy"]) == (4.0, 0.1)
    assert (mine["peer"], mine["ratio_to_peer"]) == ("vllm", 2.5)
    assert peer["ratio_to_peer"] == 1.0
    assert {"python", "machine", "omp_num_threads", "allocator", "device", "torch"} <= mine.keys()


def test_what_is_wrong_carries_no_time_and_is_no_peer() -> None:
    wrong = outcome(A.replace("torch", "vllm"), None, detail="ids differ")
    mine, other = kept(outcome(A), wrong)
    assert not {"median_us", "gb_per_s", "ratio_to_peer"} & other.keys()
    assert "ratio_to_peer" not in mine
    assert any("ids differ" in line for line in report.failed_lines([mine, other]))


def test_of_two_times_the_faster_stays_and_a_failure_too() -> None:
    merged = records.merge([outcome(A, 9.0), outcome(B, 9.0)], [outcome(A, 7.0), outcome(B, None)])
    assert (merged[0]["median_us"], merged[1]["status"]) == (7.0, "wrong")
    assert records.merge([outcome(A, 7.0)], [outcome(A, 9.0)])[0]["median_us"] == 7.0


def test_the_page_names_every_op_and_model() -> None:
    text = report.page(kept(outcome(A), outcome(B)), ["note"], "npu_ops.svg")
    assert all(word in text for word in ("gating", "map", "deepseek-v3", "npu_ops.svg", "note", "Kimi-K2"))


# The one generator: what is timed is checked, and the check can fail


@pytest.mark.parametrize("op", list(FAMILIES))
@pytest.mark.parametrize("tokens", [1, 16, 260])
@pytest.mark.parametrize("model", SMALL, ids=lambda model: model.name)
def test_every_implementation_is_its_reference_at_small_sizes(op: str, tokens: int, model: Any) -> None:  # noqa: ANN401
    family, bench = FAMILIES[op], Bench(CPU)
    case = Case(op, model, "decode" if tokens < 100 else "prefill", tokens)
    ours = [one for one in family.implementations("cpu") if not one.is_peer]
    assert ours
    for implementation in family.implementations("cpu"):
        bench.ready(Point(family, case, implementation, "warm"))()


@pytest.mark.parametrize("op", list(FAMILIES))
def test_a_wrong_implementation_gets_no_time(op: str) -> None:
    family, model = FAMILIES[op], SMALL[0]
    right = family.implementations("cpu")[0]

    def wrong(change: Callable[[torch.Tensor], torch.Tensor]) -> Implementation:
        def prepare(case: Case, tensors: Any) -> Any:  # noqa: ANN401 - as in Implementation
            run = right.prepare(case, tensors)

            def changed() -> tuple[torch.Tensor, ...]:
                first, *others = run()
                return (change(first), *others)

            return changed

        return Implementation("wrong", "", prepare)

    def off_by_one(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[-1] += 1
        return tensor

    case = Case(op, model, "decode", 9)
    Bench(CPU).ready(Point(family, case, wrong(lambda tensor: tensor), "warm"))
    for change in (off_by_one, lambda tensor: tensor[:-1]):
        with pytest.raises(AssertionError, match=f"{op}/deepseek-v3/decode/9, wrong: "):
            Bench(CPU).ready(Point(family, case, wrong(change), "warm"))


def test_an_implementation_that_writes_to_its_input_or_raises_gets_no_time() -> None:
    family, case = FAMILIES["gating"], Case("gating", SMALL[1], "decode", 4)
    right = family.implementations("cpu")[0]

    def writing(case: Case, tensors: Any) -> Any:  # noqa: ANN401 - as in Implementation
        run = right.prepare(case, tensors)

        def changed() -> tuple[torch.Tensor, ...]:
            found = run()
            tensors["logits"].mul_(2)
            return found

        return changed

    with pytest.raises(AssertionError, match="it wrote to its input logits"):
        Bench(CPU).ready(Point(family, case, Implementation("writing", "", writing), "warm"))

    def raising(case: Case, tensors: Any) -> Any:  # noqa: ANN401, ARG001 - as above
        raise RuntimeError("no kernel image")  # noqa: EM101, TRY003 - as torch would

    bench = Bench(CPU)
    point = Point(family, case, Implementation("raising", "", raising), "warm")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no kernel image"):
            bench.ready(point)


def test_inputs_are_those_of_the_case_alone() -> None:
    for family in FAMILIES.values():
        case = Case(family.op, SMALL[3], "prefill", 40)
        one, two = family.make(case), family.make(case)
        assert all(torch.equal(one[name], two[name]) for name in one)
        other = family.make(Case(family.op, SMALL[3], "prefill", 41))
        assert any(one[name].shape != other[name].shape for name in one)
        assert family.bytes_moved(case) > 0


# The tables


def test_the_tables_are_those_of_the_models() -> None:
    assert min(count for counts in TOKENS.values() for count in counts) == 1
    assert max(TOKENS["prefill"]) == 8192
    shapes = {name: (model.num_experts, model.top_k, model.hidden_size) for name, model in MODELS.items()}
    assert shapes == {
        "deepseek-v3": (256, 8, 7168),
        "qwen3-235b": (128, 8, 4096),
        "kimi-k2": (384, 8, 7168),
        "qwen3-next": (512, 10, 2048),
    }
    for model in MODELS.values():
        assert model.routing().num_experts == model.num_experts
        assert model.num_experts % model.ep_size == 0


def test_names_are_unique_and_the_short_form_is_a_part() -> None:
    whole = [point.name for point in points_of(FAMILIES.values(), Selection(), "cpu")]
    short = [point.name for point in points_of(FAMILIES.values(), Selection(short=True), "cpu")]
    assert len(set(whole)) == len(whole)
    assert set(short) < set(whole)
    # All ops, and each way of timing.
    assert {name.split("/")[0] for name in short} == set(FAMILIES)
    assert {name.split("/")[-1] for name in short} == set(VARIANTS)


def test_an_accelerator_is_asked_for_everything() -> None:
    for family in FAMILIES.values():
        for case in cases_of(family, Selection()):
            assert fits(family, case, "npu")
            assert variants_of(family, case, "npu") == VARIANTS


# Devices


class SlowDevice:
    """A device that works on after a call has returned."""

    def __init__(self) -> None:
        self.now = 0.0
        self.done_at = 0.0

    def launch(self) -> None:
        self.now += 1e-6
        self.done_at = max(self.done_at, self.now) + 1e-3

    def synchronise(self) -> None:
        self.now = max(self.now, self.done_at)


def test_the_timer_waits_for_the_device() -> None:
    slow = SlowDevice()
    device = Device("npu", "Fake", slow.synchronise, lambda: slow.now)
    start = device.timer()
    slow.launch()
    assert slow.now - start < 1e-5, "the call itself returns at once"
    assert device.timer() - start >= 1e-3


def test_an_npu_comes_before_a_gpu_before_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Backend:
        def __init__(self, name: str, there: bool) -> None:
            self.name, self.there = name, there

        def is_available(self) -> bool:
            return self.there

        def get_device_name(self, index: int) -> str:
            assert index == 0
            return self.name

        def synchronize(self) -> None:
            pass

    monkeypatch.setattr(torch, "npu", Backend("Ascend910B3", there=True), raising=False)
    monkeypatch.setattr(torch, "cuda", Backend("NVIDIA H100 80GB HBM3", there=True))
    assert (detect().kind, detect().slug) == ("npu", "npu-ascend910b3")
    assert first_line(detect()).startswith("NPU: timing torch_npu's ops beside the plain-torch twins")
    assert detect("cuda").slug == "cuda-nvidia-h100-80gb-hbm3"
    monkeypatch.setattr(torch, "npu", Backend("Ascend910B3", there=False), raising=False)
    assert detect().kind == "cuda"
    assert first_line(detect()).startswith("NO NPU HERE")
    monkeypatch.setattr(torch, "cuda", Backend("", there=False))
    assert detect().kind == "cpu"
    assert first_line(detect()).startswith(
        "NO NPU HERE: nothing of torch_npu is timed; timing this project's"
    )
    with pytest.raises(NoDeviceError, match="device is 'npu', but torch finds none"):
        detect("npu")
    with pytest.raises(NoDeviceError, match="device is 'tpu'; expected auto, npu, cuda, cpu"):
        detect("tpu")


def test_the_pace_gives_short_calls_more_rounds() -> None:
    pace = Pace()
    assert (
        pace.rounds(1e-6) == pace.most_rounds > pace.rounds(0.02) >= pace.least_rounds > pace.rounds(2.0) == 3
    )
    assert pace.calls(1e-6) == pace.most_calls > pace.calls(1.0) == 2


def test_threads_and_allocator_are_pinned_and_recorded() -> None:
    env = environment.pinned({"PATH": "x", "OMP_NUM_THREADS": "8", "PYTORCH_NPU_ALLOC_CONF": "y"})
    assert env["OMP_NUM_THREADS"] == "1"
    assert "PYTORCH_NPU_ALLOC_CONF" not in env
    assert "MALLOC_TRIM_THRESHOLD_" in env
    assert environment.is_pinned(env)
    assert not environment.is_pinned({"PATH": "x"})


# The command


def test_without_pytest_benchmark_it_says_what_to_install() -> None:
    code = "import harness.bench.npu.needs as n; n.NEEDED = {'no_such_module': 'no-such'}; n.require()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "lacks no-such; install: pip install no-such" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ops", "gatign"], "--ops has 'gatign'; expected some of gating, map"),
        (["--tokens", "7"], "--tokens has '7'; expected some of 1, 16"),
        (["--device", "npu"], "device is 'npu', but torch finds none"),
        (["--baseline", "pyproject.toml"], "is not JSON"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str) -> None:
    code = "from harness.bench.npu.cli import app; app()"
    env = {**os.environ, **environment.PINNED, "TERM": "dumb", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env=env,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_missing_baseline_fails_before_anything_is_timed(tmp_path: Path) -> None:
    code = "from harness.bench.npu.cli import app; app()"
    command = [sys.executable, "-c", code, "--compare", "--baseline", str(tmp_path / "none.jsonl")]
    env = {**os.environ, **environment.PINNED}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert "there is no baseline" in done.stderr
    assert done.stdout.startswith("NO NPU HERE") or done.stdout.startswith("NPU:")


def test_kept_records_are_whole() -> None:
    folders = [path.parent for path in (ROOT / "harness/bench/records").glob(f"*/{records.FILE}")]
    assert folders
    for folder in folders:
        found = records.read_records(folder / records.FILE)
        assert {record["device"] for record in found} == {folder.name}
        assert {record["status"] for record in found} == {"ok"}
        assert PLANNED not in {record["status"] for record in found}
        assert {record["omp_num_threads"] for record in found} == {"1"}
        assert (folder / "npu_ops.md").exists()
        assert (folder / "npu_ops.svg").exists()
        whole = {point.name for point in points_of(FAMILIES.values(), Selection(), found[0]["device_kind"])}
        assert whole <= {record["benchmark"] for record in found}
