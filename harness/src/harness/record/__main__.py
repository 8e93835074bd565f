# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How a metric went from run to run, on one kind of machine at a time, and where it took a step.

python -m harness.record FILE [--metric NAME]
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path  # noqa: TC003 - typer reads annotations at run time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expert_maps import ExpertMapsError
from harness.record import history
from harness.record.steps import ALPHA, LEAST, find_steps
from harness.record.tables import NONE, Sheet, number, show

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.record.schema import RunRecord
    from harness.record.steps import Step


def metrics_of(record: RunRecord) -> dict[str, float]:
    """Return the numbers of a run by name: levels are parted by dots, and of a list of numbers the median is taken.

    Rows are named by their `benchmark`, or counted.
    """
    return dict(_numbers({**record.quality, **record.performance}, ""))


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:  # noqa: ANN401 - JSON
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name, float(value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and value:
        if all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in value):
            yield name, float(statistics.median(value))
            return
        for place, row in enumerate(value):
            key = row.get("benchmark", place) if isinstance(row, dict) else place
            yield from _numbers(row, f"{name}.{key}")


def series(records: Sequence[RunRecord], metric: str) -> dict[tuple[str, ...], list[tuple[RunRecord, float]]]:
    """Return the runs that have a metric, oldest first, by what makes them comparable: name and machine."""
    found: dict[tuple[str, ...], list[tuple[RunRecord, float]]] = defaultdict(list)
    for record in records:
        value = metrics_of(record).get(metric)
        if value is not None:
            found[_machine(record)].append((record, value))
    return dict(found)


def _machine(record: RunRecord) -> tuple[str, ...]:
    where, device = record.provenance, record.provenance.device
    parts = [record.kind, record.name]
    parts += (
        [NONE] if device is None else [device.kind, device.name, device.driver or "", device.toolkit or ""]
    )
    return (*parts, where.machine or "", f"{where.cpus} CPUs", f"OMP_NUM_THREADS {where.threads}")


def sheet(metric: str, key: tuple[str, ...], runs: Sequence[tuple[RunRecord, float]]) -> Sheet:
    """Return the table of one series, with its steps."""
    steps = {step.place: step for step in find_steps([value for _, value in runs])}
    rows = [
        [
            record.provenance.date or NONE,
            f"{record.provenance.commit or NONE:.12}{' and changes' if record.provenance.dirty else ''}",
            number(value),
            _shown(steps.get(place)),
        ]
        for place, (record, value) in enumerate(runs)
    ]
    notes = [f"{len(runs)} runs: fewer than {LEAST} show no step"] if len(runs) < LEAST else []
    if len(runs) >= LEAST and not steps:
        notes = [f"no step; noise alone shows one in at most {100 * ALPHA:g} % of histories"]
    where = ", ".join(part for part in key[1:] if part)
    return Sheet(f"{metric} · {where}", "", ["date", "commit", metric, "step"], rows, notes)


def _shown(step: Step | None) -> str:
    if step is None:
        return ""
    change = f", {100 * (step.after / step.before - 1):+.1f} %" if step.before else ""
    return f"{number(step.before)} → {number(step.after)}{change} (p = {step.p:.2g})"


def main(
    file: Annotated[Path, typer.Argument(help="Records, a line of JSON each.")],
    metric: Annotated[
        str | None, typer.Option("--metric", help="Its name; without it the names that there are.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Only runs of this name.")] = None,
) -> None:
    """Show how a metric went from run to run, machine by machine, and where it took a step."""
    try:
        records = [one for one in history.read(file) if name in {None, one.name}]
    except ExpertMapsError as error:
        raise _refuse(str(error)) from error
    known = sorted({one for record in records for one in metrics_of(record)})
    if not known:
        msg = f"name is {name!r}; expected that of a run of {file} with a number"
        raise _refuse(msg)
    if metric is None:
        typer.echo("\n".join(known))
        return
    if metric not in known:
        few = ", ".join(known[:3])
        msg = f"metric is {metric!r:.60}; expected one that is listed without --metric, such as {few}"
        raise _refuse(msg)
    show(*(sheet(metric, key, runs) for key, runs in series(records, metric).items()))


def _refuse(reason: str) -> typer.Exit:
    typer.echo(f"error: {' '.join(reason.split())}", err=True)
    return typer.Exit(2)


if __name__ == "__main__":
    typer.run(main)
