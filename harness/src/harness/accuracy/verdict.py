# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Whether an arm is no worse than the baseline: criteria in order, each with its value, limit and outcome.

1. EPLB acted: an arm in which it did not proves nothing about it.
2. The copies of each expert hold the same weights, and nothing contradicts the arms' configuration.
3. Log-probabilities of the baseline's texts differ by rounding only: the largest, and the mean.
4. Texts stay the same but for what rounding explains.
5. McNemar: the arm does not lose significantly more questions than it gains.
6. Loss: the exact upper limit of the loss in accuracy lies below the margin.

Worse, where one fails; undecided, where only the last is open, with the number of questions that would close it; no
worse otherwise. What was not measured neither passes nor fails, and the verdict names it. 5 and 6 look at losses
only: no gain in accuracy fails them. A true loss of the margin is called "no worse" at most with chance alpha, equal
arms are called "worse" by 5 at most with chance alpha, and by 4 with a hundredth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from scipy.stats import binom

from harness.accuracy.limits import limits_for
from harness.accuracy.pairs import pair
from harness.accuracy.power import Aim, more_questions
from harness.accuracy.statistics import largest_loss, mcnemar, p_loss_above, p_loss_below, tango_interval
from harness.accuracy.table import markdown, one_line

if TYPE_CHECKING:
    from harness.accuracy.limits import Limits
    from harness.accuracy.pairs import Pairs
    from harness.accuracy.records import Record

Outcome = Literal["pass", "fail", "undecided", "not measured"]
Answer = Literal["no worse", "worse", "undecided"]
EXIT_CODES: dict[Answer, int] = {"no worse": 0, "worse": 1, "undecided": 3}
MARGIN_POINTS = 1.0
# Chance that a harmless arm has more changed texts than its limit.
_TEXTS_ALPHA = 0.01


@dataclass(frozen=True)
class Criterion:
    """One thing that was looked at.

    Attributes:
        name: of the criterion, the same in every verdict.
        outcome: what came of it.
        value: what was found, as shown.
        limit: what was asked for, as shown.
        measured: the number behind `value`; None where there is none.
        bound: the number behind `limit`; None where there is none.
    """

    name: str
    outcome: Outcome
    value: str
    limit: str
    measured: float | None = None
    bound: float | None = None


@dataclass(frozen=True)
class Verdict:
    """What came of all criteria.

    Attributes:
        answer: of the three.
        line: the answer in a line, with its reasons.
        criteria: in their order.
        pairs: what they were found from.
        interval: Tango's 95 % interval of the difference arm − baseline, in points.
        loss_limit: exact upper 95 % limit of the loss, in points.
        margin: largest loss that is accepted, in points.
        more: further questions that would decide; None where decided, or out of reach.
    """

    answer: Answer
    line: str
    criteria: tuple[Criterion, ...]
    pairs: Pairs
    interval: tuple[float, float]
    loss_limit: float
    margin: float
    more: int | None

    @property
    def exit_code(self) -> int:
        """0 no worse, 1 worse, 3 undecided."""
        return EXIT_CODES[self.answer]


def judge(
    baseline: Record,
    arm: Record,
    *,
    margin: float = MARGIN_POINTS,
    limits: Limits | None = None,
    repeat: bool = False,
    aim: Aim | None = None,
) -> Verdict:
    """Judge an arm against the baseline.

    Args:
        baseline: a complete record.
        arm: a complete record of the same questions.
        margin: largest loss that is accepted, in points of accuracy, in (0, 100).
        limits: of rounding; those of the dtype where it is None.
        repeat: the arm is the baseline once more, so that nothing is asked of EPLB.
        aim: 5 % and 80 % where it is None.

    Raises:
        RecordError: the records cannot be compared.
        ValueError: the margin is out of range, or the dtype has no limits.
    """
    if not 0 < margin < 100:  # noqa: PLR2004 - percent
        msg = f"margin is {margin:g} points; expected more than 0 and less than 100"
        raise ValueError(msg)
    aim = aim or Aim()
    pairs = pair(baseline, arm)
    limits = limits or limits_for(baseline.summary.dtype)
    loss_limit = 100 * largest_loss(pairs.outcomes, aim.alpha)
    criteria = (
        _acted(baseline, arm, repeat=repeat),
        _replicas(baseline, arm),
        _as_declared(baseline, arm),
        *_log_probabilities(pairs, limits),
        _texts(pairs, limits),
        _mcnemar(pairs, aim.alpha),
        _loss(pairs, margin, loss_limit, aim.alpha),
    )
    answer = _answer(criteria)
    more = more_questions(pairs.outcomes, margin / 100, aim) if answer == "undecided" else None
    low, high = tango_interval(pairs.outcomes)
    line = _line(answer, criteria, pairs, (loss_limit, margin, more))
    return Verdict(answer, line, criteria, pairs, (100 * low, 100 * high), loss_limit, margin, more)


