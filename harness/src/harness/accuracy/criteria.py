# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The criteria of a verdict, in order, each with its value, limit and outcome.

1. EPLB acted: an arm in which it did not proves nothing about it.
2. The copies of each expert hold the same weights, and nothing contradicts the arms' configuration.
3. Alike: one checkpoint, computed by the same releases on one kind of machine.
4. Baseline sound: it answers as it should, not by chance or never.
5. Whole answers: what the limit of tokens cuts counts as wrong, and more than a few measure only that limit.
6. Log-probabilities of the baseline's texts differ by rounding only: the largest, and the mean.
7. Texts stay the same but for what rounding explains.
8. McNemar: a note.
9. Loss: the exact upper limit of the loss in accuracy lies below the margin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from scipy.stats import binom

from harness.accuracy.kind import checkpoints_unknown, unlike
from harness.accuracy.statistics import accuracy_interval, mcnemar, p_loss_above, p_loss_below
from harness.record.tables import one_line

if TYPE_CHECKING:
    from harness.accuracy.limits import Floor, Limits
    from harness.accuracy.pairs import Pairs
    from harness.accuracy.records import Record
    from harness.accuracy.schema import Summary

Outcome = Literal["pass", "fail", "undecided", "not measured", "waived", "note"]
LOSS = "loss"
# Chance that a harmless arm has more changed texts than its limit.
_TEXTS_ALPHA = 0.01
# Points that a baseline may surely lack of what others measured, and share of answers that may be cut short.
_FAR_POINTS, _MOST_CUT = 5.0, 0.05


