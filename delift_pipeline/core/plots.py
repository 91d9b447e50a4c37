"""All plots, drawn by matplotlib: PNG for Dagster and MLflow, inline SVG for pages.

With inline SVG a page is one file, sharp at every size, and readable in light and dark mode.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "chosen": "#0b6e66",
    "plain": "#9db4bd",
    "reference": "#c9a14a",
    "ink": "#1d2329",
    "soft": "#5c6670",
}
"""Colours by the name of the CSS variable that overrides them on a page."""
WIDTH, HEIGHT = 640, 220
ROW, LABELS, TEXTS = 24, 190, 130
"""Sizes of a bar chart in points: row height, label width, and width of the texts after bars."""
BINS = 30
MOST_POINTS = 400
"""A longer series is averaged down to at most this many points."""
SMOOTHED_OVER = 20
"""The dark line of a loss curve is a running mean over 1/20 of the steps."""


@dataclass(frozen=True)
class Bar:
    """One bar of a chart; `error` is half its error line, and `text` is printed after the bar."""

    label: str
    value: float
    error: float | None
    text: str
    colour: str = "plain"


@dataclass(frozen=True)
class Curve:
    """One line of a plot, or one point if `style` is a marker of matplotlib such as `o`.

    Attributes:
        label: Its name in the legend, or empty.
        errors: Half the lengths of the error lines.
        colour: One of `COLOURS`, or None for the next of matplotlib's own.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    errors: Sequence[float | None] | None = None
    style: str = "-"
    colour: str | None = None


def png(figure: "Figure") -> bytes:
    """Return the figure as a PNG. Equal figures give equal bytes."""
    picture = io.BytesIO()
    # Otherwise the file would name the version of matplotlib.
    figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()


def svg(figure: "Figure", title: str) -> Markup:
    """Return the figure as an SVG element for a page. Its texts stay text and are escaped.

    No artist may be clipped: a clip path would need a unique id. Screen readers read the title.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    figure.patch.set_visible(False)
    picture = io.StringIO()
    with rc_context({"svg.fonttype": "none"}):
        FigureCanvasSVG(figure).print_svg(picture, metadata={"Date": None})
    drawn = picture.getvalue()
    # Keep only the drawing, without the document's header and style rules for the whole page.
    drawn = drawn[drawn.index('<g id="figure_1">') : drawn.rindex("</svg>")]
    drawn = re.sub(r' id="[\w.]+_\d+"|font-family: [^;"]*; ?', "", drawn)
    for name, colour in COLOURS.items():
        drawn = drawn.replace(colour, f"var(--{name}, {colour})")
    width, height = figure.get_size_inches() * 72
    box = f'viewBox="0 0 {width:.0f} {height:.0f}"'
    return Markup(f'<svg {box} role="img" aria-label="{escape(title)}">{drawn}</svg>')


def draw_bars(panels: Mapping[str, Sequence[Bar]]) -> "Figure":
    """Draw horizontal bars from zero with their error lines, in panels below each other.

    Coordinates are points, and there are no axes, because creating axes takes longer than all the
    drawing. `panels` are bars by title; an empty title takes no space.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle
    from matplotlib.transforms import Affine2D

    rows = sum(len(group) + bool(title) for title, group in panels.items())
    figure = Figure(figsize=(WIDTH / 72, (ROW * rows + 8) / 72), dpi=100)
    points: dict[str, Any] = {"transform": Affine2D().scale(1 / 72) + figure.dpi_scale_trans}
    ink = COLOURS["ink"]
    text = points | {"va": "center", "fontsize": 11, "color": ink, "parse_math": False}
    middle = ROW * (rows + 0.5) + 4
    for title, group in panels.items():
        if title:
            middle -= ROW
            figure.text(LABELS, middle, title, ha="left", **text)
        ends = [bar.value + sign * (bar.error or 0.0) for bar in group for sign in (-1, 1)]
        low, high = min(0.0, *ends), max(0.0, *ends)
        scale = (WIDTH - LABELS - TEXTS) / ((high - low) or 1.0)
        zero = LABELS - low * scale
        for bar in group:
            middle -= ROW
            length, colour = bar.value * scale or 1.0, COLOURS[bar.colour]
            figure.add_artist(Rectangle((zero, middle - 9), length, 18, color=colour, **points))
            if bar.error:
                ends = [zero + (bar.value + sign * bar.error) * scale for sign in (-1, 1)]
                line = Line2D(ends, (middle, middle), linewidth=1.6, color=ink, **points)
                figure.add_artist(line)
            figure.text(LABELS - 8, middle, bar.label, ha="right", **text)
            figure.text(WIDTH - TEXTS + 8, middle, bar.text, ha="left", **text)
    return figure


