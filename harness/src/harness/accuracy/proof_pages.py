# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Pages of injected faults and of harmless changes, from the JSON that a proof writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.accuracy import halves
from harness.accuracy.halves import LARGEST, MEAN, NEEDED, SEEDS, TEXTS, failed, measured
from harness.record.tables import NONE, Sheet, page

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.accuracy.halves import Proof, Trial

CHECKSUMS, LOSS = ("replicas equal", "as declared"), "loss"
# What looks at answers alone: without these a fault is seen by checksums only, which need the workers' report.
OUTPUTS = (LARGEST, MEAN, TEXTS, LOSS)
_FORMS = {LARGEST: "{:.1e}", MEAN: "{:.1e}", TEXTS: "{:.1%}", LOSS: "{:.2f} points"}
# Faults of a whole table, which are of no replica.
_OF_TABLES = ("log2phy", "physical-length")
SET = (
    f"The limits of log-probabilities are set on the even trials ({halves.RULE['float32']:g} times the most that a harmless change does "
    f"there in float32, {halves.RULE['bfloat16']:g} times in 16 bits) and proven on the odd ones. An upper limit of "
    f"{halves.RATE:.0%} needs {NEEDED} odd trials without one that is wrong, so {SEEDS} trials of a dtype."
)


def _shown(form: str, value: float | None) -> str:
    return NONE if value is None else form.format(value)


def _range(trials: Sequence[Trial], name: str) -> str:
    values = sorted(value for one in trials if (value := measured(one, name)) is not None)
    ends = dict.fromkeys(_FORMS[name].format(value) for value in values[:1] + values[-1:])
    return " … ".join(ends) or NONE


def _written(record: dict[str, Any], command: str) -> str:
    task, versions = record["task"], record["versions"]
    return (
        f"Written by `python -m harness.accuracy.{command}`; {record['questions']} questions of {task['dataset']}, vLLM "
        f"{versions['vllm']}, {record['environment'].get('cores')} cores."
    )


def _proof_row(proof: Proof) -> list[str]:
    limits = [_shown("{:.1e}", proof.largest), _shown("{:.1e}", proof.mean)]
    bound = f"at most {proof.rate:.1%}" if proof.proving else "not proven"
    return [proof.dtype, str(proof.setting), *limits, str(proof.proving), str(proof.count), bound]


def alarms_page(record: dict[str, Any]) -> str:
    """Return the page of harmless changes.

    Args:
        record: `false_alarms.json`.
    """
    trials = record["seeds"]
    alarms = sum(bool(failed(one)) for one in trials)
    undecided = sum(one["verdict"] == "undecided" for one in trials)
    result = (
        f"**{alarms} alarms in {len(trials)} harmless changes**, {undecided} undecided. The baseline has {record['baseline']:.2f} %. "
        "Each seed asks in an order of its own, so many questions at a time, of experts that it places at random, with a "
        "replica choice of its own. One rank is no EPLB: such an arm is judged as the baseline once more."
    )
    columns = ["dtype", "set on", "largest Δ", "mean Δ", "proven on", "alarms", "rate (95 %)"]
    rows = [
        _proof_row(halves.prove_harmless(dtype, [one for one in trials if one["dtype"] == dtype]))
        for dtype in dict.fromkeys(one["dtype"] for one in trials)
    ]
    names = ["seed", "dtype", "half", "ranks", "redundant", "max_num_seqs", "at once", "choice", "placement"]
    seeds = [
        [
            *(str(one["seed"]), one["dtype"], "proves" if halves.proves(one["seed"]) else "sets"),
            *(str(one[name]) for name in ("ranks", "redundant", "batch", "at_once", "choice")),
            (one["digest"] or NONE)[:8],
            _shown("{:.2f}", one["accuracy"]),
            *(_shown(_FORMS[name], measured(one, name)) for name in (LARGEST, MEAN, TEXTS)),
            ": ".join([one["verdict"], *([", ".join(failed(one))] if failed(one) else [])]),
        ]
        for one in trials
    ]
    sections = [
        Sheet("The halves", SET, columns, rows),
        Sheet("Each seed", "", [*names, "accuracy", "largest", "mean", "texts", "verdict"], seeds),
    ]
    title = f"Does the gate pass when nothing is wrong? {record['model']}"
    return page(title=title, intro=[_written(record, "false_alarms"), result], sections=sections)


def faults_page(record: dict[str, Any], harmless: dict[str, Any] | None = None) -> str:
    """Return the page of injected faults.

    Args:
        record: `sensitivity.json`.
        harmless: `false_alarms.json`, which sets the limits; None where there is none.
    """
    parts = record["parts"]
    trials = [(part, one) for part in parts for one in part["faults"]]
    caught = sum(one["caught"] for _, one in trials)
    alone = sum(is_caught_by_answers(one) for _, one in trials)
    result = (
        f"**{caught} of {len(trials)} injected faults make the gate fail; {alone} of {len(trials)} by the answers alone, with the "
        "checksums of the replicas left out.** Each is done to one MoE layer of the engine that serves redundant "
        "experts, and undone before the next; `harness.accuracy.faults` says what each changes."
    )
    cells = (
        "Cells: in how many trials the criterion failed, and the values it found, least to most. Checksums: replicas "
        "equal, as the workers read them. Accuracy: of the baseline → the lowest."
    )
    intro = [
        _written(record, "sensitivity"),
        result,
        f"Each criterion by itself catches: {_by_itself(trials)}.",
        cells,
    ]
    sections = [_by_fault(parts), _fault_halves(parts, harmless), _clean(parts), _by_trial(trials)]
    return page(
        title=f"Does the gate fail when something is wrong? {record['model']}", intro=intro, sections=sections
    )