@dataclass(frozen=True)
class Criterion:
    """One thing that was looked at.

    Attributes:
        name: of the criterion, the same in every verdict.
        outcome: what came of it; a note decides nothing.
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


def find(
    records: tuple[Record, Record],
    pairs: Pairs,
    limits: Limits,
    floor: Floor | None,
    *,
    margin: float,
    loss_limit: float,
    alpha: float,
    repeat: bool,
) -> tuple[Criterion, ...]:
    """Return all criteria in their order.

    Args:
        records: the baseline and the arm.
        pairs: of their questions.
        limits: of rounding.
        floor: of rounding in 16 bits; None where it was not measured.
        margin: in points.
        loss_limit: exact upper limit of the loss, in points.
        alpha: most chance of a wrong verdict.
        repeat: the arm is the baseline once more.
    """
    baseline, arm = records
    return (
        _acted(baseline, arm, repeat=repeat),
        _replicas(baseline, arm, repeat=repeat),
        _as_declared(baseline, arm),
        _alike(baseline.summary, arm.summary),
        _sound(baseline.summary, pairs),
        _whole(pairs),
        *_log_probabilities(pairs, limits, floor, repeat=repeat),
        _texts(pairs, limits, floor, repeat=repeat),
        _mcnemar(pairs, alpha),
        _loss(pairs, margin, loss_limit, alpha),
    )


def _acted(baseline: Record, arm: Record, *, repeat: bool) -> Criterion:
    name, limit = "EPLB acted", "active, and another placement than the baseline's"
    before, after = baseline.summary.placement, arm.summary.placement
    if baseline.summary.role == "baseline" and before.eplb_active:
        return Criterion(name, "fail", "active in the baseline", "inactive in the baseline")
    if repeat:
        if baseline.summary.role != "baseline":
            return Criterion(name, "fail", "no repeat: the first is an EPLB arm", "two baselines")
        if after.eplb_active or arm.summary.role == "eplb":
            return Criterion(name, "fail", "no repeat: an EPLB arm", "a second baseline")
        return Criterion(name, "note", "a repeat of the baseline", "–")
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


def _replicas(baseline: Record, arm: Record, *, repeat: bool) -> Criterion:
    name = "replicas equal"
    if baseline.summary.placement.replica_checksums == "differ":
        return Criterion(name, "fail", "checksums differ in the baseline", "equal")
    found = arm.summary.placement.replica_checksums
    # A baseline need not be readable, and has no replicas.
    unread: Outcome = "note" if repeat else "not measured"
    outcomes: dict[str, Outcome] = {"equal": "pass", "differ": "fail", "not read": unread}
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
    if record.summary.role != "eplb":
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
    both = [
        fault for one in (baseline, arm) for fault in (*one.summary.placement.faults, *_contradictions(one))
    ]
    name, limit = "as declared", "no faults"
    if both:
        return Criterion(name, "fail", "; ".join(map(one_line, both)), limit)
    if baseline.summary.placement.digest is None:
        return Criterion(name, "not measured", "the baseline's placement was not read", limit)
    return Criterion(name, "pass", limit, limit)


def _alike(before: Summary, after: Summary) -> Criterion:
    name, limit = "alike", "one checkpoint, the same releases, one kind of machine"
    found = unlike(before, after)
    if found:
        return Criterion(name, "undecided", "; ".join(found), limit)
    unknown = checkpoints_unknown(before, after)
    return Criterion(name, "not measured" if unknown else "pass", unknown or "nothing differs", limit)


def _sound(summary: Summary, pairs: Pairs) -> Criterion:
    name, expected = "baseline sound", summary.expected
    low, high = (100 * end for end in accuracy_interval(pairs.right, pairs.outcomes.questions))
    value = f"{100 * pairs.right / pairs.outcomes.questions:.2f} % right"
    wanted = f"more than chance ({expected.chance:g} %)"
    if expected.accuracy is not None:
        wanted += f", and about the {expected.accuracy:g} % that are expected"
    outcome: Outcome = "pass"
    if low <= expected.chance:
        outcome, value = "undecided", f"{value}, as by chance: it loses nothing that an arm could lose, too"
    elif expected.accuracy is not None and high < expected.accuracy - _FAR_POINTS:
        outcome, value = "undecided", f"{value}, far below the {expected.accuracy:g} % that are expected"
    return Criterion(name, outcome, value, wanted, low, expected.chance)


def _whole(pairs: Pairs) -> Criterion:
    most = max(pairs.cut)
    share = most / pairs.outcomes.questions
    value = f"{pairs.cut[0]} and {pairs.cut[1]} cut at the limit of tokens, which count as wrong"
    outcome: Outcome = "pass" if share <= _MOST_CUT else "undecided"
    limit = f"≤ {100 * _MOST_CUT:g} % cut"
    return Criterion("whole answers", outcome, value if most else "none cut", limit, share, _MOST_CUT)


def _log_probabilities(pairs: Pairs, limits: Limits, floor: Floor | None, *, repeat: bool) -> list[Criterion]:
    found = pairs.differences
    criteria = []
    for name in ("largest", "mean"):
        title = f"log-probabilities, {name}"
        bound = float(getattr(limits, name))
        if found is None:
            why = pairs.why_not or "no log-probabilities"
            criteria.append(Criterion(title, "not measured", why, f"≤ {bound:.1e}", None, bound))
            continue
        value = float(getattr(found, name))
        shown = f"{value:.1e} of {found.tokens:,} tokens"
        if name == "largest" and value > 0:
            shown += f", question {found.question}"
        if limits.lacks_floor(name, floor):
            criteria.append(_without_floor(title, shown, value, repeat=repeat))
            continue
        bound = limits.of(name, found.unsure, found.tokens, floor)
        outcome: Outcome = "pass" if value <= bound else "fail"
        criteria.append(Criterion(title, outcome, shown, f"≤ {bound:.1e}", value, bound))
    return criteria


def _without_floor(name: str, shown: str, value: float, *, repeat: bool) -> Criterion:
    """Return the criterion of what only a repeat of the baseline has a limit for; a repeat is that limit."""
    if repeat:
        return Criterion(name, "note", shown, "is the floor", value)
    return Criterion(name, "not measured", f"{shown}, but no repeat of the baseline", "of a repeat", value)


def _texts(pairs: Pairs, limits: Limits, floor: Floor | None, *, repeat: bool) -> Criterion:
    """Allow as many changed texts as chance would bring at the limit's share, and those that became right."""
    name, questions = "identical texts", pairs.outcomes.questions
    share = pairs.identical / questions
    value = f"{pairs.identical:,} of {questions:,} ({100 * share:.2f} %)"
    if pairs.improved:
        value += f", {pairs.improved} of the others became right"
    if limits.lacks_floor("identical", floor):
        return _without_floor(name, value, share, repeat=repeat)
    allowed = int(binom.isf(_TEXTS_ALPHA, questions, limits.changed(floor)))
    least = (questions - allowed) / questions
    outcome: Outcome = "pass" if pairs.identical + pairs.improved >= questions - allowed else "fail"
    return Criterion(name, outcome, value, f"≥ {questions - allowed:,}", share, least)


def _mcnemar(pairs: Pairs, alpha: float) -> Criterion:
    p = mcnemar(pairs.outcomes)
    value = f"p = {p:.3g}: {pairs.outcomes.losses} lost, {pairs.outcomes.gains} gained"
    value += ", a significant loss, however small" if p <= alpha else ""
    return Criterion("McNemar", "note", value, "decides nothing", p, alpha)


def _loss(pairs: Pairs, margin: float, loss_limit: float, alpha: float) -> Criterion:
    outcome: Outcome = "undecided"
    if p_loss_below(pairs.outcomes, margin / 100) <= alpha:
        outcome = "pass"
    elif p_loss_above(pairs.outcomes, margin / 100) <= alpha:
        outcome = "fail"
    value = f"at most {points_shown(loss_limit, margin)} points ({100 * (1 - alpha):g} %, exact)"
    return Criterion(LOSS, outcome, value, f"< {margin:.2f} points", loss_limit, margin)


def points_shown(loss: float, margin: float) -> str:
    """Show a loss with as many digits as tell it from the margin, and zero without a sign."""
    digits = next((digits for digits in range(2, 9) if round(loss, digits) != margin), 2)
    shown = f"{loss:.{digits}f}"
    return shown.removeprefix("-") if float(shown) == 0 else shown
