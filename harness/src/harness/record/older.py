# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Records of before there was one form: lines of benchmarks, each with its environment, and summaries of arms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from pydantic import ValidationError

from expert_maps.errors import FormatError
from expert_maps.files import describe
from harness.record.provenance import DISTRIBUTIONS
from harness.record.schema import Checkpoint, DeviceRecord, Kind, Provenance, RunRecord, refusal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_VERSIONS = tuple(name.replace("-", "_") for name in DISTRIBUTIONS)
# What a line says of where it was measured.
_CONTEXT = (
    *("python", "machine", "processor", "omp_num_threads", "cores", "cpus", "allocator"),
    *("device", "device_kind", "device_name", *_VERSIONS),
)
_BEGINNINGS: tuple[tuple[str, Kind], ...] = (
    ("planner, ", "planner"),
    ("all maps, ", "maps"),
    ("static map ", "serving"),
    ("commit of a layer", "commits"),
    ("plans of a rearrangement ", "ascend_plans"),
)


def runs(lines: Sequence[Mapping[str, Any]], path: Path) -> list[RunRecord]:
    """Return records from lines that followed one another: those of one environment and kind are one run's.

    Args:
        lines: as they stood, objects without a `format`.
        path: of the file, for messages.

    Raises:
        FormatError: a line is of no benchmark that there has been, or a value is of the wrong type.
    """
    grouped: list[tuple[Kind, dict[str, Any], list[dict[str, Any]]]] = []
    for line in lines:
        kind = _kind(line, path)
        context = {name: line[name] for name in _CONTEXT if name in line}
        rest = {name: value for name, value in line.items() if name not in context}
        repeated = grouped and any(rest["benchmark"] == row["benchmark"] for row in grouped[-1][2])
        if not grouped or grouped[-1][:2] != (kind, context) or (repeated and kind != "npu_ops"):
            grouped.append((kind, context, []))
        grouped[-1][2].append(rest)
    try:
        return [_run(kind, context, rows) for kind, context, rows in grouped]
    except ValidationError as error:
        msg = f"{describe(path)}: {refusal(error)}"
        raise FormatError(msg) from error


def _kind(line: Mapping[str, Any], path: Path) -> Kind:
    name = line.get("benchmark")
    if isinstance(name, str):
        if {"op", "implementation", "variant"} <= line.keys():
            return "npu_ops"
        for beginning, kind in _BEGINNINGS:
            if name.startswith(beginning):
                return kind
    msg = f"{describe(path)}: benchmark is {name!r}, without a format; expected a record of {', '.join(get_args(Kind))}"
    raise FormatError(msg)


def _run(kind: Kind, context: Mapping[str, Any], rows: list[dict[str, Any]]) -> RunRecord:
    name = rows[0]["benchmark"] if len(rows) == 1 else kind
    return RunRecord(kind=kind, name=name, provenance=_provenance(context), performance={"rows": rows})


def _provenance(context: Mapping[str, Any]) -> Provenance:
    name = context.get("device_name") or context.get("processor")
    device = None if name is None else DeviceRecord(kind=context.get("device_kind", "cpu"), name=name)
    return Provenance(
        device=device,
        machine=context.get("machine"),
        cpus=context.get("cpus", context.get("cores")),
        threads=context.get("omp_num_threads"),
        python=context.get("python"),
        versions={name: str(context[name]) for name in _VERSIONS if name in context},
        environment=context.get("allocator", {}),
    )


def arm(summary: Mapping[str, Any]) -> RunRecord:
    """Return the record of an arm of the accuracy gate from a `summary.json` of format 1, which was checked.

    Args:
        summary: its fields.
    """
    found, versions = summary["environment"], summary["versions"]
    provenance = Provenance(
        date=summary["started"],
        commit=summary["git"]["commit"],
        dirty=summary["git"]["dirty"],
        machine=found.get("machine"),
        system=found.get("system"),
        cpus=found.get("cores"),
        threads=found.get("omp_num_threads"),
        python=versions.get("python"),
        versions={name: str(value) for name, value in versions.items() if value and name != "python"},
        environment={**found.get("variables", {}), **summary["server"]["environment"]},
        checkpoint=Checkpoint(name=summary["model"]),
    )
    quality = {name: summary[name] for name in ("status", "reason", "value", "num_questions", "num_correct")}
    return RunRecord(
        kind="accuracy",
        name=summary["arm"],
        settings={name: summary[name] for name in ("role", "task", "dtype", "server")},
        provenance=provenance,
        proof=summary["placement"],
        quality={**quality, "load": summary["load"]},
        performance={"seconds": summary["seconds"]},
    )