def is_caught_by_answers(one: Trial) -> bool:
    """Say whether a fault is seen without the checksums: an engine that stops has no complete record."""
    return bool(one["stopped"] or failed(one, OUTPUTS))


def _name(part: dict[str, Any]) -> str:
    return f"W8A8, {part['dtype']}" if part["experts"] == "int8" else str(part["dtype"])


def _by_itself(trials: Sequence[tuple[dict[str, Any], Trial]]) -> str:
    kinds = {
        "the checksums of the replicas": CHECKSUMS,
        "log-probabilities": (LARGEST, MEAN),
        "identical texts": (TEXTS,),
        "accuracy": (LOSS,),
    }
    shown = [f"{name} {sum(bool(failed(one, names)) for _, one in trials)}" for name, names in kinds.items()]
    stopped = sum(bool(one["stopped"]) for _, one in trials)
    return ", ".join(shown) + (f"; the engine stops at {stopped}" if stopped else "")


def _by_fault(parts: Sequence[dict[str, Any]]) -> Sheet:
    columns = [
        "fault",
        "dtype",
        "accuracy",
        "checksums",
        "Δ logprob, largest",
        "Δ logprob, mean",
        "identical texts",
    ]
    rows = []
    for part in parts:
        for kind in dict.fromkeys(one["kind"] for one in part["faults"]):
            some = [one for one in part["faults"] if one["kind"] == kind]
            rows.append([kind, _name(part), *_cells(part, some)])
    return Sheet("Each fault", "", [*columns, "loss", "gate", "answers alone"], rows)


def _cells(part: dict[str, Any], some: list[Trial]) -> list[str]:
    ends = [f"{sum(one['caught'] for one in some)} of {len(some)}"]
    ends.append(f"{sum(is_caught_by_answers(one) for one in some)} of {len(some)}")
    served = [one for one in some if not one["stopped"]]
    if not served:
        return ["did not serve", *[NONE] * 5, *ends]
    lowest = min(one["accuracy"] or 0.0 for one in served)
    found = [
        f"{part['baseline']:.2f} → {lowest:.2f}",
        f"{sum(bool(failed(one, CHECKSUMS)) for one in served)} of {len(served)}",
    ]
    for name in OUTPUTS:
        count = sum(bool(failed(one, [name])) for one in served)
        found.append(f"{count} of {len(served)} ({_range(served, name)})")
    return [*found, *ends]


def _fault_halves(parts: Sequence[dict[str, Any]], harmless: dict[str, Any] | None) -> Sheet:
    rows = []
    for part in parts:
        seeds = [one for one in (harmless or {}).get("seeds", ()) if one["dtype"] == part["dtype"]]
        limits = halves.prove_harmless(part["dtype"], seeds) if seeds and part["experts"] != "int8" else None
        row = _proof_row(halves.prove_faults(part["dtype"], limits, part["faults"]))
        rows.append([_name(part), *row[1:]])
    columns = ["dtype", "set on", "largest Δ", "mean Δ", "proven on", "missed", "rate (95 %)"]
    about = f"A trial's number is its layer and its seed. The limits are those of `false_alarms.md`. {SET}"
    return Sheet("The halves", about, columns, rows)


def _clean(parts: Sequence[dict[str, Any]]) -> Sheet:
    rows = []
    for part in parts:
        restored = [one["restored_largest"] for one in part["faults"] if one["restored_largest"] is not None]
        clean = part["clean"]
        figures = [_shown(_FORMS[name], measured(clean, name)) for name in (LARGEST, MEAN)]
        undone = f"largest Δ to clean {max(restored):.1e}" if restored else NONE
        values = [f"{part['baseline']:.2f}", f"{clean['accuracy']:.2f}"]
        rows.append([_name(part), *values, *figures, clean["verdict"], undone])
    columns = [
        "dtype",
        "baseline",
        "clean",
        "Δ logprob, largest",
        "Δ logprob, mean",
        "gate",
        "after faults were undone",
    ]
    return Sheet("The arms without a fault", "", columns, rows)


def _by_trial(trials: Sequence[tuple[dict[str, Any], Trial]]) -> Sheet:
    rows = [
        [
            *(one["kind"], _name(part), str(one["layer"])),
            NONE if one["kind"].startswith(_OF_TABLES) else str(one["slot"]),
            _shown("{:.2f}", one["accuracy"]),
            *(_shown(_FORMS[name], measured(one, name)) for name in (LARGEST, MEAN, TEXTS)),
            ", ".join(failed(one)) or ("did not serve" if one["stopped"] else "nothing"),
        ]
        for part, one in trials
    ]
    columns = ["fault", "dtype", "layer", "slot", "accuracy", "largest", "mean", "texts", "caught by"]
    return Sheet("Each trial", "", columns, rows)
