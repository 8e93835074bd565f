# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The table release × chip × what, for the terminal and for the plugin's page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from expert_maps.files import write_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.ascend.session import Row

PAGE = Path("packages/vllm-ascend-moe/docs/emulated.md")
BEGIN, END = "<!-- emulated: begin, written by nox -s ascend -- --all -->", "<!-- emulated: end -->"
_LACKS = "The table is of a run before some cases"
COLUMNS = ("vllm-ascend", "chip", "model", "what", "path", "tokens equal", "slots right", "seconds")


def cells(row: Row) -> tuple[str, ...]:
    """Return a line of the table."""
    case, judged = row.case, row.judged
    if judged.problems:
        # A log's last lines are for the terminal, where each case ends.
        equal, slots = "FAILED", "; ".join(problem.partition("\n")[0] for problem in judged.problems)
    elif case.expected != "right":
        equal, slots = case.expected, "–"
    else:
        equal = "–" if judged.equal is None else f"{judged.equal[0]} of {judged.equal[1]}"
        slots = str(judged.slots) if judged.slots else "–"
    return (
        row.release,
        case.chip,
        case.model.name,
        case.name,
        ", ".join(judged.paths) or "–",
        equal,
        slots,
        f"{judged.seconds:.0f}",
    )


def rich_table(rows: Sequence[Row]) -> Table:
    """Return the table for a terminal."""
    table = Table(title="emulated, not hardware")
    for name in COLUMNS:
        table.add_column(name)
    for row in rows:
        table.add_row(*cells(row))
    return table


def markdown(rows: Sequence[Row]) -> str:
    """Return the table for a page: a line for each chip and case, a column for each release."""
    releases = list(dict.fromkeys(row.release for row in rows))
    lines: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        line = lines.setdefault((row.case.name, row.case.chip, row.case.model.name), {})
        line[row.release] = _outcome(row)
    head = ["served", "chip", "model", *releases]
    table = [head, ["---"] * len(head)]
    table += [[*what, *(line.get(release, "–") for release in releases)] for what, line in lines.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in table) + "\n"


def _outcome(row: Row) -> str:
    *_, path, equal, slots, seconds = cells(row)
    if row.judged.problems:
        return f"FAILED: {slots}"
    if row.case.expected != "right":
        return f"{row.case.expected}; {seconds} s"
    return f"{equal}; {slots}; {seconds} s ({path})"


def write(rows: Sequence[Row], page: Path = PAGE) -> None:
    """Put the table between its marks in the page, and take away the line that says what it lacks.

    Raises:
        ValueError: the marks are not there.
    """
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        msg = f"{page} has no {BEGIN if not begin else END}; expected both, around the table"
        raise ValueError(msg)
    before = "\n\n".join(part for part in before.split("\n\n") if not part.startswith(_LACKS))
    write_text(page, f"{before}{BEGIN}\n{markdown(rows)}{END}{after}")
