# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""One HTML file: no script, nothing from elsewhere, light or dark as the reader's system is.

What it holds is well-formed as XML too, so that it can be checked with an XML parser.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from expert_maps.report.svg import text

if TYPE_CHECKING:
    from collections.abc import Sequence

# Colours of the series: Okabe and Ito's, lightened for the dark.
_STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1b1b1b;--soft:#595959;--edge:#d4d4d4;--grid:#ececec;--panel:#f6f6f6;
--s0:#6e6e6e;--s1:#0072b2;--s2:#c04f00;--s3:#00775a;--s4:#a5487f;--s5:#8f6400;--s6:#1b1b1b;--bar:#b9b9b9;
--yes:#00664c;--no:#9c3b00;--open:#5a5a5a}
@media (prefers-color-scheme:dark){:root{--paper:#15171a;--ink:#ececec;--soft:#b0b0b0;--edge:#43474d;--grid:#2a2d31;
--panel:#1e2125;--s0:#a5a5a5;--s1:#56b4e9;--s2:#ff9a52;--s3:#3fd0a6;--s4:#e79ac6;--s5:#f0c04a;--s6:#ececec;--bar:#6a6f76;
--yes:#3fd0a6;--no:#ff9a52;--open:#b0b0b0}}
*{box-sizing:border-box}
body{margin:0 auto;padding:16px;max-width:1320px;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem;line-height:1.25;margin:0 0 4px}h2{font-size:1.2rem;margin:36px 0 8px}h3{font-size:1rem;margin:0 0 6px}
p{margin:6px 0;max-width:80ch}.soft{color:var(--soft);font-size:.9rem}
.answer{border:2px solid;border-radius:8px;padding:12px 16px;margin:16px 0}.answer strong{font-size:1.35rem}
.yes{border-color:var(--yes)}.yes strong{color:var(--yes)}.no{border-color:var(--no)}.no strong{color:var(--no)}
.open{border-color:var(--open)}.open strong{color:var(--open)}
.numbers{display:grid;grid-template-columns:repeat(auto-fit,minmax(165px,1fr));gap:10px;margin:16px 0;padding:0;list-style:none}
.numbers li{background:var(--panel);border-radius:8px;padding:10px 12px}.numbers b{display:block;font-size:1.2rem}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(380px,100%),1fr));gap:20px;align-items:start}
figure{margin:0;background:var(--panel);border-radius:8px;padding:12px;min-width:0}
figcaption{font-size:.88rem;color:var(--soft);margin-top:6px}
svg{display:block;width:100%;height:auto}
svg text{font:10px system-ui,sans-serif;fill:var(--ink)}.middle{text-anchor:middle}.end{text-anchor:end}
.axis{fill:none;stroke:var(--soft)}.grid{fill:none;stroke:var(--grid)}
.line{fill:none;stroke-width:1.5;stroke-linejoin:round}.line.s0{stroke-dasharray:4 3}
.line.s0,.mark.s0{stroke:var(--s0)}.line.s1,.mark.s1{stroke:var(--s1)}.line.s2,.mark.s2{stroke:var(--s2)}
.line.s3,.mark.s3{stroke:var(--s3)}.line.s4,.mark.s4{stroke:var(--s4)}.line.s5,.mark.s5{stroke:var(--s5)}
.line.s6,.mark.s6{stroke:var(--s6)}
.mark.s0{fill:var(--s0)}.mark.s1{fill:var(--s1)}.mark.s2{fill:var(--s2)}.mark.s3{fill:var(--s3)}.mark.s4{fill:var(--s4)}
.mark.s5{fill:var(--s5)}.mark.s6{fill:none;stroke-width:1.5}
.bar{fill:var(--bar)}.bar.more{fill:var(--s2)}.ghost{fill:transparent}
.mark:hover,.bar:hover path:not(.ghost){stroke:var(--ink);stroke-width:1.5}
.legend{list-style:none;margin:8px 0 0;padding:0;font-size:.88rem;display:flex;flex-wrap:wrap;gap:2px 14px}
.legend li{display:flex;align-items:center;gap:6px}.sign{width:24px;flex:none}
.wide{overflow-x:auto;margin-top:16px}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:4px 10px;text-align:right;border-bottom:1px solid var(--edge);white-space:nowrap}
th:first-child,td:first-child{text-align:left}th{font-weight:600}tr.own td{font-weight:600}
summary{cursor:pointer;font-weight:600;padding:6px 0}
li{max-width:90ch}
@media print{details>*{display:block}}
"""

# Neither scripts nor anything from elsewhere, whatever a name in it may hold.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Figure:
    """A figure of a page.

    Attributes:
        title: above it.
        drawing: SVG, and what belongs to it, as HTML.
        caption: below it, in words.
    """

    title: str
    drawing: str
    caption: str

    def html(self) -> str:
        """Return it as HTML."""
        return f"<figure><h3>{text(self.title)}</h3>{self.drawing}<figcaption>{text(self.caption)}</figcaption></figure>"


def figures(drawn: Sequence[Figure]) -> str:
    """Return figures side by side, where there is room."""
    return f'<div class="figures">{"".join(figure.html() for figure in drawn)}</div>'


def table(heads: Sequence[str], rows: Sequence[Sequence[object]], own: int | None = None) -> str:
    """Return a table that scrolls by itself where it is too wide.

    Args:
        heads: of the columns.
        rows: cells.
        own: the row that is set apart.
    """
    head = "".join(f'<th scope="col">{text(cell)}</th>' for cell in heads)
    body = "".join(
        ('<tr class="own">' if index == own else "<tr>")
        + "".join(f"<td>{text(cell)}</td>" for cell in row)
        + "</tr>"
        for index, row in enumerate(rows)
    )
    return f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def section(title: str, *parts: str) -> str:
    """Return a part of the page under a heading."""
    return f"<section><h2>{text(title)}</h2>{''.join(parts)}</section>"


def paragraph(words: str, kind: str = "plain") -> str:
    """Return a paragraph."""
    return f'<p class="{kind}">{text(words)}</p>'


def listed(lines: Sequence[str]) -> str:
    """Return a list; nothing where there is none."""
    return f"<ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>" if lines else ""


def folded(title: str, *parts: str) -> str:
    """Return what is shown when it is asked for."""
    return f"<details><summary>{text(title)}</summary>{''.join(parts)}</details>"


def page(title: str, *parts: str) -> str:
    """Return the whole file."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{text(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )
