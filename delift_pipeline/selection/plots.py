"""Small pictures of a selection."""

import io

import numpy as np

from delift_pipeline.selection.result import Selection


def gain_curve_png(selection: Selection) -> bytes:
    """The objective by number of picks, its knee, and the mean of random subsets, as a PNG.

    Args:
        selection: A selection with gains; one without gives an empty pair of axes that says so.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(xlabel="records selected", ylabel=f"objective {selection.objective or ''}".strip())
    if selection.gains is None or not len(selection.gains):
        axes.set_title(f"{selection.selector} maximises no objective")
    else:
        reached = np.concatenate([[0.0], np.nancumsum(selection.gains)])
        axes.plot(range(len(reached)), reached, label=selection.selector)
        if knee := selection.details.get("knee"):
            axes.axvline(knee, linestyle=":", color="grey", label=f"knee, {knee:,} records")
        if selection.value_random is not None:
            axes.plot(len(reached) - 1, selection.value_random, "o", label="random, same size")
        axes.legend()
    picture = io.BytesIO()
    # Without this the file names the version of the plotting library.
    figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()
