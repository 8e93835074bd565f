# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The verdict: what fails fails by name, a gain never does, and what was not measured is said."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import LOGPROB, TOKENS, Arm, compare, eplb, make, record, summary_of
from scipy.stats import binom

from harness.accuracy.compare import Options, compare_records, notes
from harness.accuracy.limits import FACTOR, LIMITS, Floor, limits_for
from harness.accuracy.records import Record
from harness.accuracy.schema import Forced, RecordError
from harness.accuracy.verdict import EXIT_CODES, judge

if TYPE_CHECKING:
    from pathlib import Path

    from harness.accuracy.criteria import Criterion
    from harness.accuracy.verdict import Verdict

GSM8K = 1319
LARGEST, MEAN = "log-probabilities, largest", "log-probabilities, mean"


def judged(arm: Arm, baseline: Arm | None = None, **options: Any) -> Verdict:  # noqa: ANN401 - those of judge
    before = baseline or Arm(questions=arm.questions)
    return judge(record(before), record(arm), **options)


def repeat(dtype: str, **options: Any) -> Record:  # noqa: ANN401 - those of Arm
    """Return the baseline once more; nothing differs where no option says so."""
    return record(Arm(name="repeat", changes={"role": "repeat", "dtype": dtype}, **options))


def failed(verdict: Verdict) -> list[str]:
    return [one.name for one in verdict.criteria if one.outcome == "fail"]


def criterion(verdict: Verdict, name: str) -> Criterion:
    return next(one for one in verdict.criteria if one.name == name)


@pytest.mark.parametrize(
    ("arm", "code", "start"),
    [
        (eplb(), 0, "no worse: loss at most 0.75 points, margin 1.00; 0 lost and 0 gained of 400 questions"),
        (eplb(wrong=range(30)), 1, "worse: loss (at most "),
        # 0.99^299 is the first below 5 %.
        (eplb(questions=100), 3, "undecided: 199 more questions: loss at most 2.95 points"),
    ],
)
def test_exit_codes_and_last_line(tmp_path: Path, arm: Arm, code: int, start: str) -> None:
    folders = [make(tmp_path, one).folder for one in (Arm(questions=arm.questions), arm)]
    done = compare(*folders)
    assert (done.returncode, done.stderr) == (code, "")
    lines = done.stdout.splitlines()
    assert lines[-1].startswith(start)
    version = summary_of(arm)["task"]["version"]
    value = 100 * (1 - len(set(arm.wrong)) / arm.questions)
    assert lines.count("| dataset | version | metric | mode | model |") == 2
    assert f"| words | {version} | accuracy | gen | {value:.2f} |" in lines
    assert f"| words | {version} | accuracy | gen | 100.00 |" in lines
    found = json.loads(compare(*folders, "--json").stdout)
    assert (found["exit_code"], found["line"]) == (code, lines[-1])
    assert EXIT_CODES[found["verdict"]] == code


def test_as_many_more_questions_as_it_says_decide() -> None:
    first = judged(eplb(questions=100))
    assert first.answer == "undecided"
    assert first.more is not None
    assert judged(eplb(questions=100 + first.more)).answer == "no worse"
    assert judged(eplb(questions=99 + first.more)).answer == "undecided"


def test_no_loss_in_1319_bounds_the_loss_at_a_quarter_of_a_point() -> None:
    verdict = judged(eplb(questions=GSM8K))
    assert verdict.loss_limit == pytest.approx(100 * (1 - 0.05 ** (1 / GSM8K)), abs=1e-4)
    assert verdict.line.startswith("no worse: loss at most 0.23 points")


@pytest.mark.parametrize(("losses", "is_significant"), [(4, False), (5, True)])
def test_the_margin_decides_and_a_significant_loss_is_a_note(losses: int, is_significant: bool) -> None:
    # 2^-4 is above 5 %, 2^-5 below; the loss of either surely lies below a point.
    verdict = judged(eplb(questions=GSM8K, wrong=range(losses)))
    assert verdict.answer == "no worse"
    assert verdict.loss_limit < 1
    note = criterion(verdict, "McNemar")
    assert (note.outcome, "a significant loss" in note.value) == ("note", is_significant)
    assert verdict.pairs.lost == tuple(range(losses))


