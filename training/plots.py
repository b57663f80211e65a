"""The report's plots as inline SVG: lines over epochs, intervals by slice, reliability. No library, no script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

TEXT, MUTED, GRID, ZERO = "#1f2430", "#6b7280", "#e7e9ee", "#9aa1ad"
LEFT = 62  # of a line plot's axis: a rotated label, and numbers of five characters


@dataclass(frozen=True)
class Point:
    """One value with its interval; without one, low and high are the value."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Series:
    label: str
    colour: str
    points: tuple[Point, ...]
    dashed: bool = False


@dataclass(frozen=True)
class IntervalRow:
    """One line of an interval plot: a heading without intervals, or one interval of each model."""

    label: str
    note: str = ""
    intervals: tuple[tuple[str, float, float, float], ...] = ()  # colour, estimate, low, high


@dataclass(frozen=True)
class _Scale:
    """Data to pixels along one axis."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        step = nice_step((self.high - self.low) / count)
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def nice_step(step: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is not below ``step``."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def line_plot(
    series: Sequence[Series], x_label: str, y_label: str, *, width: int = 480, height: int = 270, diagonal: bool = False
) -> str:
    """Lines with points; points with an interval get a whisker. ``diagonal`` draws y = x, for reliability."""
    points = [point for line in series for point in line.points]
    x_values, y_values = [p.x for p in points], [value for p in points for value in (p.low, p.high)]
    if diagonal:
        x_values = y_values = [0.0, *x_values, *y_values]
    x, y = _fitted(x_values, LEFT, width - 14), _fitted(y_values, height - 42, 12)
    parts = [_grid_y(y, x), _ticks_x(x, height - 42)]
    if diagonal:
        top = min(x.high, y.high)
        parts.append(_line(x(0), y(0), x(top), y(top), ZERO, dashed=True))
    for line in series:
        path = " ".join(f"{x(p.x):.1f},{y(p.y):.1f}" for p in line.points)
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="1.8"{dash}/>')
        for p in line.points:
            if p.high > p.low:
                parts.append(_line(x(p.x), y(p.low), x(p.x), y(p.high), line.colour))
            parts.append(_dot(x(p.x), y(p.y), line.colour, 2.6))
    parts.append(_text((LEFT + width - 14) / 2, height - 6, x_label, anchor="middle", colour=MUTED))
    middle = (height - 42 + 12) / 2
    rotated = f'transform="rotate(-90 12 {middle})"'
    parts.append(_text(12, middle, y_label, anchor="middle", colour=MUTED, extra=rotated))
    return _svg(width, height, parts, f"{y_label} by {x_label}")


def interval_plot(rows: Sequence[IntervalRow], x_label: str, *, width: int = 1000, left: int = 270) -> str:
    """One line a row: dots with intervals on a common axis, and the zero line where the axis has one."""
    values = [value for row in rows for interval in row.intervals for value in interval[1:]]
    x = _fitted([0.0, *values], left, width - 16)
    heights = [24 if not row.intervals else max(20, 9 * len(row.intervals) + 8) for row in rows]
    bottom = 8 + sum(heights)
    parts = [_line(x(tick), 6, x(tick), bottom, ZERO if tick == 0 else GRID) for tick in x.ticks(8)]
    top = 8.0
    for row, height in zip(rows, heights, strict=True):
        middle = top + height / 2
        if not row.intervals:
            parts.append(_text(4, middle + 5, row.label, weight=600))
        else:
            parts.append(_text(16, middle + 4, row.label))
            parts.append(_text(left - 14, middle + 4, row.note, anchor="end", colour=MUTED))
        for number, (colour, estimate, low, high) in enumerate(row.intervals):
            y = middle + (number - (len(row.intervals) - 1) / 2) * 9
            parts.append(_line(x(low), y, x(high), y, colour, width=1.8))
            parts.append(_dot(x(estimate), y, colour, 3.4))
        top += height
    parts.append(_ticks_x(x, bottom, count=8, grid=False))
    parts.append(_text((left + width - 16) / 2, bottom + 36, x_label, anchor="middle", colour=MUTED))
    return _svg(width, bottom + 44, parts, x_label)


def _fitted(values: Sequence[float], start: float, stop: float) -> _Scale:
    low, high = min(values), max(values)
    margin = 0.04 * (high - low) or max(abs(high), 1.0) * 0.1
    return _Scale(low if low == 0 else low - margin, high + margin, start, stop)


def _grid_y(y: _Scale, x: _Scale) -> str:
    lines = [_line(x.start, y(tick), x.stop, y(tick), GRID) for tick in y.ticks()]
    labels = [_text(x.start - 6, y(tick) + 4, _number(tick), anchor="end", colour=MUTED) for tick in y.ticks()]
    return "".join(lines + labels)


def _ticks_x(x: _Scale, y: float, *, count: int = 6, grid: bool = True) -> str:
    labels = [_text(x(tick), y + 17, _number(tick), anchor="middle", colour=MUTED) for tick in x.ticks(count)]
    return "".join(labels) + (_line(x.start, y, x.stop, y, ZERO) if grid else "")


def _number(value: float) -> str:
    return f"{value + 0.0:.6g}".replace("-", "\N{MINUS SIGN}")


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, *, width: float = 1, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="4 4"' if dashed else ""
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width}"{dash}/>'


def _dot(x: float, y: float, colour: str, radius: float) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}"/>'


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", colour: str = TEXT, weight: int = 400, extra: str = ""
) -> str:
    style = f'text-anchor="{anchor}" fill="{colour}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style} {extra}>{escape(text)}</text>'


def _svg(width: int, height: float, parts: Sequence[str], title: str) -> str:
    head = f'<svg viewBox="0 0 {width} {height:.0f}" width="{width}" height="{height:.0f}" role="img"'
    return f'{head} aria-label="{escape(title)}">{"".join(parts)}</svg>'
