"""Compiled inner loops of coverage objectives; imported when a kernel is large enough to pay.

Everything that is compiled lies in this one file, because numba's cache looks at no other: a change
elsewhere would go on running the old code.

A dense kernel is read in blocks of rows, and every sum over the same rows runs in the same order
wherever it is computed, so that a gain computed again is never greater, to the last bit, and every
optimizer sees the same gains.

Once a target is covered better than a column covers it, the column never lifts it again. Lazy
greedy therefore keeps, for each column that it looked at, the rows that are left and their values,
as soon as they are few. Their sum bounds the gain from above by the little that rounding may
matter, and only a column whose bound is the greatest of all is read whole.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numba
import numpy as np
from numba.extending import overload

# Values count above what is covered; the same under caps and weights; up to what is left.
PLAIN, GENERAL, SATURATING = 0, 1, 2
# What is done to a stored value before it counts.
RAW, CLIP, SCALE, NOTHING = 0, 1, 2, 3
EPSILON = float(np.finfo(np.float64).eps)

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function, **options: Any) -> Function:
    """Compile without the interpreter lock, kept on disk where some cache folder can be written."""
    compile_with: Any = numba.njit
    try:
        return compile_with(cache=True, nogil=True, **options)(function)
    except RuntimeError:
        return compile_with(nogil=True, **options)(function)


def jit(function: Function) -> Function:
    """Compile with sums in the order written."""
    return compiled(function)


def jit_sum(function: Function) -> Function:
    """Compile with sums in vector order, fixed by their length; NaN keeps its meaning."""
    return compiled(function, fastmath={"reassoc", "nsz"})


class Dense(NamedTuple):
    """A dense kernel and how it is read; made by `lowering`.

    Attributes:
        matrix: [source columns, source rows], float32, float64, or the bits of float16.
        columns: int64 [n], source column of each column.
        rows: int64 [height], source row of each row; empty for all in order.
        factors: float32 [height], what each row is multiplied by; empty for nothing.
        affine: (low, span), in the type that values are computed in.
        group: int64 [n], group of each column whose members are masked, -1 for none.
        starts: int64 [groups + 1], where each group's members start.
        members: int64, rows, by group.
        mode: RAW, CLIP, SCALE or NOTHING.
        half: Whether `matrix` holds float16 bits.
        plain: Whether values count as they are stored.
        height: Number of rows.
        block: Rows a block.
    """

    matrix: np.ndarray
    columns: np.ndarray
    rows: np.ndarray
    factors: np.ndarray
    affine: np.ndarray
    group: np.ndarray
    starts: np.ndarray
    members: np.ndarray
    mode: int
    half: bool
    plain: bool
    height: int
    block: int


class Sparse(NamedTuple):
    """Compressed sparse columns: int64 indptr [n + 1], int indices, float data."""

    indptr: np.ndarray
    indices: np.ndarray
    data: np.ndarray
    height: int


class Terms(NamedTuple):
    """The objective: its kind, and float64 [rows]: covered (or left), cap, weights; best [rows, r].

    `cap` and `weights` are empty under PLAIN; `best` has r = 0 columns unless a target is covered
    r-fold, and then `state` is the least of its r.
    """

    kind: int
    state: np.ndarray
    cap: np.ndarray
    weights: np.ndarray
    best: np.ndarray


class Memory(NamedTuple):
    """What lazy greedy remembers of each column; nothing but `seen` for a sparse kernel.

    Attributes:
        seen: int32 [n], the step its gain was computed at.
        bounded: int32 [n], the step its bound was computed at.
        count: int32 [n], how many rows it may still lift; -1 before they are few.
        rows: uint32 [n, slots], these rows, with room for one more.
        values: [n, slots], its values there, as they count.
    """

    seen: np.ndarray
    bounded: np.ndarray
    count: np.ndarray
    rows: np.ndarray
    values: np.ndarray


class Limits(NamedTuple):
    """Constraints as arrays; see `constraints.Constraints`.

    Attributes:
        costs: float64 [n], what each column takes of `left`.
        scale: float64 [n], above 0: candidates are compared by gain / scale.
        left: float64 [1], what may still be spent.
        groups: int64 [d, n], group of each column in each of d partitions.
        low: int64 [d, g], picks wanted of each group.
        high: int64 [d, g], picks allowed.
        counts: int64 [d, g], picks made.
        wanted: int64 [d], picks still owed to groups below their `low`.
        stop: Share of the first gain under which nothing more is picked.
    """

    costs: np.ndarray
    scale: np.ndarray
    left: np.ndarray
    groups: np.ndarray
    low: np.ndarray
    high: np.ndarray
    counts: np.ndarray
    wanted: np.ndarray
    stop: float


@jit_sum
def _block_sum(values, low, kind, state, cap, weights):
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
def _half(bits):
    """The float32 of a float16's bits; NaN for all that is not finite."""
    wide = np.uint32(bits)
    shifted = np.uint32(((wide & np.uint32(0x8000)) << 16) | ((wide & np.uint32(0x7FFF)) << 13))
    value = shifted.view(np.float32) * np.float32(2.0**112)
    return np.float32(np.nan) if (wide & np.uint32(0x7C00)) == 0x7C00 else value