@pytest.mark.parametrize("questions", [GSM8K, 20_000])
def test_more_questions_do_not_make_an_acceptable_loss_fail(questions: int) -> None:
    # Three in a thousand are lost.
    verdict = judged(eplb(questions=questions, wrong=range(3 * questions // 1000)))
    assert verdict.answer == "no worse"


NO_ANSWER = {
    "as by chance": (0.0, range(400)),
    "far below the 99.5 %": (0.0, range(40)),
    "as by chance (": (30.0, range(300)),
}


@pytest.mark.parametrize("said", NO_ANSWER)
def test_a_baseline_that_does_not_know_its_task_decides_nothing(said: str) -> None:
    chance, wrong = NO_ANSWER[said]
    expected = {"accuracy": 99.5, "chance": chance}
    verdict = judged(eplb(wrong=wrong), Arm(wrong=wrong, changes={"expected": expected}))
    assert verdict.answer == "undecided"
    assert criterion(verdict, "baseline sound").outcome == "undecided"
    assert said.removesuffix(" (") in verdict.line
    assert judged(eplb(), Arm(changes={"expected": expected})).answer == "no worse"
    # As it should be, but for what is right by chance of the draw.
    near = judged(eplb(wrong=range(8)), Arm(wrong=range(8), changes={"expected": {"accuracy": 99.5}}))
    assert near.answer == "no worse"


def test_answers_that_were_cut_count_against_a_run() -> None:
    all_cut = judged(eplb(cut=range(400)), Arm(cut=range(400)))
    assert all_cut.answer == "undecided"
    assert "baseline sound (0.00 % right" in all_cut.line
    assert "whole answers (400 and 400 cut" in all_cut.line
    # A number that was found in what is left is no answer.
    verdict = judged(eplb(cut=range(20)))
    assert verdict.answer == "worse"
    assert verdict.pairs.outcomes.losses == 20
    some = judged(eplb(cut=range(20)), Arm(cut=range(20)))
    assert some.answer == "no worse"
    assert judged(eplb(cut=range(21)), Arm(cut=range(21))).answer == "undecided"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"server.arguments": ["--quantization=fp8"]}, "--quantization is 'fp8'; expected not given"),
        ({"server.arguments": ["-q", "fp8"]}, "--quantization is 'fp8'"),
        ({"server.arguments": ["--kv_cache_dtype", "fp8"]}, "--kv-cache-dtype is 'fp8'"),
        ({"checkpoint": {"name": "made-up", "sha256": "e" * 64}}, "checkpoint is 'eeee"),
        ({"dtype": "bfloat16"}, "dtype is 'bfloat16'"),
    ],
)
def test_arms_of_another_model_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecordError, match=re.escape(said)):
        judged(eplb(changes=changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"versions.vllm": "2.0"}, "alike (vllm is 1.0 and 2.0)"),
        ({"environment": {"machine": "aarch64"}}, "alike (machine is x86_64 and aarch64)"),
        ({"checkpoint": None}, "not measured: alike (the checkpoint of static is not known)"),
    ],
)
def test_arms_of_another_kind_are_named_and_decide_nothing(changes: dict[str, Any], said: str) -> None:
    arm = eplb(changes=changes)
    assert judged(arm).answer == "undecided"
    assert said in judged(arm).line
    waived = judged(arm, waived=["alike"])
    assert waived.answer == "no worse"
    assert waived.line.endswith("waived: alike")
    # What fails cannot be waived, nor can the question itself.
    assert judged(eplb(wrong=range(30), changes=changes), waived=["alike"]).answer == "worse"
    for name in ("loss", "other"):
        with pytest.raises(ValueError, match=f"waived is '{name}'; expected one of EPLB acted"):
            judged(arm, waived=[name])


