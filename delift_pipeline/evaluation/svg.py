"""Small plots as inline SVG that take the page's colours: lines, and bars with errors.

Inline SVG keeps a report one file, sharp at every size, and readable on light and dark pages.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 640.0, 220.0
LEFT, RIGHT, TOP, BOTTOM = 56.0, 12.0, 12.0, 34.0
BAR_HEIGHT, BAR_LABEL, BAR_VALUE = 24.0, 190.0, 130.0
MOST_POINTS = 400


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


def line_plot(values: Sequence[float], x_title: str, y_title: str, first: int = 1) -> Markup:
    """A line through values at `first`, `first` + 1, ...; empty where there are none.

    Long series are averaged into at most `MOST_POINTS` points.
    """
    if not values:
        return Markup("")
    points = _thinned([(first + i, float(value)) for i, value in enumerate(values)])
    (x0, x1), (y0, y1) = _range([p[0] for p in points]), _range([0.0, *(p[1] for p in points)])
    path = " ".join(f"{_x(x, x0, x1):.1f},{_y(y, y0, y1):.1f}" for x, y in points)
    marks = "".join(
        f'<text class="tick" x="{LEFT - 6}" y="{_y(y, y0, y1) + 4:.1f}" text-anchor="end">{y:.3g}'
        f'</text><line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_y(y, y0, y1):.1f}" '
        f'y2="{_y(y, y0, y1):.1f}"/>'
        for y in (y0, (y0 + y1) / 2, y1)
    )
    ends = "".join(
        f'<text class="tick" x="{_x(x, x0, x1):.1f}" y="{HEIGHT - BOTTOM + 16}" '
        f'text-anchor="{anchor}">{x:,.0f}</text>'
        for x, anchor in ((points[0][0], "start"), (points[-1][0], "end"))
    )
    title = f'<text class="tick" x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle">'
    return Markup(
        f'<svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" '
        f'aria-label="{escape(y_title)} by {escape(x_title)}">{marks}{ends}'
        f"{title}{escape(y_title)} by {escape(x_title)}</text>"
        f'<polyline class="curve" points="{path}"/></svg>'
    )


def bar_plot(bars: Sequence[Bar], title: str) -> Markup:
    """Horizontal bars from zero, each with its error line and its text."""
    if not bars:
        return Markup("")
    ends = [bar.value + sign * (bar.error or 0.0) for bar in bars for sign in (-1, 1)]
    low, high = _range([0.0, *ends])
    height = BAR_HEIGHT * len(bars) + 8
    rows = "".join(_bar(bar, i, low, high) for i, bar in enumerate(bars))
    return Markup(
        f'<svg viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"{rows}</svg>"
    )


def _bar(bar: Bar, row: int, low: float, high: float) -> str:
    span = WIDTH - BAR_LABEL - BAR_VALUE

    def at(value: float) -> float:
        return BAR_LABEL + span * (value - low) / (high - low)

    top, middle = 4 + BAR_HEIGHT * row, 4 + BAR_HEIGHT * (row + 0.5)
    start, end = sorted((at(0.0), at(bar.value)))
    error = ""
    if bar.error:
        error = (
            f'<line class="error" x1="{at(bar.value - bar.error):.1f}" '
            f'x2="{at(bar.value + bar.error):.1f}" y1="{middle:.1f}" y2="{middle:.1f}"/>'
        )
    return (
        f'<text class="label" x="{BAR_LABEL - 8}" y="{middle + 4:.1f}" text-anchor="end">'
        f'{escape(bar.label)}</text><rect class="bar {escape(bar.kind)}" x="{start:.1f}" '
        f'y="{top + 3:.1f}" width="{max(end - start, 1):.1f}" height="{BAR_HEIGHT - 6:.1f}"/>'
        f'{error}<text class="tick" x="{WIDTH - BAR_VALUE + 8}" y="{middle + 4:.1f}">'
        f"{escape(bar.text)}</text>"
    )


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= MOST_POINTS:
        return points
    size = -(-len(points) // MOST_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(g[len(g) // 2][0], sum(y for _, y in g) / len(g)) for g in groups]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low, low + 1.0)


def _x(value: float, low: float, high: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low)


def _y(value: float, low: float, high: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)
