"""What a value does to a row, by the kind of objective."""

import numpy as np

from delift_pipeline.selection.loops.forms import GENERAL, PLAIN, SATURATING
from delift_pipeline.utility.compiling import jit, jit_sum


@jit_sum
def block_sum(values, low, kind, state, cap, weights):
    """The lift of the rows from `low` on that `values` are of."""
    # An unsigned index is never negative, and only then are these loops vectorised.
    first, total = np.uint64(low), 0.0
    if kind == PLAIN:
        for i in range(np.uint64(len(values))):
            lift = np.float64(values[i]) - state[first + i]
            total += lift if lift > 0.0 else 0.0
    elif kind == SATURATING:
        for i in range(np.uint64(len(values))):
            total += weights[first + i] * min(np.float64(values[i]), state[first + i])
    else:
        for i in range(np.uint64(len(values))):
            lift = min(np.float64(values[i]), cap[first + i]) - state[first + i]
            total += weights[first + i] * (lift if lift > 0.0 else 0.0)
    return total


@jit
def unweighted(kind, state, cap, i, value):
    """What a value adds to row i before its weight, at least 0."""
    if kind == PLAIN:
        return max(value - state[i], 0.0)
    if kind == SATURATING:
        return min(value, state[i])
    return max(min(value, cap[i]) - state[i], 0.0)


@jit
def lift_of(kind, state, cap, weights, i, value):
    """What a value adds to row i, at least 0."""
    lift = unweighted(kind, state, cap, i, value)
    return lift if kind == PLAIN else weights[i] * lift


@jit
def cover(kind, state, cap, best, i, stored):
    """Let a value count for row i."""
    value = np.float64(stored)
    if kind == SATURATING:
        state[i] -= min(value, state[i])
        return
    if kind == GENERAL:
        value = min(value, cap[i])
    if value <= state[i]:
        return
    fold = best.shape[1]
    if fold == 0:
        state[i] = value
        return
    place = fold - 1
    while place > 0 and best[i, place - 1] < value:
        best[i, place] = best[i, place - 1]
        place -= 1
    best[i, place] = value
    state[i] = best[i, fold - 1]


@jit
def left(values, low, kind, state, cap):
    """How many of the rows from `low` on their values may still lift."""
    first, found = np.uint64(low), 0
    if kind == PLAIN:
        for i in range(np.uint64(len(values))):
            found += np.float64(values[i]) > state[first + i]
    elif kind == SATURATING:
        for i in range(np.uint64(len(values))):
            found += min(np.float64(values[i]), state[first + i]) > 0.0
    else:
        for i in range(np.uint64(len(values))):
            found += min(np.float64(values[i]), cap[first + i]) > state[first + i]
    return found


@jit
def keep(values, low, kind, state, cap, rows, kept_values, kept):
    """Append the rows from `low` on that their values may still lift; how many there are then.

    Every row is written where the next one goes, which is quicker than to branch, so there must be
    room for one more than are kept.
    """
    first, place = np.uint64(low), np.uint64(kept)
    for i in range(np.uint64(len(values))):
        row = first + i
        value, above = np.float64(values[i]), state[row]
        if kind == SATURATING:
            value, above = min(value, above), 0.0
        elif kind == GENERAL:
            value = min(value, cap[row])
        rows[place], kept_values[place] = row, values[i]
        place += np.uint64(value > above)
    return np.int64(place)


@jit
def faults(values):
    """How many values are negative or not finite."""
    found = 0
    for i in range(np.uint64(len(values))):
        found += not (values[i] >= 0.0 and values[i] < np.inf)
    return found
