# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Two records, question by question: refused unless both were asked the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from harness.accuracy.kind import refuse_unlike
from harness.accuracy.records import texts_digest
from harness.accuracy.schema import RecordError
from harness.accuracy.statistics import Paired

if TYPE_CHECKING:
    from harness.accuracy.records import Record


@dataclass(frozen=True)
class Differences:
    """|Δ log-probability| of forced tokens between two arms.

    Attributes:
        largest: over tokens.
        mean: over tokens.
        tokens: how many there are.
        question: index of the question with the largest.
        unsure: mean of 1 − p over the baseline's tokens.
    """

    largest: float
    mean: float
    tokens: int
    question: int
    unsure: float = 0.0


@dataclass(frozen=True)
class Pairs:
    """Two arms on the same questions.

    Attributes:
        outcomes: counts of questions, losses and gains.
        identical: questions with the same text.
        lost: indices of questions that only the baseline has right.
        improved: questions that only the arm has right, with another text.
        cut: answers of either that the limit of tokens ended; they count as wrong.
        right: questions that the baseline has right.
        rescored: questions whose text is the same and whose outcome is not; a scorer does not do that.
        differences: None where log-probabilities cannot be compared.
        why_not: the reason for that.
    """

    outcomes: Paired
    identical: int
    lost: tuple[int, ...]
    differences: Differences | None
    why_not: str | None
    improved: int = 0
    rescored: int = 0
    cut: tuple[int, int] = (0, 0)
    right: int = 0


def pair(baseline: Record, arm: Record) -> Pairs:
    """Pair two complete records on the hash of the question.

    Raises:
        RecordError: a record is not complete, they are not of one kind, or differ in questions or prompts.
    """
    refuse_unlike(baseline, arm)
    others = {question.doc_hash: question for question in arm.questions}
    own = {question.doc_hash for question in baseline.questions}
    if own != others.keys():
        msg = (
            f"{arm.folder}: {len(own - others.keys())} questions of {baseline.folder} are missing and "
            f"{len(others.keys() - own)} are not in it; expected the same questions"
        )
        raise RecordError(msg)
    for question in baseline.questions:
        other = others[question.doc_hash]
        for name, width in (("prompt_hash", None), ("target", 40)):
            found, expected = (repr(getattr(one, name))[:width] for one in (other, question))
            if getattr(other, name) != getattr(question, name):
                msg = (
                    f"{arm.folder}: {name} of question {question.index} is {found}; expected {expected}, "
                    f"as in {baseline.folder}"
                )
                raise RecordError(msg)
    both = [(question, others[question.doc_hash]) for question in baseline.questions]
    lost = tuple(own.index for own, other in both if own.is_right > other.is_right)
    gained = [own.text != other.text for own, other in both if own.is_right < other.is_right]
    same = [(own, other) for own, other in both if own.text == other.text]
    differences, why_not = _differences(baseline, arm)
    return Pairs(
        Paired(len(both), len(lost), len(gained)),
        identical=len(same),
        lost=lost,
        differences=differences,
        why_not=why_not,
        improved=sum(gained),
        rescored=sum(own.correct != other.correct for own, other in same),
        cut=(sum(own.is_cut for own, _ in both), sum(other.is_cut for _, other in both)),
        right=sum(own.is_right for own, _ in both),
    )


def _differences(baseline: Record, arm: Record) -> tuple[Differences | None, str | None]:
    """Return the differences of forced log-probabilities, or why there are none.

    Raises:
        RecordError: the arms scored the same texts, but not the same tokens.
    """
    absent = [record.folder.name for record in (baseline, arm) if not record.logprobs]
    if not baseline.logprobs or not arm.logprobs:
        return None, f"no log-probabilities of {' and '.join(absent)}"
    source = baseline.logprobs[0].forced_from
    if arm.logprobs[0].forced_from != source:
        return None, f"{baseline.folder.name} and {arm.folder.name} scored different texts"
    if baseline.summary.role == "baseline" and source != texts_digest(
        question.text for question in baseline.questions
    ):
        return None, f"the texts that were scored are not those of {baseline.folder.name}"
    others = {row.doc_hash: row.logprobs for row in arm.logprobs}
    own = {row.doc_hash: row.logprobs for row in baseline.logprobs}
    places: list[int] = []
    before: list[float] = []
    after: list[float] = []
    for question in baseline.questions:
        first, second = own[question.doc_hash], others[question.doc_hash]
        if len(first) != len(second):
            msg = (
                f"{arm.folder}: {len(second)} log-probabilities of question {question.index}; expected "
                f"{len(first)}, as in {baseline.folder}"
            )
            raise RecordError(msg)
        if not first and question.text and baseline.summary.role == "baseline":
            msg = f"{baseline.folder}: no log-probabilities of question {question.index}; expected one a token of its text"
            raise RecordError(msg)
        places += [question.index] * len(first)
        before += first
        after += second
    if not places:
        return None, "the scored texts have no tokens"
    apart = np.abs(np.array(before) - np.array(after))
    largest = int(apart.argmax())
    unsure = -np.expm1(np.minimum(before, 0.0)).mean()
    found = Differences(
        float(apart[largest]), float(apart.mean()), len(places), places[largest], float(unsure)
    )
    return found, None
