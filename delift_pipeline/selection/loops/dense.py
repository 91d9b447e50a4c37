"""Columns of a dense kernel, block by block."""

import numpy as np

from delift_pipeline.selection.loops.forms import NOTHING, PLAIN, RAW, SCALE
from delift_pipeline.selection.loops.rows import block_sum, cover, faults, keep, left, unweighted
from delift_pipeline.utility.compiling import entry, jit

# One block of so many tells whether it pays to count the rows of all.
SAMPLED = 8
EPSILON = float(np.finfo(np.float64).eps)


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
def _buffer(kernel):
    """Room for a block, where values do not count as they are stored."""
    return np.empty(0 if kernel.plain else kernel.block, kernel.affine.dtype)


@jit
def dense_lift(kernel, terms, j):
    """Lift of column j."""
    column, buffer, total = kernel.matrix[kernel.columns[j]], _buffer(kernel), 0.0
    kind, state, cap, weights = terms.kind, terms.state, terms.cap, terms.weights
    for low in range(0, kernel.height, kernel.block):
        high = min(low + kernel.block, kernel.height)
        if kernel.plain:
            total += block_sum(column[low:high], low, kind, state, cap, weights)
        else:
            _fill(kernel, column, j, low, high, buffer, 0.0)
            total += block_sum(buffer[: high - low], low, kind, state, cap, weights)
    return total


@jit
def dense_checked_lift(kernel, terms, j):
    """Lift of column j, and how many of its values are negative or not finite."""
    column, buffer, total, wrong = kernel.matrix[kernel.columns[j]], _buffer(kernel), 0.0, 0
    kind, state, cap, weights = terms.kind, terms.state, terms.cap, terms.weights
    for low in range(0, kernel.height, kernel.block):
        high = min(low + kernel.block, kernel.height)
        if kernel.plain:
            total += block_sum(column[low:high], low, kind, state, cap, weights)
            wrong += faults(column[low:high])
        else:
            _fill(kernel, column, j, low, high, buffer, 0.0)
            total += block_sum(buffer[: high - low], low, kind, state, cap, weights)
            wrong += faults(buffer[: high - low])
    return total, wrong


@jit
def _left(kernel, terms, j, stride):
    """How many rows column j may still lift, counted in every block or in one of `stride`."""
    column, buffer, found = kernel.matrix[kernel.columns[j]], _buffer(kernel), 0
    for low in range(0, kernel.height, kernel.block * stride):
        high = min(low + kernel.block, kernel.height)
        if kernel.plain:
            found += left(column[low:high], low, terms.kind, terms.state, terms.cap)
        else:
            _fill(kernel, column, j, low, high, buffer, 0.0)
            found += left(buffer[: high - low], low, terms.kind, terms.state, terms.cap)
    return found


@jit
def dense_cover(kernel, terms, j):
    """Cover with column j."""
    kind, state, cap, best = terms.kind, terms.state, terms.cap, terms.best
    column = kernel.matrix[kernel.columns[j]]
    buffer = np.empty(kernel.block, kernel.affine.dtype)
    for low in range(0, kernel.height, kernel.block):
        high = min(low + kernel.block, kernel.height)
        _fill(kernel, column, j, low, high, buffer, 0.0)
        for i in range(low, high):
            cover(kind, state, cap, best, i, buffer[i - low])


@jit
def dense_take(kernel, terms, memory, j):
    """Cover with column j, by the rows that it may still lift where they are remembered."""
    if memory.count[j] < 0:
        return dense_cover(kernel, terms, j)
    for place in range(memory.count[j]):
        row, value = memory.rows[j, place], memory.values[j, place]
        cover(terms.kind, terms.state, terms.cap, terms.best, row, value)


@jit
def _remember(kernel, terms, memory, j):
    """Keep the rows that column j may still lift."""
    kind, state, cap = terms.kind, terms.state, terms.cap
    column, buffer = kernel.matrix[kernel.columns[j]], _buffer(kernel)
    rows, values, kept = memory.rows[j], memory.values[j], 0
    for low in range(0, kernel.height, kernel.block):
        high = min(low + kernel.block, kernel.height)
        if kernel.plain:
            kept = keep(column[low:high], low, kind, state, cap, rows, values, kept)
        else:
            _fill(kernel, column, j, low, high, buffer, 0.0)
            kept = keep(buffer[: high - low], low, kind, state, cap, rows, values, kept)
    memory.count[j] = kept


@jit
def _bound(terms, memory, j, slack):
    """What column j lifts at most, from the rows it may still lift; those that it may not go."""
    kind, state, cap, weights = terms.kind, terms.state, terms.cap, terms.weights
    rows, values, kept, total = memory.rows[j], memory.values[j], np.uint64(0), 0.0
    for place in range(np.uint64(memory.count[j])):
        row, stored = rows[place], values[place]
        lift = unweighted(kind, state, cap, row, np.float64(stored))
        rows[kept], values[kept] = row, stored
        kept += np.uint64(lift > 0.0)
        total += lift if kind == PLAIN else weights[row] * lift
    memory.count[j] = np.int64(kept)
    return total * slack


@jit
def dense_look(kernel, terms, memory, j, now):
    """Lift of column j, or an upper bound of it where that is quicker and not known yet."""
    if memory.count[j] >= 0 and memory.bounded[j] != now:
        memory.bounded[j] = now
        return _bound(terms, memory, j, 1.0 + 4.0 * EPSILON * kernel.height)
    memory.seen[j] = now
    if memory.count[j] >= 0:
        return dense_lift(kernel, terms, j)
    total, room = dense_lift(kernel, terms, j), memory.rows.shape[1] - 1
    if _left(kernel, terms, j, SAMPLED) * SAMPLED <= room and _left(kernel, terms, j, 1) <= room:
        _remember(kernel, terms, memory, j)
    return total


@jit
def dense_size(kernel, memory, j, now):
    """How many values a look at column j reads."""
    if memory.count[j] >= 0 and memory.bounded[j] != now:
        return np.int64(memory.count[j])
    return kernel.height


@jit
def dense_fault(kernel, start, end):
    """The first of columns start to end with a value that is negative or not finite, or -1."""
    buffer = np.empty(kernel.block, kernel.affine.dtype)
    for j in range(start, end):
        column = kernel.matrix[kernel.columns[j]]
        for low in range(0, kernel.height, kernel.block):
            high = min(low + kernel.block, kernel.height)
            _fill(kernel, column, j, low, high, buffer, 0.0)
            if faults(buffer[: high - low]):
                return j
    return -1


@entry
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