def draw_curves(
    curves: Sequence[Curve],
    x_title: str,
    y_title: str,
    *,
    title: str = "",
    marked: tuple[float, str] | None = None,
    from_zero: bool = False,
    log_x: bool = False,
) -> "Figure":
    """Draw lines and points on common axes, with a legend for those that have a label.

    `marked` is the x position and the name of a vertical line.
    """
    figure, axes = _axes(x_title, y_title, title)
    for curve in curves:
        errors = None if curve.errors is None else [error or 0.0 for error in curve.errors]
        style: dict[str, Any] = {"fmt": curve.style, "label": curve.label, "clip_on": False}
        style["color"] = COLOURS[curve.colour] if curve.colour else None
        axes.errorbar(curve.x, curve.y, errors, **style)
    if log_x:
        axes.set_xscale("log")
    if from_zero:
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 0.0), max(high, 0.0))
    if marked is not None:
        x, name = marked
        axes.axvline(x, color=COLOURS["soft"], linestyle=":", clip_on=False)
        axes.annotate(name, (x, 0.94), (4, 0), axes.get_xaxis_transform(), "offset points")
    if any(curve.label for curve in curves):
        axes.legend(frameon=False)
    return figure


def series(values: Sequence[float], first: int = 1) -> list[Curve]:
    """Return values at `first`, `first` + 1, ... as a curve of at most `MOST_POINTS` points."""
    size = max(1, -(-len(values) // MOST_POINTS))
    parts = [values[i : i + size] for i in range(0, len(values), size)]
    x = [first + i * size + len(part) // 2 for i, part in enumerate(parts)]
    return [Curve("", x, [sum(part) / len(part) for part in parts], colour="chosen")]


def gain_curve_png(
    gains: np.ndarray | None,
    selector: str,
    objective: str,
    knee: int | None = None,
    random: float | None = None,
) -> bytes:
    """Plot the objective by number of picks, its knee, and the mean of random subsets.

    `gains` are the gains in rank order; without any, the title of empty axes says so. `objective`
    is its name, or empty. `random` is the mean value of random subsets of the same size.
    """
    y_title = f"objective {objective}".strip()
    if gains is None or not len(gains):
        title = f"{selector} maximises no objective"
        return png(draw_curves([], "records selected", y_title, title=title))
    reached = np.concatenate([[0.0], np.nancumsum(gains)])
    curves = [Curve(selector, range(len(reached)), reached.tolist(), colour="chosen")]
    if random is not None:
        curves.append(Curve("random, same size", [len(gains)], [random], style="o"))
    marked = (knee, f"knee, {knee:,} records") if knee else None
    return png(draw_curves(curves, "records selected", y_title, marked=marked))


def loss_curve_png(losses: Sequence[float]) -> bytes:
    """Plot the training loss per step, with a running mean over a twentieth of the steps."""
    steps, y_title = range(1, len(losses) + 1), "nats per answer token"
    curves = [Curve("", steps, losses, colour="plain")]
    if (width := len(losses) // SMOOTHED_OVER) > 1:
        smooth = np.convolve(losses, np.full(width, 1 / width), mode="valid")
        curves.append(Curve("", steps[width - 1 :], smooth.tolist(), colour="chosen"))
    return png(draw_curves(curves, "step", y_title, title="training loss", from_zero=True))


def histogram_png(values: Sequence[float] | np.ndarray, title: str, label: str) -> bytes:
    """Plot how often values occur. The title counts values that are not finite.

    The plot is empty if no value is finite. `label` names the values and their unit.
    """
    array = np.asarray(values, dtype=np.float64)
    finite = array[np.isfinite(array)]
    if left_out := array.size - finite.size:
        title = f"{title} ({left_out:,} not finite)"
    figure, axes = _axes(label, "count", title)
    axes.hist(finite, bins=BINS, color=COLOURS["chosen"])
    return png(figure)


def heat_map_png(cells: np.ndarray, title: str) -> bytes:
    """Plot mean utilities of targets (rows) and demonstrations (columns), with zero in white."""
    figure, axes = _axes("demonstrations", "targets", title)
    figure.set_figheight(4)
    extreme = float(np.abs(cells).max(initial=0)) or 1.0
    image = axes.imshow(cells, cmap="RdBu", vmin=-extreme, vmax=extreme, aspect="auto")
    axes.set(xticks=[], yticks=[])
    figure.colorbar(image, label="mean utility")
    return png(figure)


def _axes(x_title: str, y_title: str, title: str) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=100)
    # A layout that matplotlib computes takes longer than all the drawing.
    axes = figure.add_axes((0.1, 0.2, 0.87, 0.68))
    axes.set_title(title, fontsize=12)
    axes.set_xlabel(x_title, fontsize=12)
    axes.set_ylabel(y_title, fontsize=12)
    axes.tick_params(which="both", length=0, labelsize=12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(COLOURS["soft"])
    axes.patch.set_visible(False)
    return figure, axes
