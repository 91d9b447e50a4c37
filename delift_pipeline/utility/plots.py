"""A small picture of a kernel block."""

import io

import numpy as np

from delift_pipeline.utility.block import Block
from delift_pipeline.utility.columns import each_column


def heat_map_png(block: Block, max_side: int = 200) -> bytes:
    """Mean utility over equal cells of targets (down) and demonstrations (across), as a PNG.

    Args:
        block: Any block; absent pairs count as 0.
        max_side: At most this many cells a side.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cells = cell_means(block, max_side)
    figure = Figure(figsize=(4.5, 4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    extreme = float(np.abs(cells).max(initial=0)) or 1.0
    image = axes.imshow(cells, cmap="RdBu", vmin=-extreme, vmax=extreme, aspect="auto")
    axes.set(title=block.name, xlabel="demonstrations", ylabel="targets", xticks=[], yticks=[])
    figure.colorbar(image, label="mean utility")
    picture = io.BytesIO()
    # Without this the file names the version of the plotting library.
    figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()


def cell_means(block: Block, max_side: int) -> np.ndarray:
    """The block averaged down to at most `max_side` cells a side, float64 [down, across]."""
    rows, columns = block.matrix.shape
    if not rows or not columns:
        return np.zeros((1, 1))
    down, across = min(rows, max_side), min(columns, max_side)
    cell_of_row = np.arange(rows) * down // rows
    cell_of_column = np.arange(columns) * across // columns
    sums = np.zeros((across, down))
    for j, (where, values) in enumerate(each_column(block.matrix)):
        cells = cell_of_row if where is None else cell_of_row[where]
        sums[cell_of_column[j]] += np.bincount(cells, weights=values, minlength=down)
    pairs = np.outer(np.bincount(cell_of_column), np.bincount(cell_of_row))
    return (sums / pairs).T
