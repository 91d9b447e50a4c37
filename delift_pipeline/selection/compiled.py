"""Compiled loops for gains and lazy greedy over large kernels.

The columns of a kernel are read one after another from memory or from a mapped file, without a
copy. All functions here sum over rows in the same order. So a gain that is computed again is never
greater, to the last bit, and every optimizer sees the same gains.
"""

import heapq
from typing import NamedTuple

import numpy as np

from delift_pipeline.core.compiling import compile_function, compile_sum
from delift_pipeline.kernel.columns import Columns, DenseColumns, SparseColumns

ROWS_PER_BLOCK = 256
COLUMNS_PER_PASS = 4
"""How many columns are read at once."""


class Kernel(NamedTuple):
    """The arrays of a kernel for the compiled loops.

    Attributes:
        indptr: int64 [n + 1], where each column starts.
        indices: int32, row of each value; empty if every column holds all rows.
        data: float32 or float64, values.
    """

    indptr: np.ndarray
    indices: np.ndarray
    data: np.ndarray


class Terms(NamedTuple):
    """The arrays of an objective, float64 [rows]; `cap` and `weights` are empty if not used."""

    state: np.ndarray
    cap: np.ndarray
    weights: np.ndarray


def compiled_kernel(matrix: Columns) -> Kernel | None:
    """Return the kernel for the compiled loops, or None if they cannot read this kind of matrix."""
    if isinstance(matrix, SparseColumns):
        data = matrix.data.astype(np.float32) if matrix.data.dtype == np.float16 else matrix.data
        return Kernel(*map(_read_only, (matrix.indptr.astype(np.int64), matrix.indices, data)))
    if not isinstance(matrix, DenseColumns):
        return None
    values, (rows, n) = np.asarray(matrix.matrix), matrix.shape
    if values.dtype == np.float16 or not values.flags.f_contiguous:
        return None
    indptr, no_indices = np.arange(n + 1, dtype=np.int64) * rows, np.zeros(0, np.int32)
    return Kernel(*map(_read_only, (indptr, no_indices, values.reshape(-1, order="F"))))


def _read_only(array: np.ndarray) -> np.ndarray:
    """Return a contiguous read-only view, so that numba compiles for one type of array."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


def objective_terms(state: np.ndarray, cap: np.ndarray | None, weights: np.ndarray | None) -> Terms:
    """Return the objective's arrays, shared and not copied."""
    if cap is None and weights is None:
        return Terms(state, np.zeros(0), np.zeros(0))
    cap = np.full(len(state), np.inf) if cap is None else cap
    return Terms(state, cap, np.ones(len(state)) if weights is None else weights)


@compile_sum
def _block_lift(values, low, state, cap, weights):
    """Sum how much the values of the rows from `low` on exceed the state of these rows."""
    # An unsigned index is never negative, and only then are these loops vectorised.
    first, total = np.uint64(low), 0.0
    if len(cap) == 0:
        for i in range(np.uint64(len(values))):
            lift = np.float64(values[i]) - state[first + i]
            total += lift if lift > 0.0 else 0.0
    else:
        for i in range(np.uint64(len(values))):
            lift = min(np.float64(values[i]), cap[first + i]) - state[first + i]
            total += weights[first + i] * (lift if lift > 0.0 else 0.0)
    return total


@compile_function
def compute_lifts(kernel, terms, columns, out):
    """Write into `out`, float64 [columns], how much each column raises the state of all rows."""
    state, cap, weights = terms.state, terms.cap, terms.weights
    out[: len(columns)] = 0.0
    if len(kernel.indices) == 0:
        # A block of rows of a few columns fits the cache, which is faster than column by column.
        for first in range(0, len(columns), COLUMNS_PER_PASS):
            for low in range(0, len(state), ROWS_PER_BLOCK):
                high = min(low + ROWS_PER_BLOCK, len(state))
                for place in range(first, min(first + COLUMNS_PER_PASS, len(columns))):
                    start = kernel.indptr[columns[place]]
                    values = kernel.data[start + low : start + high]
                    out[place] += _block_lift(values, low, state, cap, weights)
        return
    for number, j in enumerate(columns):
        total = 0.0
        for place in range(kernel.indptr[j], kernel.indptr[j + 1]):
            row, value = np.uint64(kernel.indices[place]), np.float64(kernel.data[place])
            if len(cap) == 0:
                total += max(value - state[row], 0.0)
            else:
                total += weights[row] * max(min(value, cap[row]) - state[row], 0.0)
        out[number] = total


