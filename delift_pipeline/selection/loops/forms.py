"""What the compiled loops read and write, as tuples of arrays."""

from typing import NamedTuple

import numpy as np

# Values count above what is covered; the same under caps and weights; up to what is left.
PLAIN, GENERAL, SATURATING = 0, 1, 2
# What is done to a stored value before it counts.
RAW, CLIP, SCALE, NOTHING = 0, 1, 2, 3
# Places in `Queue.counts`.
SIZE, MADE, COMPUTED, WAITING, SPENT, BEFORE = 0, 1, 2, 3, 4, 5


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


class Queue(NamedTuple):
    """Where lazy greedy stands between two calls.

    Attributes:
        candidates: int64 [m], columns in the order that ties are broken in.
        heap: float64 [m, 2], gain / scale (or what it was, or a bound) and the candidate's place,
            in the order of `heap.sink`.
        batch: int64 [b], places taken off the heap to be looked at together.
        fresh: float64 [b], what was found for them.
        counts: int64 [6]: heap entries, picks made, gains or bounds computed, entries in the
            batch, values read for the coming pick and for the one before it.
    """

    candidates: np.ndarray
    heap: np.ndarray
    batch: np.ndarray
    fresh: np.ndarray
    counts: np.ndarray
