"""Loops over tokens as rows: the root-mean-square norm, alone and after a sum."""

from typing import Any

import numpy as np

from delift_pipeline.scoring.loops.numbers import stored, wide
from delift_pipeline.utility.compiling import compiled

FAST: dict[str, Any] = {"fastmath": {"reassoc", "nsz", "contract"}, "error_model": "numpy"}
"""Sums in vector order, fixed by their length; NaN and infinity keep their meaning."""


def _norm_rows(hidden, weight, epsilon, out):
    """`out` becomes the norm of the rows of `hidden` [rows, width], by `weight` [width]."""
    width = hidden.shape[1]
    for i in range(len(hidden)):
        row, to, squares = hidden[i], out[i], np.float32(0)
        for j in range(width):
            squares += wide(row[j]) * wide(row[j])
        scale = np.float32(1) / np.sqrt(squares / np.float32(width) + epsilon)
        for j in range(width):
            # Rounded before the weight as well, as the models' own norms are.
            normed = wide(stored(wide(row[j]) * scale, row[j]))
            to[j] = stored(wide(weight[j]) * normed, row[j])


norm_rows = compiled(_norm_rows, **FAST)


def _add_and_norm_rows(hidden, more, weight, epsilon, out):
    """Add `more` to the rows of `hidden`, then as `norm_rows`."""
    for i in range(len(hidden)):
        row, other = hidden[i], more[i]
        for j in range(hidden.shape[1]):
            row[j] = stored(wide(row[j]) + wide(other[j]), row[j])
    norm_rows(hidden, weight, epsilon, out)


add_and_norm_rows = compiled(_add_and_norm_rows, **FAST)
