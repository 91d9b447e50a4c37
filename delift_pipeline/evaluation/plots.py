"""Score bars as a PNG, for Dagster's metadata."""

import io
from collections.abc import Mapping

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from delift_pipeline.evaluation.options import METRICS

OWN, OTHER = "#0b6e66", "#9db4bd"


def metric_bars_png(metrics: Mapping[str, Mapping[str, float]]) -> bytes:
    """One small panel a metric, one bar a model, with standard errors.

    Args:
        metrics: Model's name -> its metrics and their `_se`; the first is drawn in colour.
    """
    shown = [(n, m) for n, m in METRICS.items() if any(n in set(v) for v in metrics.values())]
    figure = Figure(figsize=(2.6 * max(1, len(shown)), 2.8), dpi=100)
    FigureCanvasAgg(figure)
    # A computed layout takes longer than all the drawing.
    figure.subplots_adjust(left=0.06, right=0.99, bottom=0.25, top=0.82, wspace=0.35)
    row = figure.subplots(1, max(1, len(shown)), squeeze=False)[0]
    for axes, (name, metric) in zip(row, shown, strict=False):
        heights = [values.get(name, 0.0) for values in metrics.values()]
        errors = [values.get(f"{name}_se", 0.0) for values in metrics.values()]
        colours = [OWN, *[OTHER] * (len(metrics) - 1)]
        axes.bar(list(metrics), heights, yerr=errors, color=colours, capsize=3)
        axes.set_title(f"{metric.title}\n({metric.better} is better)", fontsize=9)
        axes.tick_params(axis="x", labelrotation=30, labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()