@pytest.mark.parametrize(
    ("floor", "changed", "answer"),
    [
        (None, 160, "undecided"),
        (0, 160, "worse"),
        (2, 160, "worse"),
        (150, 160, "no worse"),
        # 15 % change by themselves, so that 45 % are allowed, and chance on top.
        (60, 160, "no worse"),
        (60, 320, "worse"),
    ],
)
def test_texts_in_16_bits_are_judged_beside_the_baseline_itself(
    floor: int | None, changed: int, answer: str
) -> None:
    changes = {"dtype": "bfloat16"}
    baseline, arm = record(Arm(changes=changes)), record(eplb(changed=range(changed), changes=changes))
    verdict = judge(baseline, arm, floor=None if floor is None else repeat("bfloat16", changed=range(floor)))
    assert verdict.answer == answer
    outcome = {"undecided": "not measured", "worse": "fail", "no worse": "pass"}[answer]
    assert criterion(verdict, "identical texts").outcome == outcome


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_log_probabilities_in_16_bits_are_judged_beside_the_baseline_itself(dtype: str) -> None:
    changes = {"dtype": dtype}
    baseline, arm = record(Arm(changes=changes)), record(eplb(shift=-0.29, changes=changes))
    assert judge(baseline, arm).answer == "undecided"
    assert (
        "log-probabilities, mean (2.9e-01 of 1,200 tokens, but no repeat of the baseline)"
        in judge(baseline, arm).line
    )
    assert failed(judge(baseline, arm, floor=repeat(dtype, shift=-1e-3))) == [LARGEST, MEAN]
    assert judge(baseline, arm, floor=repeat(dtype, shift=-0.1)).answer == "no worse"
    # The repeat is the floor, and judged as such.
    alone = judge(baseline, repeat(dtype, shift=-0.1))
    assert (alone.answer, criterion(alone, MEAN).outcome) == ("no worse", "note")


def test_the_floor_is_found_beside_the_baseline(tmp_path: Path) -> None:
    changes = {"dtype": "bfloat16"}
    folders = [
        make(tmp_path, one).folder for one in (Arm(changes=changes), eplb(shift=-0.29, changes=changes))
    ]
    assert compare(*folders).returncode == 3
    make(tmp_path, Arm(name="repeat", shift=-0.1, changes={**changes, "role": "repeat"}))
    assert compare(*folders).returncode == 0
    other = make(
        tmp_path / "other", Arm(name="again", shift=-1e-3, changes={**changes, "role": "repeat"})
    ).folder
    assert compare(*folders, "--floor", other).returncode == 1
    assert compare(*folders, "--floor", tmp_path / "absent").returncode == 2


def test_a_loss_that_surely_exceeds_the_margin_fails_by_name() -> None:
    verdict = judged(eplb(wrong=range(20)))
    assert failed(verdict) == ["loss"]
    assert "loss (at most " in verdict.line


@pytest.mark.parametrize("gains", [1, 5, 50, 399])
def test_a_gain_is_no_worse(gains: int) -> None:
    verdict = judged(eplb(), Arm(wrong=range(gains)))
    assert verdict.answer == "no worse"
    assert verdict.interval[1] > 0


