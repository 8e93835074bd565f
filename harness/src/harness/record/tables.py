# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Tables for the terminal and for pages, and the page itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.record.schema import Provenance

NONE = "–"
# Room for many columns where the output goes to a file.
FILE_WIDTH = 180


@dataclass(frozen=True)
class Sheet:
    """A table: the first column is text, the others are numbers.

    Attributes:
        title: its heading.
        about: a paragraph above it.
        columns: the headings of the columns.
        rows: the cells.
        notes: lines below it.
        folded: whether a page shows it only when asked.
    """

    title: str
    about: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    folded: bool = False

    @property
    def body(self) -> str:
        """It in Markdown, without its heading."""
        lines = [self.columns, ["---", *["---:"] * (len(self.columns) - 1)], *self.rows]
        table = "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
        notes = "\n".join(f"- {note}" for note in self.notes)
        return "\n\n".join(part for part in (self.about, table, notes) if part)

    def markdown(self) -> str:
        """Return it as a section of Markdown."""
        return f"## {self.title}\n\n{self.body}\n"

    def rich(self) -> Table:
        """Return it for the terminal; what stands in brackets, such as log2phy[ids], is no markup."""
        table = Table(title=Text(self.title), title_justify="left", caption_justify="left")
        table.caption = Text("\n".join(self.notes)) if self.notes else None
        for index, name in enumerate(self.columns):
            table.add_column(Text(name), justify="right" if index else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table


def number(value: float | None, digits: int = 3) -> str:
    """Write a number with three digits that say something, and no exponent."""
    if value is None or not math.isfinite(value):
        return NONE
    before_point = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    return f"{value:.{max(0, min(digits - before_point, 3))}f}"


def measured_on(provenance: Provenance) -> str:
    """Return a sentence on where and with what a run was made."""
    device = provenance.device
    parts: list[str] = []
    if device is not None:
        more = [f"driver {device.driver}" if device.driver else "", device.toolkit or ""]
        parts.append(f"{device.kind} {device.name}" + "".join(f", {text}" for text in more if text))
    if provenance.cpus is not None:
        parts.append(f"{provenance.cpus} CPUs ({provenance.machine})")
    parts += [f"Python {provenance.python}"] if provenance.python else []
    parts += [f"{name} {version}" for name, version in provenance.versions.items()]
    parts += [f"{name}={value}" for name, value in provenance.environment.items()]
    if provenance.commit is not None:
        changed = " with changes" if provenance.dirty else ""
        parts.append(f"commit {provenance.commit[:12]}{changed}")
    if provenance.date is not None:
        parts.append(provenance.date)
    return "; ".join(parts) + "."


def template_text(name: str) -> str:
    """Return a file of the folder `templates` as it stands."""
    return (resources.files("harness.record") / "templates" / name).read_text(encoding="utf-8")


def page(template: str = "page.md.j2", /, **fields: Any) -> str:  # noqa: ANN401 - what the template names
    """Return a page.

    Args:
        template: of the folder `templates`.
        fields: what it names. `page.md.j2`: `title`, `intro` (paragraphs), `measured`, `picture` (with `title`
            and `address`), `sections` (`Sheet`s) and `left_out` (lines); what is absent is left away.
    """
    # Only who writes pages needs it.
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(
        loader=PackageLoader("harness.record"),
        autoescape=select_autoescape(enabled_extensions=("html.j2",)),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**fields).strip() + "\n"
