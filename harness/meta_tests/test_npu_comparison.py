# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Runs of the ops' benchmark: what they leave, and how they are compared: silence is no pass, a slowdown is caught."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from typer.testing import CliRunner

from harness.bench.npu import cli, compare, pages, results
from harness.bench.npu.bench import YARDSTICK
from harness.bench.npu.cli import FILE
from harness.record import history
from harness.record.schema import DeviceRecord, Provenance, RunRecord

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[2]
A, B = "gating/deepseek-v3/decode/16/warm", "map/deepseek-v3/decode/16/warm"
ABOUTS = {
    "gating": {"ours": {"about": "", "is_peer": False}, "vllm": {"about": "", "is_peer": True}},
    "map": {"ours": {"about": "", "is_peer": False}, "vllm": {"about": "", "is_peer": True}},
}


# The comparison


def row(name: str, **implementations: Any) -> dict[str, Any]:  # noqa: ANN401 - as in Implementation, or of JSON
    op, model, phase, tokens, variant = name.split("/")
    found = {
        one: {"fault": value} if isinstance(value, str) else {"to_yardstick": value, "median_us": 1.0}
        for one, value in implementations.items()
    }
    described = {"op": op, "model": model, "phase": phase, "tokens": int(tokens), "variant": variant}
    return {"benchmark": name, **described, "yardstick_us": 1.0, "implementations": found}


def run_of(*rows: dict[str, Any], faults: Mapping[str, str] | None = None, **where: Any) -> RunRecord:  # noqa: ANN401 - as in Implementation, or of JSON
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
def test_an_implementation_against_itself(current: Any, verdict: str, fails: bool) -> None:  # noqa: ANN401 - as in Implementation, or of JSON
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


def test_kept_records_are_whole() -> None:
    for path in (ROOT / "harness/bench/records").glob(f"*/{FILE}"):
        newest = history.read(path)[-1]
        assert newest.performance["rows"]
        assert not newest.proof.get("faults")
        assert (path.parent / "npu_ops.md").exists()
        assert (path.parent / "npu_ops.svg").exists()