def _acted(baseline: Record, arm: Record, *, repeat: bool) -> Criterion:
    name, limit = "EPLB acted", "active, and another placement than the baseline's"
    before, after = baseline.summary.placement, arm.summary.placement
    if baseline.summary.role == "baseline" and before.eplb_active:
        return Criterion(name, "fail", "active in the baseline", "inactive in the baseline")
    if repeat:
        if baseline.summary.role != "baseline":
            return Criterion(name, "fail", "no repeat: the first is an EPLB arm", "two baselines")
        if after.eplb_active or arm.summary.role != "baseline":
            return Criterion(name, "fail", "no repeat: an EPLB arm", "a second baseline")
        return Criterion(name, "not measured", "a repeat of the baseline", "–")
    reasons = [
        (arm.summary.role != "eplb", f"no EPLB arm: its role is {arm.summary.role}"),
        (not after.eplb_active, "no EPLB arm: the plugin was not active"),
        (after.digest is None, "no EPLB arm: no digest of its placement"),
        (bool(after.dynamic) and not after.rearrangements, "dynamic EPLB did not act: no rearrangements"),
        (
            baseline.summary.role == "baseline" and not _is_elsewhere(baseline, arm),
            "no EPLB arm: neither redundant experts nor a move",
        ),
    ]
    failed = next((reason for is_so, reason in reasons if is_so), None)
    moved = after.rearrangements or 0
    found = f"{after.num_redundant_experts or 0} redundant, {moved} rearrangements, digest {after.digest or '':.8}"
    outcome: Outcome = "pass" if failed is None else "fail"
    if failed is None and baseline.summary.role != "baseline":
        outcome, found = "not measured", f"beside {baseline.summary.arm}, which is no baseline"
    return Criterion(name, outcome, failed or found, limit)


def _is_elsewhere(baseline: Record, arm: Record) -> bool:
    """Say whether experts stood elsewhere than in the baseline at some time, or twice."""
    before, after = baseline.summary.placement, arm.summary.placement
    if after.rearrangements and after.digest_at_end not in {None, after.digest}:
        return True
    # Two of a digest are one placement, whatever else a record says.
    if None not in {before.digest, after.digest}:
        return before.digest != after.digest
    return bool(after.num_redundant_experts)


def _replicas(baseline: Record, arm: Record) -> Criterion:
    name = "replicas equal"
    if baseline.summary.placement.replica_checksums == "differ":
        return Criterion(name, "fail", "checksums differ in the baseline", "equal")
    found = arm.summary.placement.replica_checksums
    outcomes: dict[str, Outcome] = {"equal": "pass", "differ": "fail", "not read": "not measured"}
    return Criterion(name, outcomes[found], f"checksums {found}", "equal")


def _contradictions(record: Record) -> list[str]:
    """Return what a record says of its placement that cannot all be so, a line each."""
    found, arm = record.summary.placement, record.summary.arm
    changed = None not in {found.digest, found.digest_at_end} and found.digest != found.digest_at_end
    moved = found.rearrangements or 0
    cases = [
        (changed and not moved, f"the placement of {arm} changed without a rearrangement"),
        (found.dynamic is False and (changed or moved > 0), f"experts of {arm} moved, which is static"),
    ]
    if record.summary.role == "baseline":
        redundant = found.num_redundant_experts or 0
        cases += [
            (redundant > 0, f"{arm} is a baseline with {redundant} redundant experts"),
            (moved > 0, f"{arm} is a baseline with {moved} rearrangements"),
        ]
    else:
        alone = found.ep_size is not None and found.ep_size < 2  # noqa: PLR2004 - nothing to balance
        cases.append((alone, f"{arm} is an EPLB arm on {found.ep_size} ranks"))
    return [reason for is_so, reason in cases if is_so]


def _as_declared(baseline: Record, arm: Record) -> Criterion:
    faults = [
        one_line(fault)
        for one in (baseline, arm)
        for fault in (*one.summary.placement.faults, *_contradictions(one))
    ]
    if not faults and baseline.summary.placement.digest is None:
        unread = "the baseline's placement was not read"
        return Criterion("as declared", "not measured", unread, "no faults")
    return Criterion(
        "as declared", "fail" if faults else "pass", "; ".join(faults) or "no faults", "no faults"
    )


