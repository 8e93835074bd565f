# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the ops: what is wrong gets no time, silence is not a pass, and a slowdown is caught."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from harness.bench.npu import cli, compare, devices, pages, results
from harness.bench.npu.bench import YARDSTICK, Bench, Pace, Point, Turns, points_of
from harness.bench.npu.cli import FILE
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
from harness.record import history
from harness.record.schema import DeviceRecord, Provenance, RunRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROOT = Path(__file__).parents[2]
CPU = Device("cpu", "Test 1")
# Every model's routing at sizes that a test can afford, with four and with eight experts a rank.
SMALL = [
    dataclasses.replace(model, hidden_size=32, intermediate_size=16, ep_size=ranks, redundant=ranks)
    for model, share in zip(MODELS.values(), (4, 8, 4, 8), strict=True)
    for ranks in [model.num_experts // share]
]
A, B = "gating/deepseek-v3/decode/16/warm", "map/deepseek-v3/decode/16/warm"
ABOUTS = {
    "gating": {"ours": {"about": "", "is_peer": False}, "vllm": {"about": "", "is_peer": True}},
    "map": {"ours": {"about": "", "is_peer": False}, "vllm": {"about": "", "is_peer": True}},
}


# The comparison


def row(name: str, **implementations: Any) -> dict[str, Any]:  # noqa: ANN401 - figures of a pass, or a fault
    op, model, phase, tokens, variant = name.split("/")
    found = {
        one: {"fault": value} if isinstance(value, str) else {"to_yardstick": value, "median_us": 1.0}
        for one, value in implementations.items()
    }
    described = {"op": op, "model": model, "phase": phase, "tokens": int(tokens), "variant": variant}
    return {"benchmark": name, **described, "yardstick_us": 1.0, "implementations": found}


def run_of(*rows: dict[str, Any], faults: Mapping[str, str] | None = None, **where: Any) -> RunRecord:  # noqa: ANN401
    provenance: dict[str, Any] = {
        "device": DeviceRecord(kind="cpu", name="Test 1"),
        "threads": "1",
        "versions": {"torch": "2.13.0"},
    }
    return RunRecord(
        kind="npu_ops",
        name="cpu-test-1",
        settings={"passes": 5},
        provenance=Provenance(**(provenance | where)),
        proof={"faults": dict(faults or {})},
        performance={"rows": list(rows), "abouts": ABOUTS},
    )


def five(value: float) -> list[float]:
    return [value * factor for factor in (0.9, 1.0, 1.0, 1.0, 3.0)]


@pytest.mark.parametrize(
    ("current", "verdict", "fails"),
    [
        (five(10.0), "same", False),
        (five(11.4), "same", False),
        (five(11.6), "slower", True),
        (five(8.0), "faster", False),
        ("ids[0] is 3", "failed", True),
    ],
)
def test_an_implementation_against_itself(current: Any, verdict: str, fails: bool) -> None:  # noqa: ANN401
    kept = run_of(row(A, ours=five(10.0)), row(B, ours=five(1.0)))
    rows = compare.compare(run_of(row(A, ours=current), row(B, ours=five(1.0))), kept, {A, B})
    assert [(found.name, found.verdict, found.is_bad) for found in rows] == [
        (f"{A}: ours", verdict, fails),
        (f"{B}: ours", "same", False),
    ]
    assert compare.failures(rows) == ({verdict: 1} if fails else {})
    assert verdict != "failed" or "ids[0] is 3" in rows[0].detail


def test_what_is_missing_on_either_side_fails() -> None:
    both, one = run_of(row(A, ours=five(1.0)), row(B, ours=five(1.0))), run_of(row(A, ours=five(1.0)))
    verdicts = {found.name: found.verdict for found in compare.compare(both, one, {A, B})}
    assert verdicts == {f"{A}: ours": "same", f"{B}: ours": "no baseline"}
    assert [found.verdict for found in compare.compare(one, both, {A})] == ["same", "vanished"]
    # What was not chosen is not missed.
    assert [found.verdict for found in compare.compare(one, both, {A, B})] == ["same"]
    gone = run_of(row(A, vllm=five(1.0)))
    assert [found.verdict for found in compare.compare(gone, one, {A})] == ["vanished", "no baseline"]
    faulty = run_of(faults={f"{A}: ours": "wrong"})
    assert [found.verdict for found in compare.compare(faulty, one, {A})] == ["failed"]


def test_peers_and_versions_are_no_regression_of_ours() -> None:
    kept = run_of(row(A, ours=five(1.0), vllm=five(1.0)))
    slow = row(A, ours=five(2.0), vllm=five(2.0))
    rows = compare.compare(run_of(slow), kept, {A})
    assert [found.verdict for found in rows] == ["slower", "peer slower"]
    assert compare.failures(rows) == {"slower": 1}
    rows = compare.compare(run_of(slow, versions={"torch": "2.14.0"}), kept, {A})
    assert [found.verdict for found in rows] == ["undecided", "peer slower"]
    assert "torch 2.13.0 → 2.14.0" in rows[0].detail


def test_calls_with_cold_caches_are_not_compared() -> None:
    cold = A.replace("warm", "cold")
    assert compare.compare(run_of(row(cold, ours=five(9.0))), run_of(row(cold, ours=five(1.0))), {cold}) == []


def test_what_cannot_be_compared_is_refused() -> None:
    good = run_of(row(A, ours=five(1.0)))
    other = DeviceRecord(kind="npu", name="Ascend910B3")
    for kept, message in (
        (run_of(row(A, ours=five(1.0)), device=other), "baseline's device is Ascend910B3; expected Test 1"),
        (run_of(row(A, ours=five(1.0)), threads="7"), "number of threads is 7; expected 1"),
        (good.model_copy(update={"settings": {"passes": 3}}), "has 3 passes; expected 5"),
        (history.read(next((ROOT / "harness/bench/records").glob(f"*/{FILE}")))[0], "has no yardsticks"),
    ):
        with pytest.raises(compare.NotComparableError, match=message):
            compare.compare(good, kept, {A})


# Its power


def scatter(draw: np.random.Generator, benchmarks: int, passes: int) -> np.ndarray[Any, Any]:
    """Return the logarithms of times in yardsticks of what does not change, [benchmarks, passes].

    As it was on two cores that seven people shared: passes of the same benchmark deviated by 0.054 in the middle, by
    0.115 in one of ten, with tails heavier than a normal distribution's; a pass as a whole by 0.02; and in 3 of 100 a
    process ran a third slower from beginning to end.
    """
    deviation = np.exp(np.log(0.054) + 0.59 * draw.standard_normal((benchmarks, 1)))
    each = draw.standard_t(5, (benchmarks, passes)) * np.sqrt(3 / 5) * deviation
    whole = 0.02 * draw.standard_normal((1, passes))
    return each + whole + 0.35 * (draw.random((benchmarks, passes)) < 0.03)


def slower_share(draw: np.random.Generator, slowdown: float, runs: int = 40, benchmarks: int = 100) -> float:
    """Return in which share of benchmarks the comparison, with its second look, finds a slowdown."""
    names = [f"map/deepseek-v3/decode/{number}/warm" for number in range(benchmarks)]
    found = 0
    for _ in range(runs):
        # The deviation is the benchmark's own, in the kept run and in both looks.
        times = np.exp(scatter(draw, benchmarks, 3 * compare.PASSES))
        times[:, compare.PASSES :] *= slowdown
        kept, first, again = (
            run_of(*(row(name, ours=list(one)) for name, one in zip(names, part, strict=True)))
            for part in np.split(times, 3, axis=1)
        )
        rows = compare.compare(first, kept, set(names))
        rows = compare.confirmed(rows, compare.compare(again, kept, set(names)))
        found += sum(one.verdict == "slower" for one in rows)
    return found / (runs * benchmarks)


def test_a_slowdown_of_three_tenths_is_caught_and_hardly_anything_else() -> None:
    draw = np.random.default_rng(0)
    assert slower_share(draw, 1.3) >= 0.95
    assert slower_share(draw, 1.0) <= 0.01
    # With a fifth of that scatter, as on a machine of one's own, the second is 0 in thousands.


def test_the_interval_of_a_median_holds_it() -> None:
    draw = np.random.default_rng(1)
    for n in (6, 15, 100):
        held = 0
        for _ in range(2000):
            low, high = results.median_interval(list(draw.lognormal(size=n)))
            held += low <= 1 <= high
        assert held / 2000 >= 0.94
    assert results.median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
    assert results.median_interval([5.0]) == (5.0, 5.0)


# From pytest-benchmark's JSON to a record


def document(slowdown: float = 1.0, faults: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return a pass as pytest-benchmark writes it: rounds in which the machine is slower and slower."""
    day = [slowdown * (1 + number / 10) for number in range(8)]
    info = {
        "op": "gating",
        "model": "deepseek-v3",
        "phase": "decode",
        "tokens": 16,
        "variant": "warm",
        "bytes_moved": 4000,
        "flops": 0,
        "serves": "ours",
        "calls": 2,
        "clock": "the process' CPU time",
        "implementations": ABOUTS["gating"],
        YARDSTICK: [1e-6 * one for one in day],
        "turns": {"vllm": [25e-6 * one for one in day]},
    }
    provenance = Provenance(device=DeviceRecord(kind="cpu", name="Test 1"), threads="1")
    return {
        "benchmarks": [{"param": A, "extra_info": info, "stats": {"data": [20e-6 * one for one in day]}}],
        "npu_ops": {
            "provenance": provenance.model_dump(mode="json"),
            "device": "cpu-test-1",
            "pinned": "one thread",
            "all": [A, B],
            "faults": dict(faults or {}),
            "left_out": ["moe/kimi-k2/prefill/8192: too large"],
        },
    }


def test_a_record_has_medians_intervals_and_ratios_round_by_round(tmp_path: Path) -> None:
    run = results.record([document(), document(1.5, {f"{A}: odd": "ids differ"})], short=True)
    [found] = run.performance["rows"]
    ours, theirs = found["implementations"]["ours"], found["implementations"]["vllm"]
    assert (ours["rounds"], theirs["rounds"]) == (16, 16)
    assert ours["low_us"] < ours["median_us"] < ours["high_us"]
    # The machine became half as fast; in turns nothing changed.
    assert ours["to_yardstick"] == pytest.approx([10.0, 10.0])
    assert ours["beside"] == {"peer": "vllm", "times_faster": 2.5, "low": 2.5, "high": 2.5}
    assert found["implementations"]["odd"] == {"fault": "ids differ"}
    history.append(tmp_path / FILE, run)
    assert history.read(tmp_path / FILE) == [run]
    text = pages.page(run, "npu_ops.svg")
    parts = (
        "gating, warm",
        "2.50×",
        "Kimi-K2",
        "npu_ops.svg",
        "too large",
        "ids differ",
        "**ours**",
        "vllm *",
    )
    assert all(part in text for part in parts)


# The one generator: what is timed is checked, and the check can fail


@pytest.mark.parametrize("op", list(FAMILIES))
@pytest.mark.parametrize("tokens", [1, 16, 260])
@pytest.mark.parametrize("model", SMALL, ids=lambda model: model.name)
def test_every_implementation_is_its_reference_at_small_sizes(op: str, tokens: int, model: Any) -> None:  # noqa: ANN401
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
    def prepare(case: Case, tensors: Any) -> Any:  # noqa: ANN401 - as in Implementation
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


def faults_of(family: Any, case: Case, *implementations: Implementation) -> list[str | None]:  # noqa: ANN401
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

    def writing(case: Case, tensors: Any) -> Any:  # noqa: ANN401 - as in Implementation
        run = right.prepare(case, tensors)

        def other() -> tuple[torch.Tensor, ...]:
            found = run()
            if how == "torch":
                tensors["logits"].mul_(2)
            else:  # as a compiled kernel does, of which torch's count of versions knows nothing
                tensors["logits"].numpy()[0, 0] += 1
            return found

        return other

    def raising(case: Case, tensors: Any) -> Any:  # noqa: ANN401, ARG001 - as above
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
def test_all_take_turns_round_by_round(variant: Any) -> None:  # noqa: ANN401
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

    def Event(self, enable_timing: bool) -> Any:  # noqa: N802, ANN401 - torch's name
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


def test_a_run_is_kept_only_when_asked_and_the_history_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "measure", lambda passes, *_: ([document()] * passes, True))
    for words, folder, passes in (
        ([], "build/npu_bench", [1]),
        (["--record"], "harness/bench/records", [5]),
        (["--record", "--passes", "2"], "harness/bench/records", [5, 2]),
    ):
        done = CliRunner().invoke(cli.app, words)
        assert done.exit_code == 0, done.output
        kept = history.read(tmp_path / folder / "cpu-test-1" / FILE)
        assert [run.settings["passes"] for run in kept] == passes
    files = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"build", "harness"}
    # A comparison ends as the rows do.
    baseline = tmp_path / "baseline.jsonl"
    history.append(baseline, results.record([document()] * 5))
    for factor, code in ((1.0, 0), (1.3, 1)):
        slower = document()
        slower["benchmarks"][0]["stats"]["data"] = [20e-6 * factor * (1 + number / 10) for number in range(8)]
        monkeypatch.setattr(cli, "measure", lambda passes, *_, slower=slower: ([slower] * passes, True))
        assert CliRunner().invoke(cli.app, ["--baseline", str(baseline)]).exit_code == code


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


def test_kept_records_are_whole() -> None:
    for path in (ROOT / "harness/bench/records").glob(f"*/{FILE}"):
        newest = history.read(path)[-1]
        assert newest.performance["rows"]
        assert not newest.proof.get("faults")
        assert (path.parent / "npu_ops.md").exists()
        assert (path.parent / "npu_ops.svg").exists()