@jit
def _load(column, rows, half, low, high, buffer):
    """Stored values of rows low to high."""
    if len(rows) > 0:
        wanted = rows[low:high]
        for i in range(len(wanted)):
            buffer[i] = _half(column[wanted[i]]) if half else column[wanted[i]]
        return
    part = column[low:high]
    if half:
        for i in range(len(part)):
            buffer[i] = _half(part[i])
    else:
        for i in range(len(part)):
            buffer[i] = part[i]


@jit
def _scale(factors, affine, mode, values):
    """Row factors, the affine map and clipping, in place."""
    for i in range(len(factors)):
        values[i] = values[i] * factors[i]
    if mode == SCALE:
        base, span = affine[0], affine[1]
        for i in range(len(values)):
            values[i] = (values[i] - base) / span
    if mode == NOTHING:
        values[:] = 0.0
    elif mode != RAW:
        for i in range(len(values)):
            values[i] = 0.0 if values[i] < 0.0 else values[i]


@jit
def _mask(starts, members, group, low, high, buffer, value):
    """A value for the masked rows among low to high."""
    if group >= 0:
        for place in range(starts[group], starts[group + 1]):
            row = members[place]
            if low <= row < high:
                buffer[row - low] = value


@jit
def _fill(kernel, column, j, low, high, buffer, masked):
    """Rows low to high of column j as they count, into the buffer."""
    _load(column, kernel.rows, kernel.half, low, high, buffer)
    _scale(kernel.factors[low:high], kernel.affine, kernel.mode, buffer[: high - low])
    _mask(kernel.starts, kernel.members, kernel.group[j], low, high, buffer, masked)


@jit
def _dense_lift(kernel, terms, j):
    """Lift of column j."""
    column = kernel.matrix[kernel.columns[j]]
    kind, state, cap, weights = terms.kind, terms.state, terms.cap, terms.weights
    buffer = np.empty(0 if kernel.plain else kernel.block, kernel.affine.dtype)
    total = 0.0
    for low in range(0, kernel.height, kernel.block):
        high = min(low + kernel.block, kernel.height)
        if kernel.plain:
            total += _block_sum(column[low:high], low, kind, state, cap, weights)
        else:
            _fill(kernel, column, j, low, high, buffer, 0.0)
            total += _block_sum(buffer[: high - low], low, kind, state, cap, weights)
    return total


@jit
def _lift_of(kind, state, cap, weights, i, value):
    """What a value adds to row i, at least 0."""
    if kind == PLAIN:
        return max(value - state[i], 0.0)
    if kind == SATURATING:
        return weights[i] * min(value, state[i])
    return weights[i] * max(min(value, cap[i]) - state[i], 0.0)


@jit
def _sparse_lift(kernel, terms, j):
    """Lift of column j."""
    kind, state, cap, weights = terms.kind, terms.state, terms.cap, terms.weights
    total = 0.0
    for place in range(kernel.indptr[j], kernel.indptr[j + 1]):
        row, value = np.uint64(kernel.indices[place]), np.float64(kernel.data[place])
        total += _lift_of(kind, state, cap, weights, row, value)
    return total


@jit
def _cover(kind, state, cap, best, i, stored):
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
def _dense_take(kernel, terms, j):
    kind, state, cap, best = terms.kind, terms.state, terms.cap, terms.best
    column = kernel.matrix[kernel.columns[j]]
    buffer = np.empty(kernel.block, kernel.affine.dtype)
    for low in range(0, kernel.height, kernel.block):
        high = min(low + kernel.block, kernel.height)
        _fill(kernel, column, j, low, high, buffer, 0.0)
        for i in range(low, high):
            _cover(kind, state, cap, best, i, buffer[i - low])


@jit
def _sparse_take(kernel, terms, j):
    kind, state, cap, best = terms.kind, terms.state, terms.cap, terms.best
    for place in range(kernel.indptr[j], kernel.indptr[j + 1]):
        _cover(kind, state, cap, best, kernel.indices[place], kernel.data[place])


