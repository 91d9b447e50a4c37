"""Small plots as inline SVG that take the page's colours: lines, and bars with errors.

Inline SVG keeps a report one file, sharp at every size, and readable on light and dark pages.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 640.0, 220.0
LEFT, RIGHT, TOP, BOTTOM = 56.0, 12.0, 12.0, 34.0
BAR_HEIGHT, BAR_LABEL, BAR_VALUE = 24.0, 190.0, 130.0
MOST_POINTS = 400
PLAIN_STYLES = {
    # Where no style sheet applies (some viewers of artifacts); the page's own colours win.
    "tick": 'font-size="12" fill="#5c6670"',
    "label": 'font-size="13" fill="#333"',
    "grid": 'stroke="#ddd"',
    "error": 'stroke="#222" stroke-width="1.6"',
    "curve": 'fill="none" stroke="#0b6e66" stroke-width="2"',
    "bar plain": 'fill="#9db4bd"',
    "bar chosen": 'fill="#0b6e66"',
    "bar reference": 'fill="#c9a14a"',
}


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        label: Its name.
        value: Its length, in the axis's units.
        error: Half the length of its error line, or None for none.
        text: What stands behind it.
        kind: A style class: `plain`, `chosen`, `reference`.
    """

    label: str
    value: float
    error: float | None
    text: str
    kind: str = "plain"


@dataclass(frozen=True)
class Curve:
    """One curve.

    Attributes:
        label: Its name.
        points: (x, y, half the length of its error line or None), in order of x.
        dash: Lengths of dashes and gaps, or empty for a full line.
    """

    label: str
    points: Sequence[tuple[float, float, float | None]]
    dash: str = ""

    @property
    def dashes(self) -> str:
        """The attribute that dashes it."""
        return f'stroke-dasharray="{escape(self.dash)}"' if self.dash else ""


def line_plot(
    values: Sequence[float],
    x_title: str,
    y_title: str,
    first: int = 1,
    marked: tuple[int, str] | None = None,
) -> Markup:
    """A line through values at `first`, `first` + 1, ...; empty where there are none.

    Long series are averaged into at most `MOST_POINTS` points.

    Args:
        values: The values.
        x_title: What they are of.
        y_title: What they are.
        first: Where the first stands.
        marked: A place that is marked by a vertical line, and what it is called.
    """
    if not values:
        return Markup("")
    points = _thinned([(first + i, float(value)) for i, value in enumerate(values)])
    (x0, x1), (y0, y1) = _range([p[0] for p in points]), _range([0.0, *(p[1] for p in points)])
    shape = " ".join(f"{_x(x, x0, x1):.1f},{_y(y, y0, y1):.1f}" for x, y in points)
    levels = [(value, _y(value, y0, y1)) for value in (y0, (y0 + y1) / 2, y1)]
    parts = [_line("grid", (LEFT, y), (WIDTH - RIGHT, y)) for _, y in levels]
    parts += [_text("tick", LEFT - 6, y + 4, f"{value:.3g}", "end") for value, y in levels]
    below = HEIGHT - BOTTOM + 16
    parts.append(_text("tick", LEFT, below, f"{points[0][0]:,.0f}", "start"))
    parts.append(_text("tick", WIDTH - RIGHT, below, f"{points[-1][0]:,.0f}", "end"))
    title = f"{y_title} by {x_title}"
    parts.append(_text("tick", WIDTH / 2, HEIGHT - 6, title, "middle"))
    parts.append(f'<polyline {_style("curve")} points="{shape}"/>')
    if marked is not None:
        at = _x(marked[0], x0, x1)
        parts.append(_line("grid", (at, _y(y0, y0, y1)), (at, _y(y1, y0, y1))))
        parts.append(_text("tick", at + 4, _y(y1, y0, y1) + 12, marked[1], "start"))
    return _drawing(HEIGHT, title, parts)


def curves_plot(curves: Sequence[Curve], x_title: str, y_title: str) -> Markup:
    """Several curves on common axes, each named at its last point; empty where there are none."""
    points = [point for curve in curves for point in curve.points]
    if not points:
        return Markup("")
    x0, x1 = _range([p[0] for p in points])
    ends = [p[1] + sign * (p[2] or 0.0) for p in points for sign in (-1, 1)]
    y0, y1 = _range(ends)
    right = WIDTH - BAR_LABEL

    def place(point: tuple[float, float, float | None], shift: float = 0.0) -> tuple[float, float]:
        across = LEFT + (right - LEFT) * (point[0] - x0) / (x1 - x0)
        return across, _y(point[1] + shift, y0, y1)

    parts = [_text("tick", LEFT - 6, _y(y, y0, y1) + 4, f"{y:.3g}", "end") for y in (y0, y1)]
    for x, anchor in ((x0, "start"), (x1, "end")):
        at = LEFT if anchor == "start" else right
        parts.append(_text("tick", at, HEIGHT - BOTTOM + 16, f"{x:.3g}", anchor))
    title = f"{y_title} by {x_title}"
    parts.append(_text("tick", (LEFT + right) / 2, HEIGHT - 6, title, "middle"))
    labels = _spread([place(curve.points[-1])[1] for curve in curves])
    for curve, label in zip(curves, labels, strict=True):
        shape = " ".join("{:.1f},{:.1f}".format(*place(point)) for point in curve.points)
        parts.append(f'<polyline {_style("curve")} {curve.dashes} points="{shape}"/>')
        for point in curve.points:
            if point[2]:
                parts.append(_line("error", place(point, -point[2]), place(point, point[2])))
        parts.append(_text("label", right + 8, label + 4, curve.label, "start"))
    return _drawing(HEIGHT, title, parts)