def _log_probabilities(pairs: Pairs, limits: Limits) -> list[Criterion]:
    found = pairs.differences
    criteria = []
    for name, bound in (("largest", limits.largest), ("mean", limits.mean)):
        title = f"log-probabilities, {name}"
        if found is None:
            criteria.append(
                Criterion(
                    title,
                    "not measured",
                    pairs.why_not or "no log-probabilities",
                    f"≤ {bound:.1e}",
                    None,
                    bound,
                )
            )
            continue
        value = float(getattr(found, name))
        bound = limits.of(name, found.unsure, found.tokens)  # noqa: PLW2901 - of this baseline
        outcome: Outcome = "pass" if value <= bound else "fail"
        shown = f"{value:.1e} of {found.tokens:,} tokens"
        if name == "largest" and value > 0:
            shown += f", question {found.question}"
        criteria.append(Criterion(title, outcome, shown, f"≤ {bound:.1e}", value, bound))
    return criteria


def _texts(pairs: Pairs, limits: Limits) -> Criterion:
    """Allow as many changed texts as chance would bring at the limit's share, and those that became right."""
    questions = pairs.outcomes.questions
    share = pairs.identical / questions
    allowed = int(binom.isf(_TEXTS_ALPHA, questions, 1 - limits.identical))
    least = (questions - allowed) / questions
    outcome: Outcome = "pass" if pairs.identical + pairs.improved >= questions - allowed else "fail"
    value = f"{pairs.identical:,} of {questions:,} ({100 * share:.2f} %)"
    if pairs.improved:
        value += f", {pairs.improved} of the others became right"
    return Criterion("identical texts", outcome, value, f"≥ {questions - allowed:,}", share, least)


def _mcnemar(pairs: Pairs, alpha: float) -> Criterion:
    p = mcnemar(pairs.outcomes)
    value = f"p = {p:.3g}: {pairs.outcomes.losses} lost, {pairs.outcomes.gains} gained"
    return Criterion("McNemar", "pass" if p > alpha else "fail", value, f"> {alpha:g}", p, alpha)


def _loss(pairs: Pairs, margin: float, loss_limit: float, alpha: float) -> Criterion:
    outcome: Outcome = "undecided"
    if p_loss_below(pairs.outcomes, margin / 100) <= alpha:
        outcome = "pass"
    elif p_loss_above(pairs.outcomes, margin / 100) <= alpha:
        outcome = "fail"
    value = f"at most {_points(loss_limit, margin)} points ({100 * (1 - alpha):g} %, exact)"
    return Criterion("loss", outcome, value, f"< {margin:.2f} points", loss_limit, margin)


def _points(loss: float, margin: float) -> str:
    """Show a loss with as many digits as tell it from the margin, and zero without a sign."""
    digits = next((digits for digits in range(2, 9) if round(loss, digits) != margin), 2)
    shown = f"{loss:.{digits}f}"
    return shown.removeprefix("-") if float(shown) == 0 else shown


def _answer(criteria: tuple[Criterion, ...]) -> Answer:
    outcomes = {criterion.outcome for criterion in criteria}
    return "worse" if "fail" in outcomes else "undecided" if "undecided" in outcomes else "no worse"


def _line(
    answer: Answer, criteria: tuple[Criterion, ...], pairs: Pairs, figures: tuple[float, float, int | None]
) -> str:
    loss_limit, margin, more = figures
    seen = pairs.outcomes
    if answer == "worse":
        failed = [f"{one.name} ({one.value})" for one in criteria if one.outcome == "fail"]
        line = f"worse: {'; '.join(failed)}"
    else:
        found = (
            f"loss at most {_points(loss_limit, margin)} points, margin {margin:.2f}; {seen.losses} lost and "
            f"{seen.gains} gained of {seen.questions} questions"
        )
        count = "more than a million" if more is None else str(more)
        line = f"no worse: {found}" if answer == "no worse" else f"undecided: {count} more questions: {found}"
    absent = [one.name for one in criteria if one.outcome == "not measured"]
    return line + (f"; not measured: {', '.join(absent)}" if absent else "")


def criteria_table(verdict: Verdict) -> str:
    """Return the criteria in their order."""
    rows = [[one.name, one.value, one.limit, one.outcome] for one in verdict.criteria]
    return markdown(["criterion", "value", "limit", "outcome"], rows)
