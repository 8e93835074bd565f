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
    losses = gains = identical = improved = rescored = 0
    lost = []
    for question in baseline.questions:
        other = others[question.doc_hash]
        if question.prompt_hash != other.prompt_hash:
            msg = (
                f"{arm.folder}: prompt_hash of question {question.index} is {other.prompt_hash!r}; expected "
                f"{question.prompt_hash!r}, as in {baseline.folder}"
            )
            raise RecordError(msg)
        if question.target != other.target:
            msg = (
                f"{arm.folder}: target of question {question.index} is {other.target!r:.40}; expected "
                f"{question.target!r:.40}, as in {baseline.folder}"
            )
            raise RecordError(msg)
        losses += question.is_right > other.is_right
        gains += question.is_right < other.is_right
        same = question.text == other.text
        identical += same
        improved += question.is_right < other.is_right and not same
        rescored += question.correct != other.correct and same
        if question.is_right > other.is_right:
            lost.append(question.index)
    differences, why_not = _differences(baseline, arm)
    counts = Paired(len(own), losses, gains)
    cut = tuple(sum(one.is_cut for one in record.questions) for record in (baseline, arm))
    right = sum(one.is_right for one in baseline.questions)
    return Pairs(
        counts, identical, tuple(lost), differences, why_not, improved, rescored, (cut[0], cut[1]), right
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
    largest, total, tokens, worst, unsure = 0.0, 0.0, 0, 0, 0.0
    for question in baseline.questions:
        first, second = own[question.doc_hash], others[question.doc_hash]
        if len(first) != len(second):
            msg = (
                f"{arm.folder}: {len(second)} log-probabilities of question {question.index}; expected "
                f"{len(first)}, as in {baseline.folder}"
            )
            raise RecordError(msg)
        if not first:
            if question.text and baseline.summary.role == "baseline":
                msg = f"{baseline.folder}: no log-probabilities of question {question.index}; expected one a token of its text"
                raise RecordError(msg)
            continue
        apart = np.abs(np.array(first) - np.array(second))
        total, tokens = total + float(apart.sum()), tokens + len(first)
        unsure += float(-np.expm1(np.minimum(first, 0.0)).sum())
        if apart.max() > largest:
            largest, worst = float(apart.max()), question.index
    if tokens == 0:
        return None, "the scored texts have no tokens"
    return Differences(largest, total / tokens, tokens, worst, unsure / tokens), None
