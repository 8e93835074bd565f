# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the ops: what is wrong gets no time, and all take turns."""

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

from harness.bench.npu import devices, results
from harness.bench.npu.bench import YARDSTICK, Bench, Pace, Point, Turns, points_of
from harness.bench.npu.devices import Device, EventClock, NoDeviceError, detect, first_line
from harness.bench.npu.families import FAMILIES
from harness.bench.npu.inputs import (
    TOKENS,
    VARIANTS,
    Case,
    Implementation,
    cases_of,
    fits,
    is_short,
    rank_ids,
    variants_of,
)
from harness.bench.npu.models import MODELS
from harness.record.schema import DeviceRecord

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
CPU = Device("cpu", "Test 1")
# Every model's routing at sizes that a test can afford, with four and with eight experts a rank.
SMALL = [
    dataclasses.replace(model, hidden_size=32, intermediate_size=16, ep_size=ranks, redundant=ranks)
    for model, share in zip(MODELS.values(), (4, 8, 4, 8), strict=True)
    for ranks in [model.num_experts // share]
]
# The one generator: what is timed is checked, and the check can fail


@pytest.mark.parametrize("op", list(FAMILIES))
@pytest.mark.parametrize("tokens", [1, 16, 260])
@pytest.mark.parametrize("model", SMALL, ids=lambda model: model.name)
def test_every_implementation_is_its_reference_at_small_sizes(op: str, tokens: int, model: Any) -> None:  # noqa: ANN401 - as in Implementation, or of JSON
    family = FAMILIES[op]
    ready = Bench(CPU).ready(family, Case(op, model, "decode" if tokens < 100 else "prefill", tokens))
    assert ready.faults == {}
    assert sum(one.serves and not one.is_peer for one in ready.runs) == 1


def test_a_rank_is_sent_uneven_rows_and_some_experts_have_none() -> None:
    for model in MODELS.values():
        for tokens in (1, 16, 128):
            ids = rank_ids(Case("moe", model, "decode", tokens))
            assert list(ids.shape) == [tokens * model.top_k, 1]
            counts = torch.bincount(ids.view(-1), minlength=model.local_experts)
            assert len(counts) == model.local_experts
            assert counts.max() > 1.2 * counts.float().mean()
            assert tokens > 1 or (counts == 0).any()
    sizes = [
        len(torch.bincount(rank_ids(Case("moe", model, "decode", 1)).view(-1)).nonzero()) for model in SMALL
    ]
    assert min(sizes) < 4


def changed(right: Implementation, change: Callable[[torch.Tensor], torch.Tensor]) -> Implementation:
    def prepare(case: Case, tensors: Any) -> Any:  # noqa: ANN401 - as in Implementation, or of JSON
        run = right.prepare(case, tensors)

        def other() -> tuple[torch.Tensor, ...]:
            first, *others = run()
            return (change(first), *others)

        return other

    return dataclasses.replace(right, name="other", prepare=prepare)


def off_by_one(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[-1] += 1
    return tensor


def faults_of(family: Any, case: Case, *implementations: Implementation) -> list[str | None]:  # noqa: ANN401 - as in Implementation, or of JSON
    """Return what is wrong with each, checked as if they were all that a family has."""
    kept = family.implementations
    family.implementations = lambda _: list(implementations)
    try:
        ready = Bench(CPU).ready(family, case)
    finally:
        family.implementations = kept
    return [ready.faults.get(one) for one in implementations]


@pytest.mark.parametrize("op", list(FAMILIES))
def test_a_wrong_implementation_gets_no_time(op: str) -> None:
    family = FAMILIES[op]
    right = family.implementations("cpu")[0]
    wrong = [changed(right, change) for change in (off_by_one, lambda tensor: tensor[:-1])]
    found = faults_of(family, Case(op, SMALL[0], "decode", 9), right, *wrong)
    assert found[0] is None
    assert all(found[1:])


@pytest.mark.parametrize("how", ["torch", "beside torch"])
def test_an_implementation_that_writes_to_its_input_gets_no_time(how: str) -> None:
    family, case = FAMILIES["gating"], Case("gating", SMALL[1], "decode", 4)
    right = family.implementations("cpu")[0]

    def writing(case: Case, tensors: Any) -> Any:  # noqa: ANN401 - as in Implementation, or of JSON
        run = right.prepare(case, tensors)

        def other() -> Any:  # noqa: ANN401 - as what it stands for
            found = run()
            if how == "torch":
                tensors["logits"].mul_(2)
            else:  # as a compiled kernel does, of which torch's count of versions knows nothing
                tensors["logits"].numpy()[0, 0] += 1
            return found

        return other

    def raising(case: Case, tensors: Any) -> Any:  # noqa: ANN401, ARG001 - as in Implementation
        raise RuntimeError("no kernel image")  # noqa: EM101, TRY003 - as torch would

    bad = dataclasses.replace(right, prepare=writing)
    found = faults_of(family, case, bad, right, dataclasses.replace(right, prepare=raising))
    # The one after it gets the inputs as they were.
    assert found == ["it wrote to its input logits", None, "RuntimeError: no kernel image"]


def test_inputs_are_those_of_the_case_alone() -> None:
    for family in FAMILIES.values():
        case = Case(family.op, SMALL[3], "prefill", 40)
        one, two = family.make(case), family.make(case)
        assert all(torch.equal(one[name], two[name]) for name in one)
        other = family.make(Case(family.op, SMALL[3], "prefill", 41))
        assert any(one[name].shape != other[name].shape for name in one)
        assert family.bytes_moved(case) > 0


# Turns


class Fixture:
    """What `Bench.time` needs of pytest-benchmark's."""

    def __init__(self) -> None:
        self.data: list[float] = []

    def pedantic(
        self, target: Callable[[], None], setup: Callable[[], None], rounds: int, warmup_rounds: int
    ) -> None:
        for _ in range(rounds + warmup_rounds):
            setup()
            target()
        self.data = [1.0] * rounds


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_take_turns_round_by_round(variant: Any) -> None:  # noqa: ANN401 - as in Implementation, or of JSON
    called: list[str] = []
    point = Point(FAMILIES["map"], Case("map", SMALL[0], "decode", 4), variant)
    device = Device("cpu", "Test 1", cache_bytes=1024)

    def run_named(name: str) -> Callable[[], tuple[torch.Tensor, ...]]:
        def run() -> tuple[torch.Tensor, ...]:
            called.append(name)
            return ()

        return run

    runs = {
        Implementation(name, "", lambda _, __: tuple, serves=name == "ours"): run_named(name)
        for name in ("ours", "one", "two")
    }
    turns = Turns(device, point, runs, Pace(most_rounds=8))
    rounds, fixture = turns.estimate(), Fixture()
    called.clear()
    fixture.pedantic(turns.served, setup=turns.others, rounds=rounds, warmup_rounds=1)
    found = turns.report()
    assert rounds == 8
    assert {name: len(values) for name, values in found["turns"].items()} == {"one": 8, "two": 8}  # type: ignore[attr-defined]
    assert len(found[YARDSTICK]) == 8  # type: ignore[arg-type]
    assert found["serves"] == "ours"
    order = [name for number, name in enumerate(called) if number == 0 or called[number - 1] != name]
    # Each round ends with what serves; the others do not always follow in the same order.
    assert order.count("ours") == 9
    assert len({tuple(part) for part in zip(order[::3], order[1::3], strict=False)}) > 1
    calls = called.count("ours") / 9
    assert calls == {"warm": 2, "cold": 1}.get(variant, found["calls"])


def test_an_input_that_is_written_while_it_is_timed_is_found() -> None:
    family, case = FAMILIES["map"], Case("map", SMALL[0], "decode", 4)
    bench = Bench(CPU, Pace(most_rounds=6))
    ready = bench.ready(family, case)
    bench.time(Point(family, case, "warm"), Fixture())
    ready.tensors["ids"].numpy()[0, 0] ^= 1
    with pytest.raises(AssertionError, match="it wrote to its input ids"):
        bench.time(Point(family, case, "warm"), Fixture())


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


def test_names_are_unique_and_the_short_form_has_all_ops() -> None:
    points = points_of(FAMILIES.values(), "cpu")
    assert len({point.name for point in points}) == len(points)
    assert {point.family.op for point in points if is_short(point.case)} == set(FAMILIES)


def test_an_accelerator_is_asked_for_everything() -> None:
    for family in FAMILIES.values():
        for case in cases_of(family):
            assert fits(family, case, "npu")
            assert variants_of(family, case, "npu") == VARIANTS


# Devices


class SlowBackend:
    """A device that works on after a call has returned, with events that note when it comes to them."""

    def __init__(self) -> None:
        self.now = self.done_at = 0.0

    def launch(self, seconds: float) -> None:
        self.now += 1e-6
        self.done_at = max(self.done_at, self.now) + seconds

    def synchronize(self) -> None:
        self.now = max(self.now, self.done_at)

    def Event(self, enable_timing: bool) -> Any:  # noqa: ANN401, N802 - torch's name
        assert enable_timing
        backend = self

        class Event:
            at = 0.0

            def record(self) -> None:
                self.at = max(backend.now, backend.done_at)

            def synchronize(self) -> None:
                backend.now = max(backend.now, self.at)

            def elapsed_time(self, other: Event) -> float:
                return 1e3 * (other.at - self.at)

        return Event()


def test_events_time_the_device_and_not_what_was_started_before() -> None:
    slow = SlowBackend()
    device = Device("npu", "Fake", EventClock(slow))
    slow.launch(1.0)
    # The launch of the first counts: the device is waited for before, and has nothing to do meanwhile.
    assert device.seconds(lambda: slow.launch(1e-3)) == pytest.approx(1e-3 + 1e-6, rel=1e-6)
    assert device.seconds(lambda: slow.launch(1e-3), calls=5) == pytest.approx(5e-3, rel=0.01)
    assert device.clock_name == "events on the device"
    device.clock()
    # A run that raised between two readings spoils no later one.
    assert device.seconds(lambda: slow.launch(2e-3)) == pytest.approx(2e-3, rel=0.01)
    assert CPU.clock_name == "the process' CPU time"


def test_an_npu_comes_before_a_gpu_before_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Backend:
        def __init__(self, name: str, there: bool) -> None:
            self.name, self.there = name, there

        def is_available(self) -> bool:
            return self.there

        def get_device_name(self, index: int) -> str:
            assert index == 0
            return self.name

    monkeypatch.setattr(torch, "npu", Backend("Ascend910B3", there=True), raising=False)
    monkeypatch.setattr(torch, "cuda", Backend("NVIDIA H100 80GB HBM3", there=True))
    assert (detect().kind, detect().slug) == ("npu", "npu-ascend910b3")
    assert isinstance(detect().clock, EventClock)
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
    assert pace.rounds(1e-6) == pace.most_rounds > pace.rounds(0.02) >= pace.least_rounds == pace.rounds(2.0)
    assert pace.calls(1e-6) == pace.most_calls > pace.calls(1.0) == 2


def test_threads_and_allocator_are_pinned_before_torch_is_there() -> None:
    code = "import os; from harness.bench.npu.pinning import pin; print(pin()); import torch; print(torch.get_num_threads()); print(pin())"
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    first, threads, again = done.stdout.splitlines()
    assert (first, threads) == (again, "1")
    assert first.startswith("one thread; ")
    late = f"import torch; {code}"
    done = subprocess.run([sys.executable, "-c", late], capture_output=True, text=True, check=False, env=env)
    assert done.stdout.startswith("torch was imported with OMP_NUM_THREADS")


# The command


def npu_bench(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    code = "from harness.bench.npu.cli import app; app()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    env = {**os.environ, "TERM": "dumb", "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=env, timeout=120)


def test_without_pytest_benchmark_it_says_what_to_install() -> None:
    code = "import harness.bench.npu.__main__ as n; n.NEEDED = {'no_such_module': 'no-such'}; n.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "lacks no-such; install: pip install no-such" in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_input_is_one_line_before_anything_is_timed(tmp_path: Path) -> None:
    for arguments, message in (
        (["--compare", "--device", "npu"], "device is 'npu', but torch finds none"),
        (["--baseline", "pyproject.toml"], "pyproject.toml"),
        (["--baseline", tmp_path / "none.jsonl"], "there is no baseline"),
    ):
        done = npu_bench(*arguments)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
    done = npu_bench(cwd=tmp_path)
    assert (done.returncode, done.stderr.count("expected to be run in the repository")) == (2, 1)


def test_the_benchmarks_are_pytest_benchmarks_own(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    file = tmp_path / "out.json"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "harness/bench",
        "--benchmark-only",
        f"--benchmark-json={file}",
    ]
    command += [
        "-q",
        "-p",
        "no:cacheprovider",
        "--npu-device=cpu",
        "--npu-short",
        "-k",
        "map/deepseek-v3/decode/16/warm",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stdout
    run = results.record([json.loads(file.read_text(encoding="utf-8"))])
    assert [found["benchmark"] for found in run.performance["rows"]] == ["map/deepseek-v3/decode/16/warm"]
    assert run.proof["clock"] == ["the process' CPU time"]
    assert run.provenance.device == DeviceRecord(kind="cpu", name=devices.detect("cpu").name)