@settings(max_examples=20, deadline=None)
@given(losses=st.integers(0, 30), more=st.integers(0, 30), questions=st.integers(60, 200))
def test_accuracy_that_did_not_fall_never_fails(losses: int, more: int, questions: int) -> None:
    gained = range(losses, 2 * losses + more)
    if gained.stop > questions:
        return
    baseline = Arm(questions=questions, wrong=gained)
    # A wide margin, because how many more questions it needs takes long to say of a narrow one.
    verdict = judged(eplb(questions=questions, wrong=range(losses)), baseline, margin=5)
    assert failed(verdict) == []
    seen = verdict.pairs.outcomes
    assert (seen.losses, seen.gains) == (losses, losses + more)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"role": "baseline"}, "its role is baseline"),
        ({"placement.eplb_active": False}, "the plugin was not active"),
        ({"placement.digest": None}, "no digest of its placement"),
        (
            {
                "placement.num_redundant_experts": 0,
                "placement.digest": "a" * 64,
                "placement.digest_at_end": "a" * 64,
            },
            "neither redundant experts nor a move",
        ),
        (
            {
                "placement.num_redundant_experts": 0,
                "placement.digest": "a" * 64,
                "placement.digest_at_end": "a" * 64,
                "placement.rearrangements": 3,
            },
            "neither redundant experts nor a move",
        ),
        # Redundant experts that stand as the baseline's, who has none.
        (
            {"placement.digest": "a" * 64, "placement.digest_at_end": "a" * 64},
            "neither redundant experts nor a move",
        ),
    ],
)
def test_an_arm_in_which_eplb_did_not_act_is_worse(changes: dict[str, Any], reason: str) -> None:
    verdict = judged(eplb(changes=changes))
    # One that is called a baseline is a baseline with redundant experts, too.
    assert failed(verdict)[:1] == ["EPLB acted"]
    assert verdict.exit_code == 1
    assert f"worse: EPLB acted (no EPLB arm: {reason}" in verdict.line


@pytest.mark.parametrize(
    "changes",
    [
        # Experts that only stand elsewhere, from the beginning or later.
        {"placement.num_redundant_experts": 0},
        {
            "placement.num_redundant_experts": 0,
            "placement.digest": "a" * 64,
            "placement.rearrangements": 1,
        },
    ],
)
def test_a_move_is_eplb(changes: dict[str, Any]) -> None:
    verdict = judged(eplb(changes=changes))
    assert criterion(verdict, "EPLB acted").outcome == "pass"
    assert verdict.answer == "no worse"


@pytest.mark.parametrize(
    ("which", "changes", "said"),
    [
        (1, {"placement.digest_at_end": "f" * 64}, "placement of static changed without a rearrangement"),
        (1, {"placement.dynamic": False, "placement.rearrangements": 5}, "static moved, which is static"),
        (1, {"placement.ep_size": 1}, "an EPLB arm on 1 ranks"),
        (0, {"placement.num_redundant_experts": 4}, "a baseline with 4 redundant experts"),
        (0, {"placement.rearrangements": 5}, "a baseline with 5 rearrangements"),
        (1, {"placement.faults": ["a line\nand another"]}, "a line and another"),
    ],
)
def test_what_a_record_says_of_its_placement_must_agree(
    which: int, changes: dict[str, Any], said: str
) -> None:
    arms = [Arm(changes=changes if which == 0 else {}), eplb(changes=changes if which == 1 else {})]
    verdict = judged(arms[1], arms[0])
    assert failed(verdict) == ["as declared"]
    assert said in verdict.line
    assert "\n" not in verdict.line


def test_a_dynamic_arm_must_have_moved() -> None:
    for moved in (0, None):
        verdict = judged(eplb(changes={"placement.dynamic": True, "placement.rearrangements": moved}))
        assert failed(verdict) == ["EPLB acted"]
        assert "dynamic EPLB did not act" in verdict.line
    changes = {"placement.dynamic": True, "placement.rearrangements": 2, "placement.digest_at_end": "f" * 64}
    assert judged(eplb(changes=changes)).answer == "no worse"


def test_what_nobody_read_is_not_called_measured() -> None:
    verdict = judged(eplb(), Arm(changes={"placement.digest": None, "placement.digest_at_end": None}))
    assert verdict.answer == "undecided"
    assert verdict.line.endswith("not measured: as declared (the baseline's placement was not read)")
    # Beside another arm it is not known what a baseline would say.
    verdict = judged(
        eplb(name="b", changes={"placement.digest": "e" * 64, "placement.digest_at_end": "e" * 64}), eplb()
    )
    assert verdict.answer == "undecided"
    assert verdict.line.endswith("not measured: EPLB acted (beside static, which is no baseline)")
    differ = {"placement.replica_checksums": "differ"}
    assert failed(judged(eplb(), Arm(changes=differ))) == ["replicas equal"]


