"""The loss curve as a PNG, for Dagster's metadata and MLflow."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

SMOOTHED_OVER = 20
"""The dark line is a running mean over this part of the steps."""


def loss_curve_png(losses: Sequence[float], title: str = "training loss") -> bytes:
    """A PNG of the loss per step, with a running mean over a twentieth of the steps."""
    figure = Figure(figsize=(6.4, 2.8), dpi=110, layout="constrained")
    axes = figure.subplots()
    steps = np.arange(1, len(losses) + 1)
    axes.plot(steps, losses, color="#9db4bd", linewidth=1)
    width = max(1, len(losses) // SMOOTHED_OVER)
    if width > 1:
        smooth = np.convolve(np.asarray(losses), np.full(width, 1 / width), mode="valid")
        axes.plot(steps[width - 1 :], smooth, color="#0b6e66", linewidth=2)
    axes.set(title=title, xlabel="step", ylabel="nats per answer token", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
