"""Between objectives and their compiled loops; numba is imported when a kernel is large enough."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from delift_pipeline.utility.columns import Columns
from delift_pipeline.utility.crew import Crew

if TYPE_CHECKING:
    from delift_pipeline.selection.loops.forms import Limits, Memory, Queue, Terms
    from delift_pipeline.selection.lowering import Lowered

# Stored values from which compiled loops pay; a column costs NumPy about as much as 50 of them.
FUSED_FROM = 1_000_000
COLUMN_COST = 50
# A column's rows are remembered once they are this part of all, and so many of all columns.
REMEMBERED_SHARE = 6
REMEMBERED = 1 << 26
# Candidates that are looked at together, at most.
BATCH = 1 << 16


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
    from delift_pipeline.selection.loops.forms import GENERAL, PLAIN, SATURATING, Terms

    if cap is None and weights is None:
        return Terms(PLAIN, state, np.zeros(0), np.zeros(0), best)
    cap = np.full(len(state), np.inf) if cap is None else cap
    weights = np.ones(len(state)) if weights is None else weights
    return Terms(SATURATING if saturating else GENERAL, state, cap, weights, best)


def lifts(engine: "Lowered", terms: "Terms", candidates: np.ndarray) -> np.ndarray:
    """Lifts of candidates, float64, by several threads where there is enough to read."""
    from delift_pipeline.selection.loops.greedy import lifts as compiled

    out = np.empty(len(candidates))
    candidates = np.ascontiguousarray(candidates, dtype=np.int64)
    work = len(candidates) * _column_size(engine)
    with Crew() as crew:
        crew.share(
            lambda start, end: compiled(engine, terms, candidates, out, start, end),
            len(candidates),
            work,
        )
    return out


def checked_lifts(engine: "Lowered", terms: "Terms") -> tuple[np.ndarray, int]:
    """Lifts of all columns, float64 [n], and the first column with a bad value, or -1.

    Bad is what is negative or not finite. One pass over the kernel does both.
    """
    from delift_pipeline.selection.loops.greedy import checked_lifts as compiled

    out = np.empty(_width(engine))
    return out, _first(engine, lambda start, end: compiled(engine, terms, out, start, end))


def first_fault(engine: "Lowered") -> int:
    """The first column with a value that is negative or not finite, or -1."""
    from delift_pipeline.selection.loops.greedy import first_fault as compiled

    return _first(engine, lambda start, end: compiled(engine, start, end))


def _first(engine: "Lowered", part: Callable[[int, int], int]) -> int:
    """The least column that parts of a pass over all columns name, or -1."""
    width = _width(engine)
    with Crew() as crew:
        named = crew.share(part, width, width * _column_size(engine))
    return min((column for column in named if column >= 0), default=-1)


def take_all(engine: "Lowered", terms: "Terms", picks: np.ndarray) -> None:
    """Cover with every pick."""
    from delift_pipeline.selection.loops.greedy import take_all as compiled

    compiled(engine, terms, picks)


def lazy(
    engine: "Lowered", terms: "Terms", bonus: np.ndarray, plan: Plan, first: np.ndarray
) -> Picks:
    """Lazy greedy from the state of `terms`, which is covered in place.

    Args:
        engine: The kernel.
        terms: The objective.
        bonus: float64 [n].
        plan: What is asked for.
        first: float64 [m], gains of the candidates in that state.
    """
    from delift_pipeline.selection.loops import greedy

    queue, memory = _queue(plan, first), _memory(engine)
    budget = min(plan.budget, len(plan.candidates))
    picks, gains = np.empty(budget, np.int64), np.empty(budget)
    parts = engine, terms, memory, bonus, plan.limits, queue

    def look_at(start: int, end: int) -> None:
        greedy.look_at(*parts, start, end)

    with Crew() as crew:
        while waiting := greedy.lazy(*parts, picks, gains, crew.least):
            crew.share(look_at, waiting, crew.least)
    made, computed = int(queue.counts[1]), int(queue.counts[2])
    return Picks(picks[:made].copy(), gains[:made].copy(), computed + len(plan.candidates))


def _queue(plan: Plan, first: np.ndarray) -> "Queue":
    from delift_pipeline.selection.loops.forms import Queue

    candidates = np.ascontiguousarray(plan.candidates, dtype=np.int64)
    keys = first / plan.limits.scale[candidates]
    places = np.argsort(-keys, kind="stable")
    # Best first is an order that a heap of any width allows.
    heap = np.column_stack([keys[places], places])
    size = min(BATCH, len(candidates))
    counts = np.array([len(candidates), 0, 0, 0, 0, 0], np.int64)
    return Queue(candidates, heap, np.empty(size, np.int64), np.empty(size), counts)


def value_range(engine: Any) -> tuple[float, float]:
    """Least and greatest value of a dense kernel that is not masked; (inf, -inf) without any."""
    from delift_pipeline.selection.loops.dense import dense_range

    def part(start: int, end: int) -> np.ndarray:
        found = np.array([np.inf, -np.inf])
        dense_range(engine, found, start, end)
        return found

    with Crew() as crew:
        parts = crew.share(part, _width(engine), _width(engine) * _column_size(engine))
    return min(float(p[0]) for p in parts), max(float(p[1]) for p in parts)


def _memory(engine: Any) -> "Memory":
    """Room to remember what each column may still lift; the system gives it as it is used."""
    from delift_pipeline.selection.loops.forms import Memory, Sparse

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