def scatter_plot(
    points: Sequence[tuple[str, float, float, float | None]], x_title: str, y_title: str
) -> Markup:
    """Named points (name, x above 0, y, half the error line or None), x on a logarithmic axis."""
    if not points:
        return Markup("")
    x0, x1 = _range([math.log10(x) for _, x, _, _ in points])
    y0, y1 = _range([y + sign * (error or 0.0) for _, _, y, error in points for sign in (-1, 1)])
    right = WIDTH - BAR_LABEL
    across = [LEFT + (right - LEFT) * (math.log10(x) - x0) / (x1 - x0) for _, x, _, _ in points]
    parts = [_text("tick", LEFT - 6, _y(y, y0, y1) + 4, f"{y:.3g}", "end") for y in (y0, y1)]
    for x, at, anchor in ((x0, LEFT, "start"), (x1, right, "end")):
        parts.append(_text("tick", at, HEIGHT - BOTTOM + 16, f"{10**x:.2g}", anchor))
    title = f"{y_title} by {x_title}"
    parts.append(_text("tick", (LEFT + right) / 2, HEIGHT - 6, title, "middle"))
    labels = _spread([_y(y, y0, y1) for _, _, y, _ in points])
    for (name, _, y, error), at, label in zip(points, across, labels, strict=True):
        if error:
            parts.append(_line("error", (at, _y(y - error, y0, y1)), (at, _y(y + error, y0, y1))))
        dot = f'cx="{at:.1f}" cy="{_y(y, y0, y1):.1f}" r="4"'
        parts.append(f"<circle {_style('bar chosen')} {dot}/>")
        parts.append(_text("label", at + 8, label + 4, name, "start"))
    return _drawing(HEIGHT, title, parts)


def bar_plot(bars: Sequence[Bar], title: str) -> Markup:
    """Horizontal bars from zero, each with its error line and its text."""
    if not bars:
        return Markup("")
    ends = [bar.value + sign * (bar.error or 0.0) for bar in bars for sign in (-1, 1)]
    low, high = _range([0.0, *ends])
    rows = [part for i, bar in enumerate(bars) for part in _bar(bar, i, low, high)]
    return _drawing(BAR_HEIGHT * len(bars) + 8, title, rows)


def _bar(bar: Bar, row: int, low: float, high: float) -> list[str]:
    span = WIDTH - BAR_LABEL - BAR_VALUE

    def at(value: float) -> float:
        return BAR_LABEL + span * (value - low) / (high - low)

    top, middle = 4 + BAR_HEIGHT * row, 4 + BAR_HEIGHT * (row + 0.5)
    start, end = sorted((at(0.0), at(bar.value)))
    box = f'x="{start:.1f}" y="{top + 3:.1f}" width="{max(end - start, 1):.1f}"'
    parts = [
        _text("label", BAR_LABEL - 8, middle + 4, bar.label, "end"),
        f'<rect {_style(f"bar {bar.kind}")} {box} height="{BAR_HEIGHT - 6:.1f}"/>',
        _text("tick", WIDTH - BAR_VALUE + 8, middle + 4, bar.text, "start"),
    ]
    if bar.error:
        ends = at(bar.value - bar.error), at(bar.value + bar.error)
        parts.append(_line("error", (ends[0], middle), (ends[1], middle)))
    return parts


def _drawing(height: float, title: str, parts: Sequence[str]) -> Markup:
    box = f'viewBox="0 0 {WIDTH:.0f} {height:.0f}"'
    return Markup(f'<svg {box} role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>')


def _text(kind: str, x: float, y: float, text: str, anchor: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f"<text {_style(kind)} {place}>{escape(text)}</text>"


def _line(kind: str, start: tuple[float, float], end: tuple[float, float]) -> str:
    (x1, y1), (x2, y2) = start, end
    return f'<line {_style(kind)} x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _style(kind: str) -> str:
    return f'class="{kind}" {PLAIN_STYLES[kind]}'


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= MOST_POINTS:
        return points
    size = -(-len(points) // MOST_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(g[len(g) // 2][0], sum(y for _, y in g) / len(g)) for g in groups]


def _spread(heights: Sequence[float], least: float = 15.0) -> list[float]:
    """Heights moved until no two labels overlap, their order kept: down, then up from the foot."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed, last = [0.0] * len(heights), float("-inf")
    for i in order:
        last = placed[i] = max(heights[i], last + least)
    last = HEIGHT - BOTTOM + least
    for i in reversed(order):
        last = placed[i] = min(placed[i], last - least)
    return placed


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low, low + 1.0)


def _x(value: float, low: float, high: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low)


def _y(value: float, low: float, high: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)