def test_texts_that_became_right_are_no_loss() -> None:
    some = range(50)
    baseline, arm = Arm(wrong=some), eplb(changed=some)
    verdict = judged(arm, baseline)
    assert verdict.answer == "no worse"
    assert criterion(verdict, "identical texts").value.endswith(", 50 of the others became right")
    assert failed(judged(eplb(changed=some))) == ["identical texts"]


def test_a_loss_is_told_from_the_margin_and_zero_has_no_sign() -> None:
    assert "loss at most 0.997 points, margin 1.00" in judged(eplb(questions=299)).line
    assert "loss at most 1.0002 points" in judged(eplb(questions=298)).line
    better = judged(eplb(questions=GSM8K), Arm(questions=GSM8K, wrong=range(3)))
    assert "-0.00" not in better.line


def test_what_else_differs_is_noted() -> None:
    arguments = ["--enforce-eager", "--additional-config", "{}", "--max-model-len=9"]
    changes = {"server.arguments": arguments, "server.environment": {"OMP_NUM_THREADS": "2"}}
    found = notes(compare_records(record(Arm()), record(eplb(wrong=[1], changes=changes))))
    assert "arguments differ: none and --max-model-len=9" in found
    assert "variables differ: OMP_NUM_THREADS" in found
    # The made-up arm has the same text there.
    assert any(one.startswith("1 questions have the same text and another outcome") for one in found)


