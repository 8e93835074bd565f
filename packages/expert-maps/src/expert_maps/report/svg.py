# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Figures as inline SVG: every mark has a ``<title>``, which a browser shows on hover. No script, no style of their own.

A figure is 360 units wide, so that its letters are readable on a telephone; a page puts several side by side. Colours of
lines and letters are classes, which the page sets for light and dark.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

from expert_maps.errors import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    Float64Array = NDArray[np.float64]

WIDTH = 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 8, 34
_HEIGHT = 220
_SERIES = 6
# Samples of cividis (Nuñez and others, 2018): dark to light, alike for all eyes.
_CIVIDIS = (
    (0, 32, 77),
    (0, 51, 111),
    (57, 72, 107),
    (87, 92, 109),
    (112, 113, 115),
    (138, 135, 121),
    (166, 157, 117),
    (196, 181, 108),
    (228, 207, 91),
    (255, 234, 70),
)


def text(value: object, limit: int | None = None) -> str:
    """Return what a page may show of any text: escaped, without control characters, and no longer than the limit."""
    return escape(printable(str(value), limit))


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        name: for the legend.
        points: x, y and what hovering shows.
        dashed: whether it is what others are compared with.
    """

    name: str
    points: Sequence[tuple[float, float, str]]
    dashed: bool = False


@dataclass
class Axes:
    """A frame with numbers along both sides.

    Attributes:
        x: least and most.
        y: the lower end and the upper; the lower may be the greater, where rows are counted from above.
        x_label: below.
        y_label: beside, written along the axis.
        whole: whether numbers along x are whole.
        height: of the figure.
        parts: what has been drawn.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    x_label: str
    y_label: str
    whole: bool = True
    height: float = _HEIGHT
    parts: list[str] = field(default_factory=list)

    def across(self, x: float) -> float:
        """Return where an x stands."""
        low, high = self.x
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (x - low) / ((high - low) or 1)

    def down(self, y: float) -> float:
        """Return where a y stands."""
        low, high = self.y
        return self.height - _BOTTOM - (self.height - _TOP - _BOTTOM) * (y - low) / ((high - low) or 1)

    def figure(self, label: str) -> str:
        """Return the whole as SVG.

        Args:
            label: what those hear who do not see it.
        """
        bottom = self.height - _BOTTOM
        frame = [
            f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom:.1f}H{WIDTH - _RIGHT}"/>',
            *(self._tick_x(tick) for tick in ticks(*self.x, whole=self.whole)),
            *(self._tick_y(tick) for tick in ticks(min(self.y), max(self.y), whole=self.y[0] > self.y[1])),
            f'<text x="{(_LEFT + WIDTH - _RIGHT) / 2}" y="{self.height - 4:.1f}" class="middle">{text(self.x_label)}</text>',
            f'<text transform="translate(11 {(_TOP + bottom) / 2:.1f}) rotate(-90)" class="middle">{text(self.y_label)}</text>',
        ]
        return svg(self.height, label, [*frame, *self.parts])

    def _tick_x(self, tick: float) -> str:
        place, bottom = self.across(tick), self.height - _BOTTOM
        return f'<text x="{place:.1f}" y="{bottom + 13:.1f}" class="middle">{short(tick)}</text>'

    def _tick_y(self, tick: float) -> str:
        place = self.down(tick)
        return (
            f'<path class="grid" d="M{_LEFT} {place:.1f}H{WIDTH - _RIGHT}"/>'
            f'<text x="{_LEFT - 4}" y="{place + 3.5:.1f}" class="end">{short(tick)}</text>'
        )


def svg(height: float, label: str, parts: Sequence[str]) -> str:
    """Return a figure of such a height from its parts."""
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{text(label)}">{"".join(parts)}</svg>'


