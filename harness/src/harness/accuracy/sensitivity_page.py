# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What came of injected faults, as a page and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from harness.accuracy.faults import is_of_a_replica
from harness.accuracy.table import NONE, markdown
from harness.accuracy.trials import (
    CHECKSUMS,
    OUTPUTS,
    caught_by,
    criterion_as_json,
    environment,
    limits_line,
    measured,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.accuracy.criteria import Criterion
    from harness.accuracy.faults import Fault
    from harness.accuracy.records import Record
    from harness.accuracy.verdict import Verdict

_LARGEST, _MEAN, _TEXTS, _MCNEMAR, _LOSS = OUTPUTS


@dataclass(frozen=True)
class Outcome:
    """What came of one fault.

    Attributes:
        fault: and its place.
        value: accuracy in percent; None where the engine stopped.
        verdict: None likewise.
        stopped: why the engine stopped; None where it served.
        restored: largest |Δ log-probability| to before the first fault, after it was undone.
    """

    fault: Fault
    value: float | None = None
    verdict: Verdict | None = None
    stopped: str | None = None
    restored: float | None = None

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        """Of the verdict; none where the engine stopped."""
        return self.verdict.criteria if self.verdict else ()

    @property
    def is_caught(self) -> bool:
        """Whether the gate fails: an engine that stops has no complete record, so that it cannot pass."""
        return self.verdict is None or self.verdict.answer == "worse"

    @property
    def is_caught_by_outputs(self) -> bool:
        """Whether it fails without the checksums."""
        return self.verdict is None or bool(caught_by(self.criteria, OUTPUTS))

    @property
    def line(self) -> str:
        """What caught it, in a line."""
        if self.verdict is None:
            return f"did not serve: {self.stopped}"
        return f"caught by {', '.join(caught_by(self.criteria))}" if self.is_caught else "NOT CAUGHT"


@dataclass
class Part:
    """The faults of one checkpoint.

    Attributes:
        baseline: without redundant experts.
        clean: with them, before the first fault.
        clean_verdict: must not be worse.
        outcomes: of the faults.
    """

    baseline: Record
    clean: Record
    clean_verdict: Verdict
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def dtype(self) -> str:
        """Of weights and activations."""
        return self.baseline.summary.dtype

    @property
    def name(self) -> str:
        """What the tables call it."""
        return "W8A8, bfloat16" if self.is_int8 else self.dtype

    @property
    def is_int8(self) -> bool:
        """Whether the experts are int8."""
        return any(one.fault.kind == "stale scale" for one in self.outcomes)

    @property
    def is_sensitive(self) -> bool:
        """Whether the gate failed for every fault, and for nothing else."""
        return self.clean_verdict.answer != "worse" and all(one.is_caught for one in self.outcomes)


def page(parts: Sequence[Part]) -> str:
    """Return the page."""
    caught = sum(one.is_caught for part in parts for one in part.outcomes)
    alone = sum(one.is_caught_by_outputs for part in parts for one in part.outcomes)
    total = sum(len(part.outcomes) for part in parts)
    first = parts[0].baseline.summary
    written = (
        f"Written by `python -m harness.accuracy.sensitivity`; {first.num_questions} questions of "
        f"{first.task.dataset}, vLLM {first.versions.vllm}, {first.environment.get('cores')} cores.\n"
    )
    result = (
        f"**{caught} of {total} injected faults make the gate fail; {alone} of {total} by the answers alone, with the "
        "checksums of the replicas left out.** Each is done to one MoE layer of the engine that serves redundant "
        "experts, and undone before the next; `harness.accuracy.faults` says what each changes.\n"
    )
    by_itself = f"Each criterion by itself catches: {_by_itself(parts)}.\n"
    how = (
        "Cells: in how many trials the criterion failed, and the values it found, least to most. Checksums: replicas "
        "equal, as the workers read them. Accuracy: of the baseline → the lowest.\n"
    )
    texts = [
        f"# Does the gate fail when something is wrong? {first.model}\n",
        written,
        result,
        by_itself,
        how,
    ]
    texts += [_by_fault(parts), "## The arms without a fault\n", _clean(parts)]
    texts += ["## Each trial\n", _by_trial(parts)]
    return (
        "\n".join(texts)
        + "\n"
        + "".join(f"Limits of Δ logprob in {limits_line(part.dtype)}.  \n" for part in parts)
    )


def _by_itself(parts: Sequence[Part]) -> str:
    """Return how many faults are caught by each kind of criterion, were it the only one."""
    kinds = {
        "the checksums of the replicas": CHECKSUMS,
        "log-probabilities": (_LARGEST, _MEAN),
        "identical texts": (_TEXTS,),
        "accuracy (McNemar, loss)": (_MCNEMAR, _LOSS),
    }
    outcomes = [one for part in parts for one in part.outcomes]
    shown = [
        f"{name} {sum(bool(caught_by(one.criteria, criteria)) for one in outcomes)}"
        for name, criteria in kinds.items()
    ]
    stopped = sum(one.stopped is not None for one in outcomes)
    return ", ".join(shown) + (f"; the engine stops at {stopped}" if stopped else "")


def _by_fault(parts: Sequence[Part]) -> str:
    columns = ["fault", "dtype", "accuracy", "checksums", "Δ logprob, largest", "Δ logprob, mean"]
    columns += ["identical texts", "McNemar", "loss", "gate", "answers alone"]
    rows = []
    for part in parts:
        for kind in dict.fromkeys(one.fault.kind for one in part.outcomes):
            some = [one for one in part.outcomes if one.fault.kind == kind]
            rows.append([kind, part.name, *_cells(part, some)])
    return markdown(columns, rows)


def _cells(part: Part, some: list[Outcome]) -> list[str]:
    gate = f"{sum(one.is_caught for one in some)} of {len(some)}"
    alone = f"{sum(one.is_caught_by_outputs for one in some)} of {len(some)}"
    served = [one for one in some if one.verdict is not None]
    if not served:
        return ["did not serve", *[NONE] * 6, gate, alone]
    accuracy = f"{part.baseline.summary.value:.2f} → {min(one.value or 0 for one in served):.2f}"
    sums = sum(bool(caught_by(one.criteria, CHECKSUMS)) for one in served)
    found = [f"{sums} of {len(served)}"]
    shown = {
        _LARGEST: "{:.1e}",
        _MEAN: "{:.1e}",
        _TEXTS: "{:.1%}",
        _MCNEMAR: "{:.2g}",
        _LOSS: "{:.2f} points",
    }
    for name, form in shown.items():
        failed = sum(bool(caught_by(one.criteria, [name])) for one in served)
        values = sorted(value for one in served if (value := measured(one.criteria, name)) is not None)
        ends = (
            " … ".join(dict.fromkeys(form.format(value) for value in (values[0], values[-1])))
            if values
            else NONE
        )
        found.append(f"{failed} of {len(served)} ({ends})")
    return [accuracy, *found, gate, alone]


def _clean(parts: Sequence[Part]) -> str:
    columns = [
        "dtype",
        "baseline",
        "clean",
        "Δ logprob, largest",
        "Δ logprob, mean",
        "gate",
        "after faults were undone",
    ]
    rows = []
    for part in parts:
        criteria = part.clean_verdict.criteria
        restored = [one.restored for one in part.outcomes if one.restored is not None]
        rows.append(
            [
                part.name,
                f"{part.baseline.summary.value:.2f}",
                f"{part.clean.summary.value:.2f}",
                f"{measured(criteria, _LARGEST) or 0:.1e}",
                f"{measured(criteria, _MEAN) or 0:.1e}",
                part.clean_verdict.answer,
                f"largest Δ to clean {max(restored):.1e}" if restored else NONE,
            ]
        )
    return markdown(columns, rows)


def _by_trial(parts: Sequence[Part]) -> str:
    columns = ["fault", "dtype", "layer", "slot", "accuracy", "largest", "mean", "texts", "caught by"]
    rows = []
    for part in parts:
        for one in part.outcomes:
            figures = [measured(one.criteria, name) for name in (_LARGEST, _MEAN, _TEXTS)]
            shown = [
                NONE if value is None else form.format(value)
                for value, form in zip(figures, ("{:.1e}", "{:.1e}", "{:.1%}"), strict=True)
            ]
            accuracy = NONE if one.value is None else f"{one.value:.2f}"
            by = ", ".join(caught_by(one.criteria)) or ("did not serve" if one.stopped else "nothing")
            place = [str(one.fault.layer), str(one.fault.slot) if is_of_a_replica(one.fault.kind) else NONE]
            rows.append([one.fault.kind, part.name, *place, accuracy, *shown, by])
    return markdown(columns, rows)


def as_json(parts: Sequence[Part]) -> dict[str, Any]:
    """Return the same as an object of JSON, with every criterion of every trial."""
    return {
        "format": 1,
        **environment(parts[0].baseline),
        "parts": [
            {
                "dtype": part.dtype,
                "experts": "int8" if part.is_int8 else part.dtype,
                "baseline": part.baseline.summary.value,
                "digest": part.clean.summary.placement.digest,
                "clean": _verdict_as_json(part.clean_verdict) | {"accuracy": part.clean.summary.value},
                "faults": [_outcome_as_json(one) for one in part.outcomes],
            }
            for part in parts
        ],
    }


def _outcome_as_json(one: Outcome) -> dict[str, Any]:
    verdict = _verdict_as_json(one.verdict) if one.verdict else {"verdict": None, "criteria": []}
    return {
        **asdict(one.fault),
        "accuracy": one.value,
        "stopped": one.stopped,
        "caught": one.is_caught,
        "caught_by": caught_by(one.criteria) or (["did not serve"] if one.stopped else []),
        "caught_by_answers_alone": one.is_caught_by_outputs,
        "restored_largest": one.restored,
        **verdict,
    }


def _verdict_as_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "verdict": verdict.answer,
        "line": verdict.line,
        "criteria": [criterion_as_json(one) for one in verdict.criteria],
    }