@jit
def _left(values, low, kind, state, cap):
    """How many of the rows from `low` on their values may still lift."""
    first, left = np.uint64(low), 0
    if kind == PLAIN:
        for i in range(np.uint64(len(values))):
            left += np.float64(values[i]) > state[first + i]
    elif kind == SATURATING:
        for i in range(np.uint64(len(values))):
            left += min(np.float64(values[i]), state[first + i]) > 0.0
    else:
        for i in range(np.uint64(len(values))):
            left += min(np.float64(values[i]), cap[first + i]) > state[first + i]
    return left


@jit
def _keep(values, low, kind, state, cap, rows, kept_values, kept):
    """Append the rows from `low` on that their values may still lift; how many there are then.

    Every row is written where the next one goes, which is quicker than to branch. Without room for
    all of them the answer is -1.
    """
    room = len(rows) - 1 - kept
    if len(values) > room and _left(values, low, kind, state, cap) > room:
        return -1
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
def _remember(kernel, terms, memory, j):
    """Keep the rows that column j may still lift, if they are few."""
    kind, state, cap = terms.kind, terms.state, terms.cap
    column = kernel.matrix[kernel.columns[j]]
    rows, values, kept = memory.rows[j], memory.values[j], 0
    buffer = np.empty(0 if kernel.plain else kernel.block, kernel.affine.dtype)
    for low in range(0, kernel.height, kernel.block):
        high = min(low + kernel.block, kernel.height)
        if kernel.plain:
            kept = _keep(column[low:high], low, kind, state, cap, rows, values, kept)
        else:
            _fill(kernel, column, j, low, high, buffer, 0.0)
            kept = _keep(buffer[: high - low], low, kind, state, cap, rows, values, kept)
        if kept < 0:
            return
    memory.count[j] = kept


@jit
def _bound(terms, memory, j, slack):
    """What column j lifts at most, from the rows it may still lift; those that it may not go."""
    kind, state, cap, weights = terms.kind, terms.state, terms.cap, terms.weights
    rows, values, kept, total = memory.rows[j], memory.values[j], np.uint64(0), 0.0
    for place in range(np.uint64(memory.count[j])):
        row, stored = rows[place], values[place]
        lift = _lift_of(kind, state, cap, weights, row, np.float64(stored))
        rows[kept], values[kept] = row, stored
        kept += np.uint64(lift > 0.0)
        total += lift
    memory.count[j] = np.int64(kept)
    return total * slack


def _lift(kernel, terms, j) -> Any:
    """Lift of column j, by the kind of kernel."""


def _take(kernel, terms, j) -> Any:
    """Raise what column j covers, by the kind of kernel."""


def _look(kernel, terms, memory, j, now) -> Any:
    """Lift of column j, or an upper bound of it where that is quicker and not known yet."""


@jit
def _sparse_look(kernel, terms, memory, j, now):
    memory.seen[j] = now
    return _sparse_lift(kernel, terms, j)


@jit
def _dense_look(kernel, terms, memory, j, now):
    if memory.count[j] >= 0 and memory.bounded[j] != now:
        memory.bounded[j] = now
        return _bound(terms, memory, j, 1.0 + 4.0 * EPSILON * kernel.height)
    memory.seen[j] = now
    if memory.count[j] < 0:
        _remember(kernel, terms, memory, j)
    return _dense_lift(kernel, terms, j)


def _is_sparse(kernel):
    return "indptr" in kernel.fields


@overload(_lift)
def _lift_of_kind(kernel, terms, j):
    chosen = _sparse_lift if _is_sparse(kernel) else _dense_lift
    return lambda kernel, terms, j: chosen(kernel, terms, j)


@overload(_take)
def _take_of_kind(kernel, terms, j):
    chosen = _sparse_take if _is_sparse(kernel) else _dense_take
    return lambda kernel, terms, j: chosen(kernel, terms, j)


@overload(_look)
def _look_of_kind(kernel, terms, memory, j, now):
    chosen = _sparse_look if _is_sparse(kernel) else _dense_look
    return lambda kernel, terms, memory, j, now: chosen(kernel, terms, memory, j, now)


@jit
def lifts(kernel, terms, candidates, out, start, end):
    """Lifts of candidates[start:end] into `out`."""
    for place in range(start, end):
        out[place] = _lift(kernel, terms, candidates[place])


@jit
def take_all(kernel, terms, picks):
    """Cover with every pick."""
    for j in picks:
        _take(kernel, terms, j)