def short(value: float) -> str:
    """Return a number for an axis."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g}{unit}"
    return f"{value:.4g}"


def ticks(low: float, high: float, *, whole: bool = False, most: int = 5) -> list[float]:
    """Return round numbers between two, a few of them."""
    if high <= low:
        return [low]
    step = 10.0 ** _exponent((high - low) / most)
    for factor in (1, 2, 5, 10):
        if (high - low) / (step * factor) <= most:
            step *= factor
            break
    if whole:
        step = max(1.0, round(step))
    first = -(-low // step)
    found = [(first + index) * step for index in range(most + 2)]
    return [tick for tick in found if low <= tick <= high * (1 + 1e-12)]


def _exponent(value: float) -> int:
    exponent = 0
    while value >= 10:  # noqa: PLR2004 - a digit
        value, exponent = value / 10, exponent + 1
    while value < 1:
        value, exponent = value * 10, exponent - 1
    return exponent


def draw_lines(axes: Axes, lines: Sequence[Line]) -> None:
    """Draw lines, and a mark at each of their points; series by colour and by the shape of their marks."""
    for index, line in enumerate(lines):
        kind = (
            "s0" if line.dashed else f"s{1 + (index - sum(each.dashed for each in lines[:index])) % _SERIES}"
        )
        places = [(axes.across(x), axes.down(y)) for x, y, _ in line.points]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        axes.parts.append(f'<path class="line {kind}" d="{path}"/>')
        for (x, y), (_, _, said) in zip(places, line.points, strict=True):
            axes.parts.append(f'<g class="mark {kind}">{mark(kind, x, y)}<title>{text(said)}</title></g>')


def mark(kind: str, x: float, y: float) -> str:
    """Return the mark of a series: its shape tells it apart without its colour."""
    shapes = {
        "s0": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.6"/>',
        "s1": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4"/>',
        "s2": f'<path d="M{x - 2.2:.1f} {y - 2.2:.1f}h4.4v4.4h-4.4z"/>',
        "s3": f'<path d="M{x:.1f} {y - 3:.1f}l3 5.2h-6z"/>',
        "s4": f'<path d="M{x:.1f} {y - 3.2:.1f}l3.2 3.2l-3.2 3.2l-3.2 -3.2z"/>',
        "s5": f'<path d="M{x:.1f} {y + 3:.1f}l3 -5.2h-6z"/>',
        "s6": f'<path d="M{x - 3:.1f} {y:.1f}h6M{x:.1f} {y - 3:.1f}v6"/>',
    }
    return shapes[kind]


def legend(lines: Sequence[Line]) -> str:
    """Return a list of the lines' names, each with its mark."""
    entries = []
    for index, line in enumerate(lines):
        kind = (
            "s0" if line.dashed else f"s{1 + (index - sum(each.dashed for each in lines[:index])) % _SERIES}"
        )
        sign = f'<path class="line {kind}" d="M1 6H23"/><g class="mark {kind}">{mark(kind, 12, 6)}</g>'
        entries.append(
            f'<li><svg class="sign" viewBox="0 0 24 12" aria-hidden="true">{sign}</svg>{text(line.name)}</li>'
        )
    return f'<ul class="legend">{"".join(entries)}</ul>'


def draw_bars(axes: Axes, bars: Sequence[tuple[float, str, str]]) -> None:
    """Draw bars from the axis up, one at each whole x from 0.

    Args:
        axes: their frame.
        bars: height, class and what hovering shows.
    """
    bottom = axes.height - _BOTTOM
    for index, (height, kind, said) in enumerate(bars):
        left, right, top = axes.across(index - 0.5), axes.across(index + 0.5), axes.down(height)
        # All of its column answers to the pointer: the bar itself may be a pixel high.
        axes.parts.append(
            f'<g class="bar {kind}"><path class="ghost" d="M{left:.2f} {_TOP}H{right:.2f}V{bottom:.1f}H{left:.2f}z"/>'
            f'<path d="M{left:.2f} {bottom:.1f}V{top:.1f}H{right:.2f}V{bottom:.1f}z"/><title>{text(said)}</title></g>'
        )


def colour(share: float) -> str:
    """Return the colour of a number from 0 to 1."""
    place = min(max(share, 0.0), 1.0) * (len(_CIVIDIS) - 1)
    below = min(int(place), len(_CIVIDIS) - 2)
    pairs = zip(_CIVIDIS[below], _CIVIDIS[below + 1], strict=True)
    return "#" + "".join(f"{round(a + (b - a) * (place - below)):02x}" for a, b in pairs)


def heatmap(axes: Axes, values: Float64Array, top: float, said: Sequence[Sequence[str]]) -> None:
    """Draw a cell for each value, the first row on top.

    Args:
        axes: its x from −0.5 to columns − 0.5, its y from rows − 0.5 down to −0.5.
        values: float64 [rows, columns].
        top: what is drawn lightest.
        said: what hovering over each shows.
    """
    for row, numbers in enumerate(values.tolist()):
        above, below = axes.down(row - 0.5), axes.down(row + 0.5)
        for column, number in enumerate(numbers):
            left, right = axes.across(column - 0.5), axes.across(column + 0.5)
            # A little wider than its share: no seams between cells.
            axes.parts.append(
                f'<path fill="{colour(number / top if top > 0 else 0)}" d="M{left:.2f} {above:.2f}H{right + 0.2:.2f}'
                f'V{below + 0.2:.2f}H{left:.2f}z"><title>{text(said[row][column])}</title></path>'
            )


def scale(top: float, label: str) -> str:
    """Return the colours of a heatmap from 0 to its top, with numbers."""
    steps = 40
    width = (WIDTH - _LEFT - _RIGHT) / steps
    parts = [
        f'<path fill="{colour(index / (steps - 1))}" d="M{_LEFT + index * width:.2f} 2h{width + 0.2:.2f}v10h-{width + 0.2:.2f}z"/>'
        for index in range(steps)
    ]
    for tick in ticks(0, top):
        place = _LEFT + (WIDTH - _LEFT - _RIGHT) * tick / top
        parts.append(f'<text x="{place:.1f}" y="24" class="middle">{short(tick)}</text>')
    parts.append(f'<text x="{(_LEFT + WIDTH - _RIGHT) / 2}" y="38" class="middle">{text(label)}</text>')
    return svg(42, f"{label}, from 0 to {top:.2f}", parts)