@compile_function
def _cover_rows(kernel, terms, j):
    """Raise the state of each row to its value in column j, at most to its cap."""
    state, cap, dense = terms.state, terms.cap, len(kernel.indices) == 0
    start, end = kernel.indptr[j], kernel.indptr[j + 1]
    for place in range(start, end):
        row = np.uint64(place - start if dense else kernel.indices[place])
        value = np.float64(kernel.data[place])
        if len(cap) > 0:
            value = min(value, cap[row])
        state[row] = max(state[row], value)


@compile_function
def cover_all(kernel, terms, picks):
    """Raise the state of the rows by every pick."""
    for j in picks:
        _cover_rows(kernel, terms, j)


@compile_function
def _is_admissible(limits, slots, j):
    """Whether column j may be picked with `slots` picks left. Once it may not, it never may."""
    if limits.costs[j] > limits.left[0]:
        return False
    for d in range(limits.groups.shape[0]):
        group = limits.groups[d, j]
        if limits.counts[d, group] >= limits.high[d, group]:
            return False
        owed = limits.owed[d] >= slots
        if owed and limits.counts[d, group] >= limits.low[d, group]:
            return False
    return True


@compile_function
def _count_pick(limits, j):
    """Count a pick."""
    limits.left[0] -= limits.costs[j]
    for d in range(limits.groups.shape[0]):
        group = limits.groups[d, j]
        limits.owed[d] -= limits.counts[d, group] < limits.low[d, group]
        limits.counts[d, group] += 1


@compile_function
def run_lazy_greedy(kernel, terms, bonus, limits, stop, candidates, first, picks, gains):
    """Run lazy greedy, updating the state of `terms` and the counts of `limits` in place.

    `candidates`, int64 [m], are columns in the order that breaks ties, and `first`, float64 [m],
    their gains in the present state. It stops at a gain below the share `stop` of the first gain.
    The results are written into `picks`, int64 [budget], and `gains`, float64 [budget].

    Returns:
        The number of picks, and the number of gains that were computed.
    """
    heap = [(-first[place] / limits.scale[candidates[place]], place) for place in range(len(first))]
    heapq.heapify(heap)
    gain_of = first.copy()
    # How many picks there were when a gain was computed, and when its key in the heap was renewed.
    computed_at, keyed_at = np.zeros(len(first), np.int32), np.zeros(len(first), np.int32)
    stale, lifts = np.empty(COLUMNS_PER_PASS, np.int64), np.empty(COLUMNS_PER_PASS)
    picked, computed = 0, len(first)
    while picked < len(picks) and len(heap) > 0:
        place = heap[0][1]
        j = candidates[place]
        if not _is_admissible(limits, len(picks) - picked, j):
            heapq.heappop(heap)
            continue
        if computed_at[place] != picked:
            count = 0
            for _, other in heap[:COLUMNS_PER_PASS]:
                if computed_at[other] != picked:
                    stale[count] = other
                    computed_at[other] = picked
                    count += 1
            compute_lifts(kernel, terms, candidates[stale[:count]], lifts)
            for i in range(count):
                gain_of[stale[i]] = lifts[i] + bonus[candidates[stale[i]]]
            computed += count
        if keyed_at[place] != picked:
            keyed_at[place] = picked
            heapq.heapreplace(heap, (-gain_of[place] / limits.scale[j], place))
            continue
        heapq.heappop(heap)
        gain = gain_of[place]
        if picked > 0 and gain < stop * gains[0]:
            break
        picks[picked], gains[picked] = j, gain
        picked += 1
        _cover_rows(kernel, terms, j)
        _count_pick(limits, j)
    return picked, computed
