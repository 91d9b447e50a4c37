"""Between objectives and their compiled loops; numba is imported when a kernel is large enough."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from delift_pipeline.utility.columns import Columns

if TYPE_CHECKING:
    from delift_pipeline.selection.kernels_numba import Limits, Memory, Terms
    from delift_pipeline.selection.lowering import Lowered

# Stored values from which compiled loops pay; a column costs NumPy about as much as 50 of them.
FUSED_FROM = 1_000_000
COLUMN_COST = 50
THREADS = 8
# Values a thread should have to read before it is worth starting.
VALUES_A_THREAD = 1_000_000
# A column's rows are remembered once they are this part of all, and so many of all columns.
REMEMBERED_SHARE = 8
REMEMBERED = 1 << 26


@dataclass(frozen=True)
class Plan:
    """What the compiled greedy is asked for.

    Attributes:
        candidates: int64 [m], columns in the order that ties are broken in.
        budget: Picks at most.
        limits: Constraints as arrays, counted in place.
    """

    candidates: np.ndarray = field(repr=False)
    budget: int
    limits: "Limits" = field(repr=False)


@dataclass(frozen=True)
class Picks:
    """Picks in order, their gains, and how many gains were computed."""

    picks: np.ndarray = field(repr=False)
    gains: np.ndarray = field(repr=False)
    computed: int


def engine_of(kernel: Columns) -> "Lowered | None":
    """The kernel for the compiled loops, or None where NumPy will do or must."""
    if max(kernel.stored, COLUMN_COST * kernel.shape[1]) < FUSED_FROM or not all(kernel.shape):
        return None
    from delift_pipeline.selection.lowering import lowered

    return lowered(kernel)


def terms_of(
    state: np.ndarray,
    cap: np.ndarray | None,
    weights: np.ndarray | None,
    best: np.ndarray,
    saturating: bool,
) -> "Terms":
    """The objective's arrays under the compiled loops' names; they are shared, not copied."""
    from delift_pipeline.selection.kernels_numba import GENERAL, PLAIN, SATURATING, Terms

    if cap is None and weights is None:
        return Terms(PLAIN, state, np.zeros(0), np.zeros(0), best)
    cap = np.full(len(state), np.inf) if cap is None else cap
    weights = np.ones(len(state)) if weights is None else weights
    return Terms(SATURATING if saturating else GENERAL, state, cap, weights, best)


def lifts(engine: "Lowered", terms: "Terms", candidates: np.ndarray) -> np.ndarray:
    """Lifts of candidates, float64, by several threads where there is enough to read."""
    from delift_pipeline.selection.kernels_numba import lifts as compiled

    out = np.empty(len(candidates))
    candidates = np.ascontiguousarray(candidates, dtype=np.int64)

    def part(start: int, end: int) -> None:
        compiled(engine, terms, candidates, out, start, end)

    _in_threads(part, len(candidates), _column_size(engine))
    return out


def take_all(engine: "Lowered", terms: "Terms", picks: np.ndarray) -> None:
    """Cover with every pick."""
    from delift_pipeline.selection.kernels_numba import take_all as compiled

    compiled(engine, terms, picks)


def lazy(engine: "Lowered", terms: "Terms", bonus: np.ndarray, plan: Plan) -> Picks:
    """Lazy greedy from the state of `terms`, which is covered in place."""
    from delift_pipeline.selection import kernels_numba

    candidates = np.ascontiguousarray(plan.candidates, dtype=np.int64)
    first = lifts(engine, terms, candidates)
    first += bonus[candidates]
    first /= plan.limits.scale[candidates]
    places = np.argsort(-first, kind="stable")
    # Best first is an order that a heap of any width allows.
    heap = np.column_stack([first[places], places])
    budget = min(plan.budget, len(candidates))
    picks, gains = np.empty(budget, np.int64), np.empty(budget)
    made, computed = kernels_numba.lazy(
        engine,
        terms,
        _memory(engine),
        bonus,
        plan.limits,
        candidates,
        heap,
        picks,
        gains,
    )
    return Picks(picks[:made].copy(), gains[:made].copy(), int(computed) + len(candidates))


def first_fault(engine: "Lowered") -> int:
    """The first column with a value that is negative or not finite, or -1."""
    from delift_pipeline.selection import kernels_numba

    if isinstance(engine, kernels_numba.Sparse):
        return kernels_numba.sparse_fault(engine)
    faults: list[int] = []
    _in_threads(
        lambda start, end: faults.append(kernels_numba.dense_fault(engine, start, end)),
        _width(engine),
        _column_size(engine),
    )
    return min((fault for fault in faults if fault >= 0), default=-1)


def value_range(engine: Any) -> tuple[float, float]:
    """Least and greatest value of a dense kernel that is not masked; (inf, -inf) without any."""
    from delift_pipeline.selection.kernels_numba import dense_range

    parts: list[np.ndarray] = []

    def part(start: int, end: int) -> None:
        found = np.array([np.inf, -np.inf])
        dense_range(engine, found, start, end)
        parts.append(found)

    _in_threads(part, _width(engine), _column_size(engine))
    return min(float(p[0]) for p in parts), max(float(p[1]) for p in parts)


def _memory(engine: Any) -> "Memory":
    """Room to remember what each column may still lift; the system gives it as it is used."""
    from delift_pipeline.selection.kernels_numba import Memory, Sparse

    n, seen = _width(engine), np.zeros(_width(engine), np.int32)
    if isinstance(engine, Sparse):
        nothing = np.zeros((0, 0), np.int32)
        return Memory(seen, seen, seen, nothing, nothing.astype(np.float32))
    slots = 1 + min(engine.height // REMEMBERED_SHARE, REMEMBERED // max(1, n))
    rows, values = np.empty((n, slots), np.uint32), np.empty((n, slots), engine.affine.dtype)
    return Memory(seen, np.zeros(n, np.int32), np.full(n, -1, np.int32), rows, values)


def _width(engine: Any) -> int:
    return len(engine.columns) if hasattr(engine, "columns") else len(engine.indptr) - 1


def _column_size(engine: Any) -> int:
    return engine.height if hasattr(engine, "columns") else 64


def _in_threads(part: Callable[[int, int], None], count: int, size: int) -> None:
    """Run part(start, end) over a range whose steps each read `size` values."""
    able = min(THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    threads = max(1, min(able, count * size // VALUES_A_THREAD))
    if threads == 1:
        return part(0, count)
    edges = np.linspace(0, count, threads + 1).astype(int).tolist()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, edges[:-1], edges[1:]))
