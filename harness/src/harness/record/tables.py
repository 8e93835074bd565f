# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Tables for the terminal and for pages, and the page itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.record.schema import Provenance

NONE = "–"
# Room for many columns where the output goes to a file.
_FILE_WIDTH = 180


def one_line(text: str) -> str:
    """Return a text with every run of white space, line breaks too, as a space."""
    return " ".join(text.split())


def points(value: float, *, signed: bool = False) -> str:
    """Return a number with two decimals; what rounds to zero is no "-0.00"."""
    rounded = round(value, 2) + 0.0  # −0.0 + 0.0 is 0.0
    return f"{rounded:+.2f}" if signed else f"{rounded:.2f}"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: int | None = None) -> str:
    """Return a table.

    Args:
        columns: headings.
        rows: cells; a bar in one would end it and becomes a slash, a line break a space.
        right: columns from this one on are aligned to the right; none where it is None.
    """
    left = len(columns) if right is None else right
    rule = ["---"] * left + ["---:"] * (len(columns) - left)
    lines = [columns, rule, *rows]
    return "".join(f"| {' | '.join(one_line(cell).replace('|', '/') for cell in line)} |\n" for line in lines)


@dataclass(frozen=True)
class Sheet:
    """A table, or a section without one.

    Attributes:
        title: its heading.
        about: a paragraph above it.
        columns: the headings of the columns; none where there is no table.
        rows: the cells.
        notes: lines below it.
        folded: whether a page shows it only when asked.
        right: columns from this one on are numbers; None where all are text.
    """

    title: str
    about: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()
    folded: bool = False
    right: int | None = 1

    @property
    def body(self) -> str:
        """It in Markdown, without its heading."""
        table = markdown(self.columns, self.rows, right=self.right).strip() if self.columns else ""
        notes = "\n".join(f"- {note}" for note in self.notes)
        return "\n\n".join(part for part in (self.about, table, notes) if part)

    def rich(self) -> Table:
        """Return it for the terminal; what stands in brackets, such as log2phy[ids], is no markup."""
        table = Table(title=Text(self.title), title_justify="left", caption_justify="left")
        table.caption = Text("\n".join(self.notes)) if self.notes else None
        for index, name in enumerate(self.columns):
            is_number = self.right is not None and index >= self.right
            table.add_column(Text(name), justify="right" if is_number else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table


def show(*parts: Sheet | Table | Text | str) -> None:
    """Print tables and lines; where the output goes to a file, with room for many columns."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_FILE_WIDTH)
    for part in parts:
        console.print(part.rich() if isinstance(part, Sheet) else part, markup=False, highlight=False)


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
