# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Whether an arm is no worse than the baseline: three answers, from criteria that each say what was found.

Worse, where a criterion fails. No worse, where all pass. Undecided otherwise: what is needed and was not measured is no
pass, and the line names it. `harness.accuracy.criteria` has the criteria.

The margin decides accuracy: the exact upper limit of the loss lies below it (pass), the exact lower limit above it
(fail), or neither (undecided, with the number of further questions that would close it). A true loss of the margin is
called "no worse" at most with chance alpha. McNemar's test says whether any loss is significant, which with enough
questions the smallest is: it is shown and decides nothing. No gain in accuracy fails anything.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from harness.accuracy.criteria import LOSS, Criterion, find, points_shown
from harness.accuracy.limits import Floor, limits_for
from harness.accuracy.pairs import pair
from harness.accuracy.power import Aim, more_questions
from harness.accuracy.statistics import largest_loss, tango_interval

if TYPE_CHECKING:
    from collections.abc import Collection

    from harness.accuracy.limits import Limits
    from harness.accuracy.pairs import Pairs
    from harness.accuracy.records import Record

Answer = Literal["no worse", "worse", "undecided"]
EXIT_CODES: dict[Answer, int] = {"no worse": 0, "worse": 1, "undecided": 3}
MARGIN_POINTS = 1.0


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
    floor: Record | None = None,
    waived: Collection[str] = (),
    repeat: bool = False,
    aim: Aim | None = None,
) -> Verdict:
    """Judge an arm against the baseline.

    Args:
        baseline: a complete record.
        arm: a complete record of the same questions.
        margin: largest loss that is accepted, in points of accuracy, in (0, 100).
        limits: of rounding; those of the dtype where it is None.
        floor: the baseline once more, from which 16-bit limits come; None where there is none.
        waived: names of criteria that need not be measured.
        repeat: the arm is the baseline once more, so that nothing is asked of EPLB; so is every arm of that role.
        aim: 5 % and 80 % where it is None.

    Raises:
        RecordError: the records cannot be compared.
        ValueError: the margin is out of range, the dtype has no limits, or a waived name is that of no criterion.
    """
    if not 0 < margin < 100:  # noqa: PLR2004 - percent
        msg = f"margin is {margin:g} points; expected more than 0 and less than 100"
        raise ValueError(msg)
    aim = aim or Aim()
    pairs = pair(baseline, arm)
    limits = limits or limits_for(baseline.summary.dtype)
    repeat = repeat or arm.summary.role == "repeat"
    loss_limit = 100 * largest_loss(pairs.outcomes, aim.alpha)
    # A repeat is not measured against itself.
    rounding = None if floor is None or floor.folder == arm.folder else floor_of(baseline, floor)
    numbers = {"margin": margin, "loss_limit": loss_limit, "alpha": aim.alpha}
    criteria = _waive(find((baseline, arm), pairs, limits, rounding, **numbers, repeat=repeat), waived)
    answer = _answer(criteria)
    is_open = next(one.outcome for one in criteria if one.name == LOSS) == "undecided"
    more = more_questions(pairs.outcomes, margin / 100, aim) if answer == "undecided" and is_open else None
    low, high = tango_interval(pairs.outcomes)
    verdict = Verdict(answer, "", criteria, pairs, (100 * low, 100 * high), loss_limit, margin, more)
    return replace(verdict, line=_line(verdict))


def floor_of(baseline: Record, repeat: Record) -> Floor | None:
    """Return what rounding alone does; None where the repeat scored no texts of the baseline's.

    Raises:
        RecordError: it is no repeat, or was asked something else.
    """
    pairs = pair(baseline, repeat)
    if pairs.differences is None:
        return None
    changed = 1 - pairs.identical / pairs.outcomes.questions
    return Floor(pairs.differences.largest, pairs.differences.mean, changed)


def _waive(criteria: tuple[Criterion, ...], waived: Collection[str]) -> tuple[Criterion, ...]:
    """Let what was waived be open.

    Raises:
        ValueError: there is no such criterion, or it is the loss, which is the question.
    """
    names = [one.name for one in criteria if one.name != LOSS]
    for name in waived:
        if name not in names:
            msg = f"waived is {name!r}; expected one of {', '.join(names)}"
            raise ValueError(msg)
    return tuple(
        replace(one, outcome="waived")
        if one.name in waived and one.outcome in {"not measured", "undecided"}
        else one
        for one in criteria
    )


def _answer(criteria: tuple[Criterion, ...]) -> Answer:
    outcomes = {criterion.outcome for criterion in criteria}
    if "fail" in outcomes:
        return "worse"
    return "undecided" if outcomes & {"undecided", "not measured"} else "no worse"


def _line(verdict: Verdict) -> str:
    criteria, seen = verdict.criteria, verdict.pairs.outcomes
    if verdict.answer == "worse":
        failed = [f"{one.name} ({one.value})" for one in criteria if one.outcome == "fail"]
        line = f"worse: {'; '.join(failed)}"
    else:
        found = (
            f"loss at most {points_shown(verdict.loss_limit, verdict.margin)} points, margin {verdict.margin:.2f}; "
            f"{seen.losses} lost and {seen.gains} gained of {seen.questions} questions"
        )
        reasons = [
            f"{one.name} ({one.value})" for one in criteria if one.outcome == "undecided" and one.name != LOSS
        ]
        if any(one.name == LOSS and one.outcome == "undecided" for one in criteria):
            count = "more than a million" if verdict.more is None else str(verdict.more)
            reasons.append(f"{count} more questions")
        line = ": ".join([verdict.answer, *(["; ".join(reasons)] if reasons else []), found])
    absent = [f"{one.name} ({one.value})" for one in criteria if one.outcome == "not measured"]
    line += f"; not measured: {', '.join(absent)}" if absent else ""
    waived = [one.name for one in criteria if one.outcome == "waived"]
    return line + (f"; waived: {', '.join(waived)}" if waived else "")