@jit
def dense_fault(kernel, start, end):
    """The first of columns start to end with a value that is negative or not finite, or -1."""
    buffer = np.empty(kernel.block, kernel.affine.dtype)
    for j in range(start, end):
        column = kernel.matrix[kernel.columns[j]]
        for low in range(0, kernel.height, kernel.block):
            high = min(low + kernel.block, kernel.height)
            _fill(kernel, column, j, low, high, buffer, 0.0)
            faults = 0
            for i in range(high - low):
                faults += not (buffer[i] >= 0.0 and buffer[i] < np.inf)
            if faults:
                return j
    return -1


@jit
def sparse_fault(kernel):
    """The first column with a value that is negative or not finite, or -1."""
    for j in range(len(kernel.indptr) - 1):
        for place in range(kernel.indptr[j], kernel.indptr[j + 1]):
            if not (kernel.data[place] >= 0.0 and kernel.data[place] < np.inf):
                return j
    return -1


@jit
def dense_range(kernel, out, start, end):
    """Least and greatest value that is not masked, of columns start to end, into out [2]."""
    buffer = np.empty(kernel.block, kernel.affine.dtype)
    for j in range(start, end):
        column = kernel.matrix[kernel.columns[j]]
        for low in range(0, kernel.height, kernel.block):
            high = min(low + kernel.block, kernel.height)
            _fill(kernel, column, j, low, high, buffer, np.nan)
            for i in range(high - low):
                # Comparisons with NaN are false, so that masked pairs count for nothing.
                out[0] = buffer[i] if buffer[i] < out[0] else out[0]
                out[1] = buffer[i] if buffer[i] > out[1] else out[1]


@jit
def _sink(heap, size, key, place):
    """Put (key, place) where the top of the heap is and let it sink.

    Entry i has its children at 4 i + 1 to 4 i + 4: half the depth of a binary heap, and the four
    lie side by side in memory.
    """
    hole = 0
    while True:
        first = 4 * hole + 1
        if first >= size:
            break
        child = first
        for other in range(first + 1, min(first + 4, size)):
            better = heap[other, 0] > heap[child, 0]
            tied = heap[other, 0] == heap[child, 0] and heap[other, 1] < heap[child, 1]
            child = other if better or tied else child
        if key > heap[child, 0] or (key == heap[child, 0] and place < heap[child, 1]):
            break
        heap[hole, 0], heap[hole, 1] = heap[child, 0], heap[child, 1]
        hole = child
    heap[hole, 0], heap[hole, 1] = key, place


@jit
def _admits(limits, slots, j):
    """Whether column j may be picked when `slots` picks are left; once it may not, never again."""
    if limits.costs[j] > limits.left[0]:
        return False
    for d in range(limits.groups.shape[0]):
        group = limits.groups[d, j]
        if limits.counts[d, group] >= limits.high[d, group]:
            return False
        owed = limits.wanted[d] >= slots
        if owed and limits.counts[d, group] >= limits.low[d, group]:
            return False
    return True


@jit
def _spend(limits, j):
    limits.left[0] -= limits.costs[j]
    for d in range(limits.groups.shape[0]):
        group = limits.groups[d, j]
        limits.wanted[d] -= limits.counts[d, group] < limits.low[d, group]
        limits.counts[d, group] += 1


@jit
def lazy(kernel, terms, memory, bonus, limits, candidates, heap, picks, gains):
    """Lazy greedy over `candidates`, which stand in the order that ties are broken in.

    Args:
        kernel: Dense or Sparse.
        terms: Terms; covered in place.
        memory: Memory, all gains seen at step 0.
        bonus: float64 [n].
        limits: Limits; counted in place.
        candidates: int64 [m].
        heap: float64 [m, 2], gain / scale and the candidate's place, ordered as `_sink` asks.
        picks: int64 [budget], filled.
        gains: float64 [budget], filled.

    Returns:
        Picks made, gains or bounds computed.
    """
    size, made, computed = len(candidates), 0, 0
    while made < len(picks) and size > 0:
        key, place = heap[0, 0], heap[0, 1]
        j = candidates[np.int64(place)]
        admitted = _admits(limits, len(picks) - made, j)
        if admitted and memory.seen[j] != made:
            gain = _look(kernel, terms, memory, j, made) + bonus[j]
            computed += 1
            _sink(heap, size, gain / limits.scale[j], place)
            continue
        size -= 1
        _sink(heap, size, heap[size, 0], heap[size, 1])
        if not admitted:
            continue
        gain = key if limits.scale[j] == 1.0 else _lift(kernel, terms, j) + bonus[j]
        if made > 0 and gain < limits.stop * gains[0]:
            break
        picks[made], gains[made] = j, gain
        made += 1
        _take(kernel, terms, j)
        _spend(limits, j)
    return made, computed