def test_a_repeat_is_of_a_baseline_and_of_another_run(tmp_path: Path) -> None:
    folder = make(tmp_path, Arm()).folder
    done = compare("--repeat", folder, folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert "expected the record of another run" in done.stderr
    assert failed(judged(Arm(name="again"), eplb(), repeat=True)) == ["EPLB acted"]


def test_texts_without_log_probabilities_are_refused() -> None:
    empty = []
    for one in (record(Arm()), record(eplb())):
        rows = [
            Forced(doc_hash=row.doc_hash, forced_from=row.forced_from, logprobs=[])
            for row in one.logprobs or ()
        ]
        empty.append(Record(one.folder, one.summary, one.questions, tuple(rows)))
    with pytest.raises(RecordError, match="no log-probabilities of question 0; expected one a token"):
        judge(*empty)


def test_limits_grow_with_how_unsure_a_model_is() -> None:
    limits = LIMITS["float32"]
    # As measured on GSM8K, which the embedded model does not know.
    assert 1.5e-5 < limits.of("largest", 4.8e-2, 4441) < 5e-5
    assert 1.7e-7 < limits.of("mean", 4.8e-2, 4441) < 4e-6
    # On its own task, and where it is surer.
    for unsure in (2.66e-4, 0.0):
        assert limits.of("largest", unsure, 41279) == limits.largest
        assert limits.of("mean", unsure, 41279) == limits.mean
    # In 16 bits with the floor alone.
    half, floor = LIMITS["bfloat16"], Floor(0.5, 1e-3, 0.2)
    assert half.of("largest", 4.6e-2, 2953) == half.largest
    assert half.of("largest", 0.0, 1, floor) == FACTOR * 0.5
    assert half.of("mean", 0.0, 1, floor) == FACTOR * 1e-3
    assert half.changed(floor) == pytest.approx(FACTOR * 0.2)
    assert limits_for("bfloat16", identical=0.5).changed(floor) == 0.5
    given_ = limits_for("float32", largest=1e-5, mean=1e-9)
    assert (given_.of("largest", 0.5, 10**6), given_.of("mean", 0.5, 10**6)) == (1e-5, 1e-9)
    # A record says it, too.
    arms = [record(one) for one in (Arm(shift=-0.5), eplb(shift=-0.5 - 1e-6))]
    assert judge(*arms).answer == "no worse"
    assert judge(*arms, limits=limits_for("float32", mean=limits.mean)).answer == "worse"


def test_a_baseline_with_eplb_is_none() -> None:
    verdict = judged(eplb(), Arm(changes={"placement.eplb_active": True}))
    assert failed(verdict) == ["EPLB acted"]
    assert "active in the baseline" in verdict.line


def test_a_baseline_beside_itself() -> None:
    again = Arm(name="again")
    assert failed(judged(again)) == ["EPLB acted"]
    verdict = judged(again, repeat=True)
    assert verdict.answer == "no worse"
    assert [criterion(verdict, name).outcome for name in ("EPLB acted", "replicas equal")] == ["note"] * 2
    assert failed(judged(eplb(), repeat=True)) == ["EPLB acted"]


@pytest.mark.parametrize(
    ("found", "outcome"), [("equal", "pass"), ("differ", "fail"), ("not read", "not measured")]
)
def test_checksums_of_replicas(found: str, outcome: str) -> None:
    verdict = judged(eplb(changes={"placement.replica_checksums": found}))
    assert criterion(verdict, "replicas equal").outcome == outcome
    assert verdict.answer == {"pass": "no worse", "fail": "worse", "not measured": "undecided"}[outcome]
    assert ("replicas equal" in verdict.line) == (outcome != "pass")


@pytest.mark.parametrize("which", [0, 1])
def test_what_contradicts_a_configuration_fails(which: int) -> None:
    fault = {"placement.faults": ["rank 2 has another digest"]}
    arms = [Arm(changes=fault if which == 0 else {}), eplb(changes=fault if which == 1 else {})]
    verdict = judged(arms[1], arms[0])
    assert failed(verdict) == ["as declared"]
    assert "rank 2 has another digest" in verdict.line


@pytest.mark.parametrize("dtype", LIMITS)
def test_limits_of_log_probabilities_by_dtype(dtype: str) -> None:
    limits = LIMITS[dtype]

    def fails(shift: float) -> list[str]:
        changes = {"dtype": dtype}
        arm = eplb(shift=shift, changes=changes)
        return failed(judged(arm, Arm(changes=changes), floor=repeat(dtype)))

    # Every token is off by as much.
    assert fails(0.9 * limits.mean) == fails(-0.9 * limits.mean) == []
    assert fails(1.1 * limits.mean) == fails(-1.1 * limits.mean) == [MEAN]
    assert fails(1.1 * limits.largest) == fails(-1.1 * limits.largest) == [LARGEST, MEAN]


@pytest.mark.parametrize("dtype", LIMITS)
def test_one_token_is_found_and_named(dtype: str) -> None:
    changes = {"dtype": dtype}
    # So many that one token alone does not exceed the limit of the mean.
    questions = math.ceil(2 * LIMITS[dtype].largest / LIMITS[dtype].mean / TOKENS)
    options: dict[str, Any] = {"questions": questions, "changes": changes}
    baseline, arm = record(Arm(**options)), record(eplb(**options))
    assert arm.logprobs is not None
    rows = list(arm.logprobs)
    off = [LOGPROB] * (TOKENS - 1) + [LOGPROB - 1.1 * LIMITS[dtype].largest]
    rows[123] = Forced(doc_hash=rows[123].doc_hash, forced_from=rows[123].forced_from, logprobs=off)
    floor = repeat(dtype, questions=questions)
    verdict = judge(baseline, Record(arm.folder, arm.summary, arm.questions, tuple(rows)), floor=floor)
    assert failed(verdict) == [LARGEST]
    assert criterion(verdict, LARGEST).value.endswith(f"of {TOKENS * questions:,} tokens, question 123")
    assert criterion(verdict, LARGEST).measured == pytest.approx(1.1 * LIMITS[dtype].largest)


def test_a_dtype_without_limits_needs_all_of_them() -> None:
    changes = {"dtype": "float8"}
    baseline, arm = record(Arm(changes=changes)), record(eplb(shift=0.4, changes=changes))
    for options in (Options(), Options(largest=1.0, mean=1.0)):
        with pytest.raises(ValueError, match="dtype is 'float8'; expected one of"):
            compare_records(baseline, arm, options)
    given_ = Options(largest=0.5, mean=0.5, identical=0.9)
    assert compare_records(baseline, arm, given_).verdict.answer == "no worse"
    assert limits_for("float32", mean=0.5).largest == LIMITS["float32"].largest


@pytest.mark.parametrize("arms", [(None, 0.0), (0.0, None), (None, None)])
def test_what_was_not_measured_is_named(arms: tuple[float | None, float | None]) -> None:
    verdict = judged(eplb(shift=arms[1]), Arm(shift=arms[0]))
    assert verdict.answer == "undecided"
    absent = [name for name, shift in zip(("baseline", "static"), arms, strict=True) if shift is None]
    why = f"no log-probabilities of {' and '.join(absent)}"
    assert criterion(verdict, MEAN).value == why
    assert verdict.line.endswith(f"not measured: {LARGEST} ({why}), {MEAN} ({why})")


def test_log_probabilities_of_other_texts_are_not_compared() -> None:
    baseline, arm = record(Arm()), record(eplb(shift=9.0))
    assert arm.logprobs is not None
    assert failed(judge(baseline, arm)) == [LARGEST, MEAN]
    others = tuple(
        Forced(doc_hash=row.doc_hash, forced_from="other", logprobs=row.logprobs) for row in arm.logprobs
    )
    verdict = judge(baseline, Record(arm.folder, arm.summary, arm.questions, others))
    assert criterion(verdict, LARGEST).outcome == "not measured"
    assert criterion(verdict, LARGEST).value == "baseline and static scored different texts"
    # Nor are those of both arms, where the baseline has other texts now.
    verdict = judge(record(Arm(changed=[7])), record(eplb(changed=[7], shift=-9.0)))
    assert criterion(verdict, LARGEST).value == "the texts that were scored are not those of baseline"


def test_another_number_of_tokens_is_refused() -> None:
    baseline, arm = record(Arm()), record(eplb())
    assert arm.logprobs is not None
    rows = list(arm.logprobs)
    rows[3] = Forced(doc_hash="doc3", forced_from=rows[3].forced_from, logprobs=[LOGPROB] * (TOKENS + 1))
    with pytest.raises(RecordError, match="4 log-probabilities of question 3; expected 3"):
        judge(baseline, Record(arm.folder, arm.summary, arm.questions, tuple(rows)))


@pytest.mark.parametrize("questions", [100, 400, GSM8K])
@pytest.mark.parametrize("dtype", LIMITS)
def test_texts_may_change_as_often_as_chance_explains(questions: int, dtype: str) -> None:
    rate = 1 - LIMITS[dtype].identical
    allowed = next(k for k in range(questions) if binom.cdf(k, questions, rate) >= 0.99)

    def fails(count: int) -> list[str]:
        changes = {"dtype": dtype}
        arm = eplb(questions=questions, changed=range(count), changes=changes)
        floor = repeat(dtype, questions=questions)
        return failed(judged(arm, Arm(questions=questions, changes=changes), floor=floor))

    assert fails(allowed) == []
    assert fails(allowed + 1) == ["identical texts"]


def test_the_margin_decides() -> None:
    arm = eplb(questions=100)
    assert judged(arm, margin=2.9).answer == "undecided"
    assert judged(arm, margin=3.0).answer == "no worse"
    for margin in (0, 100, -1, float("nan")):
        with pytest.raises(ValueError, match=r"margin is .* points; expected more than 0"):
            judged(arm, margin=margin)
