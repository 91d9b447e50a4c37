"""Histograms as PNGs, for Dagster's metadata."""

import io
from collections.abc import Sequence

import numpy as np

BINS = 30
MOST_COLUMNS = 200
"""Demonstrations whose pairs a picture of the scores is drawn from."""


def histogram_png(values: Sequence[float] | np.ndarray, title: str, label: str) -> bytes:
    """A PNG of how often values occur; those that are not finite are left out and counted.

    Args:
        values: n numbers; an empty picture where none is finite.
        title: What was counted.
        label: What the values are, with their unit.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    given = np.asarray(values, dtype=np.float64)
    finite = given[np.isfinite(given)]
    figure = Figure(figsize=(6.4, 2.8), dpi=100)
    figure.subplots_adjust(left=0.1, right=0.97, bottom=0.2, top=0.87)
    axes = figure.subplots()
    axes.hist(finite, bins=BINS, color="#0b6e66")
    left_out = given.size - finite.size
    noted = f" ({left_out:,} not finite)" if left_out else ""
    axes.set(title=f"{title}{noted}", xlabel=label, ylabel="count")
    axes.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    return picture.getvalue()
