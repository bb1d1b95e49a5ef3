"""Curves as inline SVG: lines thinned to means with the band of what they smooth, axes on round numbers, events."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

MAX_POINTS = 300
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 14, 28
KEY_HEIGHT, CHARACTER_WIDTH = 16, 7  # of the names above a drawing
DIGITS = 14  # that count of a number on an axis; more would show how floats are rounded
COLORS = {
    "own": "#1a7f5a",
    "other": "#b3541e",
    "third": "#5a63c7",
    "fourth": "#8a939e",
    "fifth": "#c2528b",
    "ink": "#1c2128",
    "quiet": "#59636e",
    "line": "#d8dee4",
}

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """A curve of a chart: its name, its colour (a key of COLORS) and its points, by step."""

    name: str
    color: str
    points: Points
    dots: bool = False


def chart(
    lines: Sequence[Line],
    *,
    width: int = 540,
    height: int = 230,
    label: str,
    events: Sequence[float] = (),
    log_scale: bool = False,
    from_zero: bool = False,
    alone: bool = False,
) -> str:
    """An SVG of some lines over steps; "" where no line has a point.

    Args:
        label: what it shows, also for readers that do not see it.
        events: steps that get a vertical line.
        log_scale: of the values, which must then be above 0 to be drawn.
        alone: colours stand in the drawing itself, for a file of its own; else they are the page's variables.
    """
    drawn = [
        Line(one.name, one.color, _finite(one.points, above_zero=log_scale), one.dots)
        for one in lines
        if _finite(one.points, above_zero=log_scale)
    ]
    if not drawn:
        return ""
    every = [point for line in drawn for point in line.points]
    values = [math.log10(y) if log_scale else y for _, y in every]
    low, high = (0.0 if from_zero else min(values)), max(values)
    x_ticks = ticks(min(x for x, _ in every), max(x for x, _ in every), 6)
    y_ticks = log_ticks(low, high) if log_scale else ticks(low, high, 5)
    top = TOP + (KEY_HEIGHT if len(drawn) > 1 else 0)
    frame = _Frame(x_ticks[0], x_ticks[-1], y_ticks[0], y_ticks[-1], width, height, top, log_scale)
    parts = [_grid(frame, x_ticks, y_ticks)]
    parts += [_event(frame, step) for step in events if x_ticks[0] <= step <= x_ticks[-1]]
    parts += [_drawn(frame, line) for line in drawn]
    if len(drawn) > 1:
        parts.append(_keys(drawn))
    size = f' width="{width}" height="{height}" xmlns="http://www.w3.org/2000/svg"' if alone else ""
    svg = f'<svg{size} viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
    for name, color in COLORS.items():
        svg = svg.replace(f"@{name}@", color if alone else f"var(--{name})")
    return svg


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round values that cover [low, high], and are not all one where these are."""
    if high - low <= 1e-12 * max(abs(low), abs(high)) + 1e-300:
        high = low + (abs(low) * 0.1 or 1.0)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    distance = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / distance + 1e-9), math.ceil(high / distance - 1e-9)
    return [float(f"{number * distance:.{DIGITS}g}") for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Logarithms of round values (1, 2 and 5 times a power of ten, or powers alone) that cover [low, high]."""
    factors = (1, 2, 5) if high - low < 2 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    every = [math.log10(factor) + power for power in powers for factor in factors]
    first = max((level for level in every if level <= low + 1e-9), default=every[0])
    last = min((level for level in every if level >= high - 1e-9 and level > first), default=every[-1])
    return [level for level in every if first <= level <= last]


def thinned(points: Points, most: int = MAX_POINTS) -> list[tuple[float, float, float, float]]:
    """At most `most` groups of neighbouring points: mean x, mean y, least y, greatest y."""
    length = -(-len(points) // most) or 1
    groups = [points[first : first + length] for first in range(0, len(points), length)]
    return [
        (
            sum(x for x, _ in group) / len(group),
            sum(y for _, y in group) / len(group),
            min(y for _, y in group),
            max(y for _, y in group),
        )
        for group in groups
    ]


def short(value: float) -> str:
    """A number of an axis, in no more characters than say which it is."""
    if 0 < abs(value) < 1e-3:
        digits, power = f"{value:.{DIGITS - 1}e}".split("e")
        return f"{float(digits):.{DIGITS}g}e{int(power)}"
    for bound, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= bound:
            return f"{value / (1e3 if unit == ' k' else bound):.{DIGITS}g}{unit}"
    return f"{value:.{DIGITS}g}"


@dataclass(frozen=True)
class _Frame:
    x_low: float
    x_high: float
    y_low: float
    y_high: float
    width: int
    height: int
    top: int
    log_scale: bool

    def x(self, step: float) -> float:
        share = (step - self.x_low) / (self.x_high - self.x_low)
        return round(LEFT + share * (self.width - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        return self.at(math.log10(value) if self.log_scale else value)

    def at(self, level: float) -> float:
        share = (level - self.y_low) / (self.y_high - self.y_low)
        return round(self.height - BOTTOM - share * (self.height - self.top - BOTTOM), 1)


def _finite(points: Points, *, above_zero: bool) -> Points:
    return [(x, y) for x, y in points if math.isfinite(y) and (y > 0 or not above_zero)]


def _grid(frame: _Frame, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> str:
    parts, bottom = [], frame.height - BOTTOM
    for level in y_ticks:
        y, told = frame.at(level), short(10**level if frame.log_scale else level)
        parts.append(f'<line x1="{LEFT}" x2="{frame.width - RIGHT}" y1="{y}" y2="{y}" stroke="@line@"/>')
        parts.append(_text(LEFT - 7, y + 4, told, "end"))
    for step in x_ticks:
        end = "end" if step == x_ticks[-1] else "middle"
        parts.append(_text(frame.x(step), bottom + 18, short(step), end))
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str, color: str = "quiet") -> str:
    font = 'font-family="system-ui, DejaVu Sans, sans-serif" font-size="12"'
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="@{color}@" {font}>{escape(text)}</text>'


def _event(frame: _Frame, step: float) -> str:
    x, bottom = frame.x(step), frame.height - BOTTOM
    return f'<line x1="{x}" x2="{x}" y1="{frame.top}" y2="{bottom}" stroke="@other@" stroke-dasharray="3 3"/>'


def _drawn(frame: _Frame, line: Line) -> str:
    groups = thinned(line.points)
    parts = []
    if len(groups) < len(line.points):
        edge = [(x, high) for x, _, _, high in groups] + [(x, low) for x, _, low, _ in reversed(groups)]
        parts.append(f'<polygon points="{_places(frame, edge)}" fill="@{line.color}@" opacity="0.18"/>')
    middle = [(x, mean) for x, mean, _, _ in groups]
    stroke = f'fill="none" stroke="@{line.color}@" stroke-width="1.8" stroke-linejoin="round"'
    parts.append(f'<polyline points="{_places(frame, middle)}" {stroke}/>')
    if line.dots or len(middle) == 1:
        parts += [f'<circle cx="{frame.x(x)}" cy="{frame.y(y)}" r="3" fill="@{line.color}@"/>' for x, y in middle]
    return "".join(parts)


def _places(frame: _Frame, points: Points) -> str:
    return " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in points)


def _keys(lines: Sequence[Line]) -> str:
    """The names of lines side by side above the drawing, where no line can run through them."""
    parts, x, y = [], LEFT, TOP + 4
    for line in lines:
        parts.append(f'<rect x="{x}" y="{y - 6}" width="16" height="4" fill="@{line.color}@"/>')
        parts.append(_text(x + 21, y, line.name, "start", "ink"))
        x += 21 + CHARACTER_WIDTH * len(line.name) + 12
    return "".join(parts)
