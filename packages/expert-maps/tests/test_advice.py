# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`advise`: right where the answer is known."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from cli_runs import assert_one_line_error, run

from expert_maps import ExpertLoad, ExpertMapsError
from expert_maps.advice import advise
from expert_maps.advice_model import TimeModel, bootstrap
from expert_maps.advice_rules import Served
from expert_maps.simulation import OFF, Costs, Setting, replay

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

PRICE = Costs(expert_bytes=10**6, bandwidth=25.0)


def trace_of(kind: str, seed: int = 0, steps: int = 96) -> NDArray[np.int64]:
    """Tokens [steps, 2, 16], drawn around a popularity that is uniform, stays skewed, or is another at each step."""
    rng = np.random.default_rng(seed)
    skew = rng.lognormal(sigma=1.0, size=(1 if kind == "skewed" else steps, 2, 16))
    share = np.ones((1, 2, 16)) if kind == "uniform" else skew
    tokens = rng.poisson(np.broadcast_to(4000 * share / share.sum(axis=2, keepdims=True), (steps, 2, 16)))
    return tokens.astype(np.int64)


@pytest.mark.parametrize(
    ("kind", "steps", "answer"),
    [
        ("skewed", 96, "yes"),
        ("uniform", 96, "no"),
        ("drifting", 384, "no"),
        ("skewed", 20, "not enough data"),
    ],
)
def test_known_answers(kind: str, steps: int, answer: str) -> None:
    redundant = [0] if kind == "drifting" else None
    found = advise(trace_of(kind, steps=steps), ep_size=4, redundant=redundant, costs=PRICE, least_gain=0.02)
    assert found.answer == found.answer_by_trace == answer, found
    assert found.reasons
    if steps == 20:
        assert found.reasons == ["the trace has 20 steps; expected at least 24"]
        assert found.gain is None
    assert any("assumed, not measured" in line for line in found.assumptions)


def test_numbers_again_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # The planner's time is measured anew in each run: here it takes none.
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)
    trace = trace_of("skewed")
    model = TimeModel(40.0, 10.0, is_measured=True)
    found = advise(trace, ep_size=4, redundant=[4], intervals=[6], costs=PRICE, time_model=model)
    assert found.setting == Setting("balanced", 4, 4, 6)
    off = replay(ExpertLoad(trace), Setting(OFF, 4), costs=PRICE)
    on = replay(ExpertLoad(trace), found.setting, first=48, costs=PRICE)
    before, after = 0.0, 0.0
    b = 10.0 / (sum(off.hottest[48:]) / 48)
    for step in range(48, 96):
        before += 30.0 + b * off.hottest[step]
        after += 30.0 + b * on.hottest[step] + (1000 * on.stall[step] if step > 48 else 0)
    assert found.token_ms == pytest.approx(b)
    assert found.layer_ms == pytest.approx(15.0)
    assert found.gain == pytest.approx(1 - after / before)
    assert found.bytes_per_rank == 5 * 2 * 10**6
    assert found.extra_bytes_per_rank == 2 * 10**6
    assert found.start_seconds is not None
    assert found.start_seconds >= on.stall[48] > 0
    assert found.gain_interval is not None
    assert found.gain is not None
    assert found.gain_interval[0] <= found.gain <= found.gain_interval[1]


def test_moves_that_cost_more_than_they_save_are_not_advised() -> None:
    trace = trace_of("skewed")
    cheap = advise(trace, ep_size=4, redundant=[4], intervals=[6], costs=PRICE)
    dear = advise(trace, ep_size=4, redundant=[4], intervals=[6], costs=Costs(10**10, 1.0))
    assert (cheap.answer, dear.answer) == ("yes", "no")
    once = advise(trace, ep_size=4, redundant=[4], costs=Costs(10**10, 1.0))
    assert once.setting is not None
    assert once.start_seconds is not None
    assert once.payback_steps is not None
    assert (once.answer, once.setting.interval) == ("yes", 0)
    assert once.start_seconds > 10
    assert once.payback_steps > 1000


def test_the_setting_is_chosen_without_the_second_half() -> None:
    trace = trace_of("skewed")
    other = trace.copy()
    other[48:] = trace_of("uniform")[48:]
    one, two = advise(trace, ep_size=4, costs=PRICE), advise(other, ep_size=4, costs=PRICE)
    assert one.setting == two.setting
    assert (one.answer, two.answer) == ("yes", "no")


def test_the_bootstrap_covers_the_gain_of_independent_steps() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        without = rng.normal(100, 5, size=64)
        _, (low, high) = bootstrap(without, 0.9 * without + rng.normal(0, 5, size=64), 0)
        inside += low <= 0.1 <= high
    assert inside >= 180


def test_known_rules_are_applied_and_named() -> None:
    trace = trace_of("skewed")
    decode = advise(trace, ep_size=4, costs=PRICE, served=Served("decode"))
    assert (decode.answer, decode.answer_by_trace) == ("no", "yes")
    assert [rule.name for rule in decode.rules] == ["few experts a rank in decode"]
    short = advise(trace, ep_size=4, costs=PRICE, served=Served(prompt_tokens=1023))
    assert (short.answer, short.rules[0].name) == ("no", "short prompts")
    assert advise(trace, ep_size=4, costs=PRICE, served=Served(prompt_tokens=1024)).rules == []
    old = advise(trace, ep_size=4, costs=PRICE, served=Served(device="a2"))
    assert old.setting is not None
    assert (old.answer, old.setting.num_redundant_experts) == ("yes", 0)
    assert advise(trace, ep_size=1, costs=PRICE, served=Served("decode")).rules == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"least_gain": 2.0}, "least_gain is 2.0"),
        ({"redundant": [3]}, "there is nothing to choose from"),
        ({"served": Served(device="a2"), "redundant": [4]}, "no redundant experts are allowed on A2"),
        ({"ep_size": 0}, "ep_size is 0"),
    ],
)
def test_what_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ExpertMapsError, match=said):
        advise(trace_of("skewed"), **{"ep_size": 4, **options})  # type: ignore[arg-type]


def test_impossible_servers_are_refused() -> None:
    with pytest.raises(ExpertMapsError, match="moe_ms is 3; expected at most step_ms, 2"):
        TimeModel(2.0, 3.0)
    with pytest.raises(ExpertMapsError, match="phase is 'both'"):
        Served("both")


def test_the_command_says_it_in_words_and_as_json(tmp_path: Path) -> None:
    path = tmp_path / "load.npy"
    np.save(path, trace_of("skewed"))
    options = ("advise", path, "--ep-size", 4, "--expert-bytes", 1000, "--bandwidth", 25, "--workers", 1)
    text = run(*options)
    assert text.exit_code == 0, text.output
    assert text.stdout.startswith("worth it: yes\nsetting: ")
    told = json.loads(run(*options, "--json", "--step-ms", 40, "--moe-ms", 20).stdout)
    assert told["answer"] == "yes"
    assert told["gain_interval"][0] > 0.01
    assert told["chosen_from"][0]["policy"] == "off"
    assert any("measured by you" in line for line in told["assumptions"])
    assert_one_line_error(run(*options, "--step-ms", 40), "--step-ms is given without --moe-ms")
    assert_one_line_error(run(*options, "--redundant", ","), "--redundant has no value")
    assert_one_line_error(run(*options, "--device", "b"), "device is 'b'; expected a2 or other")
