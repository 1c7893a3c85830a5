"""Plots as SVG: bars and dots over time, drawn on the server, without a script and without inline style (CSP).

Colours come from the page's stylesheet by class. Every mark has a `title`, which is its tooltip, and the whole an
`aria-label`. Sizes are in units of the viewBox; the page scales it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Final

WIDTH: Final = 720
HEIGHT: Final = 220
LEFT: Final = 64
RIGHT: Final = 12
TOP: Final = 14
BOTTOM: Final = 26
_STEPS_S: Final = (60, 300, 900, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 86400, 2 * 86400, 7 * 86400, 14 * 86400)


@dataclass(frozen=True)
class Mark:
    """One thing to draw: from `start` to `end` (seconds since 1970), of height `value`."""

    start: float
    end: float
    value: float
    label: str
    series: int = 0
    href: str = ""


@dataclass(frozen=True)
class Frame:
    """The axes: times from `start` to `end`, values from 0 to `top`."""

    start: float
    end: float
    top: float

    def x(self, moment: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (moment - self.start) / max(self.end - self.start, 1e-9)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(1.0, value / self.top)


def bars(marks: Sequence[Mark], start: float, end: float, unit: Callable[[float], str], name: str) -> str:
    """A bar per mark, as wide as it lasts, at least wide enough to be seen."""
    frame = Frame(start, end, nice(max((mark.value for mark in marks), default=1.0)))
    drawn = []
    for mark in marks:
        left, right = frame.x(max(start, mark.start)), frame.x(min(end, mark.end))
        width, top = max(3.0, right - left - 1), frame.y(mark.value)
        shape = (
            f'<rect class="mark s{mark.series % 6}" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" '
            f'height="{max(1.0, HEIGHT - BOTTOM - top):.1f}" rx="1.5"><title>{escape(mark.label)}</title></rect>'
        )
        drawn.append(shape)
    return _figure(frame, drawn, unit, name)


def dots(marks: Sequence[Mark], start: float, end: float, unit: Callable[[float], str], name: str) -> str:
    """A dot per mark, a link where it leads somewhere."""
    frame = Frame(start, end, nice(max((mark.value for mark in marks), default=1.0)))
    drawn = []
    for mark in marks:
        circle = (
            f'<circle class="mark s{mark.series % 6}" cx="{frame.x(mark.start):.1f}" cy="{frame.y(mark.value):.1f}" '
            f'r="4"><title>{escape(mark.label)}</title></circle>'
        )
        link = f'<a href="{escape(mark.href)}" aria-label="{escape(mark.label)}">{circle}</a>'
        drawn.append(link if mark.href else circle)
    return _figure(frame, drawn, unit, name)


def steps(
    series: Sequence[Sequence[tuple[float, float]]], start: float, end: float, unit: Callable[[float], str], name: str
) -> str:
    """A line per series that keeps each value until the next one."""
    frame = Frame(start, end, nice(max((value for one in series for _, value in one), default=1.0)))
    drawn = []
    for number, one in enumerate(series):
        path = ""
        for moment, value in one:
            x, y = frame.x(max(start, moment)), frame.y(value)
            path += f"M{x:.1f} {y:.1f}" if not path else f"H{x:.1f}V{y:.1f}"
        if path:
            drawn.append(f'<path class="line s{number % 6}" d="{path}H{frame.x(end):.1f}"/>')
    return _figure(frame, drawn, unit, name)


def nice(value: float) -> float:
    """The next round number."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value * 0.999)


def _figure(frame: Frame, drawn: Sequence[str], unit: Callable[[float], str], name: str) -> str:
    lines = []
    for part in range(5):
        value = frame.top * part / 4
        y = frame.y(value)
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(
            f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(unit(value))}</text>'
        )
    for moment, text in _ticks(frame.start, frame.end):
        x = frame.x(moment)
        lines.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{text}</text>')
    inside = "".join([*lines, *drawn])
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}">{inside}</svg>'


def _ticks(start: float, end: float) -> list[tuple[float, str]]:
    step = next((step for step in _STEPS_S if (end - start) / step <= 8), _STEPS_S[-1])
    first = math.ceil(start / step) * step
    shape = "%H:%M" if step < 86400 else "%d %b"
    moments = [float(first + step * count) for count in range(int(max(0.0, end - first) // step) + 1)]
    return [(moment, datetime.fromtimestamp(moment, UTC).strftime(shape)) for moment in moments][:12]
