# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What came of harmless changes, as a page and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scipy.stats import binomtest

from harness.accuracy.table import NONE, markdown
from harness.accuracy.trials import OUTPUTS, caught_by, criterion_as_json, environment, limits_line, measured

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.accuracy.harmless import Change
    from harness.accuracy.records import Record
    from harness.accuracy.verdict import Verdict

_LARGEST, _MEAN, _TEXTS, _, _ = OUTPUTS


@dataclass(frozen=True)
class Judged:
    """A change and the verdict on it.

    Attributes:
        change: harmless.
        digest: of its placement; None where there was no EPLB.
        value: accuracy in percent.
        verdict: on it.
    """

    change: Change
    digest: str | None
    value: float | None
    verdict: Verdict

    @property
    def is_alarm(self) -> bool:
        """Whether the gate failed."""
        return self.verdict.answer == "worse"


def rate_limit(alarms: int, trials: int) -> float:
    """Return the exact one-sided 95 % upper limit of a rate (Clopper and Pearson)."""
    return float(binomtest(alarms, trials, alternative="less").proportion_ci(0.95, "exact").high)


def page(baseline: Record, judged: Sequence[Judged]) -> str:
    """Return the page."""
    summary = baseline.summary
    alarms = sum(one.is_alarm for one in judged)
    undecided = sum(one.verdict.answer == "undecided" for one in judged)
    written = (
        f"Written by `python -m harness.accuracy.false_alarms`; {summary.num_questions} questions of "
        f"{summary.task.dataset}, margin {judged[0].verdict.margin:g} points, vLLM {summary.versions.vllm}, "
        f"{summary.environment.get('cores')} cores.\n"
    )
    result = (
        f"**{alarms} alarms in {len(judged)} harmless changes**, {undecided} undecided. The baseline has "
        f"{summary.value:.2f} %, on {summary.placement.ep_size or 1} ranks without redundant experts. Each seed asks in "
        "an order of its own, so many questions at a time, of experts that it places at random, with a replica choice "
        "of its own. One rank is no EPLB: such an arm is judged as the baseline once more.\n"
    )
    parts = [f"# Does the gate pass when nothing is wrong? {summary.model}\n", written, result]
    parts += [_by_dtype(judged), "## Each seed\n", _by_seed(judged)]
    return "\n".join(parts)


def _by_dtype(judged: Sequence[Judged]) -> str:
    columns = [
        "dtype",
        "seeds",
        "alarms",
        "rate (95 %)",
        "largest Δ logprob",
        "largest mean Δ",
        "fewest identical texts",
        "limits",
    ]
    rows = []
    for dtype, some in _split(judged).items():
        alarms = sum(one.is_alarm for one in some)
        largest, mean = (f"{max(_values(some, name)):.1e}" for name in (_LARGEST, _MEAN))
        texts = f"{min(_values(some, _TEXTS)):.2%}"
        rate = f"at most {rate_limit(alarms, len(some)):.1%}"
        rows.append([dtype, str(len(some)), str(alarms), rate, largest, mean, texts, limits_line(dtype)])
    return markdown(columns, rows)


def _split(judged: Sequence[Judged]) -> dict[str, list[Judged]]:
    """Return the outcomes of each dtype: the same seed in two dtypes is not two changes."""
    found: dict[str, list[Judged]] = {}
    for one in judged:
        found.setdefault(one.change.shape.dtype, []).append(one)
    return found


def _values(some: Sequence[Judged], name: str) -> list[float]:
    found = [measured(one.verdict.criteria, name) for one in some]
    return [value for value in found if value is not None] or [0.0]


def _by_seed(judged: Sequence[Judged]) -> str:
    columns = ["seed", "dtype", "ranks", "redundant", "max_num_seqs", "at once", "choice", "placement"]
    columns += ["accuracy", "largest", "mean", "texts", "verdict"]
    rows = []
    for one in judged:
        shape, criteria = one.change.shape, one.verdict.criteria
        drawn = [shape.ranks, shape.redundant, shape.batch, one.change.at_once, one.change.choice]
        figures = [measured(criteria, name) for name in (_LARGEST, _MEAN, _TEXTS)]
        shown = [
            NONE if value is None else form.format(value)
            for value, form in zip(figures, ("{:.1e}", "{:.1e}", "{:.2%}"), strict=True)
        ]
        failed = caught_by(criteria)
        verdict = f"{one.verdict.answer}: {', '.join(failed)}" if failed else one.verdict.answer
        rows.append(
            [
                str(one.change.seed),
                shape.dtype,
                *map(str, drawn),
                NONE if one.digest is None else one.digest[:8],
                NONE if one.value is None else f"{one.value:.2f}",
                *shown,
                verdict,
            ]
        )
    return markdown(columns, rows)


def as_json(baseline: Record, judged: Sequence[Judged]) -> dict[str, Any]:
    """Return the same as an object of JSON, with every criterion of every seed."""
    return {
        "format": 1,
        **environment(baseline),
        "baseline": baseline.summary.value,
        "changes": len(judged),
        "alarms": sum(one.is_alarm for one in judged),
        "dtypes": {
            dtype: {
                "changes": len(some),
                "alarms": alarms,
                "rate_upper_limit_95": rate_limit(alarms, len(some)),
            }
            for dtype, some in _split(judged).items()
            for alarms in [sum(one.is_alarm for one in some)]
        },
        "seeds": [
            {
                **one.change.as_json(),
                "digest": one.digest,
                "accuracy": one.value,
                "alarm": one.is_alarm,
                "verdict": one.verdict.answer,
                "line": one.verdict.line,
                "criteria": [criterion_as_json(found) for found in one.verdict.criteria],
            }
            for one in judged
        ],
    }
