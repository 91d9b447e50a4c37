"""Loops that lay out heads by head and cell, as attention reads them, and take them back.

A cell is a place in the rows of a batch, padding included; `spread` names the token in each.
"""

import numpy as np

from delift_pipeline.scoring.loops.numbers import stored, wide
from delift_pipeline.scoring.loops.rows import FAST
from delift_pipeline.utility.compiling import compiled


def _lay_out(heads, spread, out):
    """Write heads [tokens, heads, width] to cells of `out` [more heads, cells, width].

    Each head serves as many of `out` as there are more of them.
    """
    many, width = heads.shape[1], heads.shape[2]
    times = out.shape[0] // many
    for cell in range(len(spread)):
        for h in range(many):
            row = heads[spread[cell], h]
            for copy in range(h * times, (h + 1) * times):
                to = out[copy, cell]
                for j in range(width):
                    to[j] = row[j]


lay_out = compiled(_lay_out, **FAST)


def _turn_out(heads, spread, places, cos, sin, out):
    """As `lay_out`, each token turned by its place.

    `places` [tokens] are rows of cos and sin [places, turned width]; the first half of a row of sin
    has its sign changed.
    """
    many, width, turned = heads.shape[1], heads.shape[2], cos.shape[1]
    times, half = out.shape[0] // many, turned // 2
    for cell in range(len(spread)):
        token = spread[cell]
        c, s = cos[places[token]], sin[places[token]]
        for h in range(many):
            row = heads[token, h]
            for copy in range(h * times, (h + 1) * times):
                to = out[copy, cell]
                for j in range(half):
                    low, high = wide(row[j]), wide(row[j + half])
                    to[j] = stored(low * wide(c[j]) + high * wide(s[j]), row[j])
                    other = high * wide(c[j + half]) + low * wide(s[j + half])
                    to[j + half] = stored(other, row[j])
                for j in range(turned, width):
                    to[j] = row[j]


turn_out = compiled(_turn_out, **FAST)


def _take_back(values, sums, cells, out):
    """`out` [tokens, heads, width]: values [heads, cells, width] over sums [heads, cells]."""
    width = values.shape[2]
    for token in range(len(cells)):
        cell = cells[token]
        for h in range(values.shape[0]):
            row, to, share = values[h, cell], out[token, h], np.float32(1) / sums[h, cell]
            for j in range(width):
                to[j] = stored(wide(row[j]) * share, row[j])


take_back = compiled(_take_back, **FAST)
