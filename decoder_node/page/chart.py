"""Plots as SVG: bars, dots and lines over time, drawn on the server, without a script and without inline style (CSP).

Each plot is drawn twice, for wide and for narrow windows, so that its words are always of the same size; the page's
stylesheet shows one of them, and gives the colours by class. Every mark has a `title`, which is its tooltip, and the
whole an `aria-label`. Times are UTC. Sizes are in units of the viewBox, about a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Final

LEFT: Final = 66
RIGHT: Final = 12
TOP: Final = 12
BOTTOM: Final = 26
_STEPS_S: Final = (60, 300, 900, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 86400, 2 * 86400, 7 * 86400, 14 * 86400)

Unit = Callable[[float], str]


@dataclass(frozen=True)
class Size:
    """A drawing's size, how many times and values it names at most, and its class in the stylesheet."""

    name: str
    width: int
    height: int
    times: int
    values: int


SIZES: Final = (Size("wide", 580, 230, 8, 6), Size("slim", 340, 200, 4, 5))


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
    """The axes of a drawing: times from `start` to `end`; values from 0, or of a `bottom` above 0 on in powers."""

    size: Size
    start: float
    end: float
    top: float
    bottom: float = 0.0

    def x(self, moment: float) -> float:
        return LEFT + (self.size.width - LEFT - RIGHT) * (moment - self.start) / max(self.end - self.start, 1e-9)

    def y(self, value: float) -> float:
        if self.bottom:
            value = max(value, self.bottom)
            share = math.log(value / self.bottom) / math.log(self.top / self.bottom)
        else:
            share = value / self.top
        return self.floor - (self.floor - TOP) * min(1.0, share)

    @property
    def floor(self) -> float:
        """Where the lowest value lies."""
        return self.size.height - BOTTOM

    @property
    def values(self) -> list[float]:
        """Round values to be named."""
        if not self.bottom:
            step = _step(self.top, self.size)
            return [step * count for count in range(round(self.top / step) + 1)]
        found = [value for value in _round_numbers(self.bottom) if self.bottom <= value <= self.top * 1.001]
        while len(found) > self.size.values:
            found = found[::2]
        return found


def linear(size: Size, start: float, end: float, values: Iterable[float]) -> Frame:
    """Axes from 0 to the round value above all of these."""
    most = max(values, default=0.0) or 1.0
    step = _step(most, size)
    return Frame(size, start, end, step * math.ceil(most / step - 1e-9))


def powers(size: Size, start: float, end: float, values: Iterable[float]) -> Frame:
    """As `linear`, or, of values that lie far apart, axes in powers."""
    known = [value for value in values if value > 0] or [1.0]
    if max(known) < 8 * min(known):
        return linear(size, start, end, known)
    bottom = next(value for value in _round_numbers(min(known), down=True) if value <= min(known))
    return Frame(size, start, end, next(v for v in _round_numbers(max(known)) if v >= max(known)), bottom)


def bars(marks: Sequence[Mark], start: float, end: float, unit: Unit, name: str) -> str:
    """A bar per mark, as wide as it lasts, at least wide enough to be seen."""
    drawings = []
    for size in SIZES:
        frame = linear(size, start, end, [mark.value for mark in marks])
        drawn = []
        for mark in marks:
            left, right = frame.x(max(start, mark.start)), frame.x(min(end, mark.end))
            wide, y = max(4.0, right - left - 1), frame.y(mark.value)
            drawn.append(
                f'<rect class="mark s{mark.series % 6}" x="{left:.1f}" y="{y:.1f}" width="{wide:.1f}" '
                f'height="{max(1.0, frame.floor - y):.1f}" rx="1.5"><title>{escape(mark.label)}</title></rect>'
            )
        drawings.append(_drawing(frame, drawn, unit, name))
    return "".join(drawings)


def dots(marks: Sequence[Mark], start: float, end: float, unit: Unit, name: str) -> str:
    """A dot per mark, a link where it leads somewhere. Values that lie far apart are shown in powers."""
    drawings = []
    for size in SIZES:
        frame = powers(size, start, end, [mark.value for mark in marks])
        drawn = []
        for mark in marks:
            x, y = frame.x(mark.start), frame.y(mark.value)
            circle = (
                f'<circle class="mark s{mark.series % 6}" cx="{x:.1f}" cy="{y:.1f}" r="4.5">'
                f"<title>{escape(mark.label)}</title></circle>"
            )
            link = f'<a href="{escape(mark.href)}" aria-label="{escape(mark.label)}">{circle}</a>'
            drawn.append(link if mark.href else circle)
        drawings.append(_drawing(frame, drawn, unit, name))
    return "".join(drawings)


def steps(series: Sequence[Sequence[tuple[float, float]]], start: float, end: float, unit: Unit, name: str) -> str:
    """A line per series that keeps each value until the next one."""
    drawings = []
    for size in SIZES:
        frame = linear(size, start, end, [value for one in series for _, value in one])
        drawn = []
        for number, one in enumerate(series):
            path, first = "", 0.0
            for moment, value in one:
                x, y = frame.x(max(start, moment)), frame.y(value)
                first = first or x
                path += f"H{x:.1f}V{y:.1f}" if path else f"M{x:.1f} {y:.1f}"
            if path:
                path += f"H{frame.x(end):.1f}"
                area = f"{path}V{frame.floor:.1f}H{first:.1f}Z"
                drawn.append(
                    f'<path class="area s{number % 6}" d="{area}"/><path class="line s{number % 6}" d="{path}"/>'
                )
        drawings.append(_drawing(frame, drawn, unit, name))
    return "".join(drawings)


def _step(most: float, size: Size) -> float:
    """A round step, of which few lead to `most`."""
    least = most / (size.values - 1)
    return next(step for step in _round_numbers(least) if step >= least * 0.999)


def _round_numbers(near: float, down: bool = False) -> Iterable[float]:
    """1, 2, 5, 10, 20, ...: from about `near` on, or back from there."""
    power = math.floor(math.log10(near)) if near > 0 else 0
    for place in range(12):
        for step in (5, 2, 1) if down else (1, 2, 5):
            yield step * 10.0 ** (power - place if down else power + place)


def _drawing(frame: Frame, drawn: Sequence[str], unit: Unit, name: str) -> str:
    size = frame.size
    lines = []
    for value in frame.values:
        y = frame.y(value)
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{size.width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(
            f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(unit(value))}</text>'
        )
    for moment, text in _ticks(frame):
        x = frame.x(moment)
        lines.append(f'<text class="tick" x="{x:.1f}" y="{size.height - 7}" text-anchor="middle">{text}</text>')
    box = f'viewBox="0 0 {size.width} {size.height}"'
    inside = "".join([*lines, *drawn])
    return f'<svg class="chart {size.name}" {box} role="img" aria-label="{escape(name)}">{inside}</svg>'


def _ticks(frame: Frame) -> list[tuple[float, str]]:
    """Round moments, and how they are written."""
    lasts = frame.end - frame.start
    step = next((step for step in _STEPS_S if lasts / step <= frame.size.times), _STEPS_S[-1])
    first = math.ceil(frame.start / step) * step
    shape = "%H:%M" if step < 86400 else "%d %b"
    moments = [float(first + step * count) for count in range(int(max(0.0, frame.end - first) // step) + 1)]
    inside = [moment for moment in moments if LEFT + 12 <= frame.x(moment) <= frame.size.width - RIGHT - 8]
    return [(moment, datetime.fromtimestamp(moment, UTC).strftime(shape)) for moment in inside]
