"""Columns of a sparse kernel."""

import numpy as np

from delift_pipeline.selection.loops.rows import cover, faults, lift_of
from delift_pipeline.utility.compiling import jit


@jit
def sparse_lift(kernel, terms, j):
    """Lift of column j."""
    kind, state, cap, weights = terms.kind, terms.state, terms.cap, terms.weights
    total = 0.0
    for place in range(kernel.indptr[j], kernel.indptr[j + 1]):
        row, value = np.uint64(kernel.indices[place]), np.float64(kernel.data[place])
        total += lift_of(kind, state, cap, weights, row, value)
    return total


@jit
def sparse_checked_lift(kernel, terms, j):
    """Lift of column j, and how many of its values are negative or not finite."""
    wrong = faults(kernel.data[kernel.indptr[j] : kernel.indptr[j + 1]])
    return sparse_lift(kernel, terms, j), wrong


@jit
def sparse_cover(kernel, terms, j):
    """Cover with column j."""
    kind, state, cap, best = terms.kind, terms.state, terms.cap, terms.best
    for place in range(kernel.indptr[j], kernel.indptr[j + 1]):
        cover(kind, state, cap, best, kernel.indices[place], kernel.data[place])


@jit
def sparse_take(kernel, terms, memory, j):
    """Cover with column j."""
    sparse_cover(kernel, terms, j)


@jit
def sparse_look(kernel, terms, memory, j, now):
    """Lift of column j."""
    memory.seen[j] = now
    return sparse_lift(kernel, terms, j)


@jit
def sparse_size(kernel, memory, j, now):
    """How many values a look at column j reads."""
    return kernel.indptr[j + 1] - kernel.indptr[j]


@jit
def sparse_fault(kernel, start, end):
    """The first of columns start to end with a value that is negative or not finite, or -1."""
    for j in range(start, end):
        if faults(kernel.data[kernel.indptr[j] : kernel.indptr[j + 1]]):
            return j
    return -1
