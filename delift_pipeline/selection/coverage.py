"""The general form behind the objectives: coverage of rows by the chosen columns.

Each row i has a state x_i that only ever moves one way, and a column's gain is a sum of lifts:

    lift_i(j) = w_i max(min(s_ij, cap_i) - x_i, 0)     best: x_i is the r-th best value chosen
    lift_i(j) = w_i min(s_ij, x_i)                     saturating: x_i is what cap_i leaves

Since no lift grows as x moves, the objective is submodular; since none is negative, monotone; and
greedy maximisation reaches 1 - 1/e of the best subset of any size (Nemhauser, Wolsey and Fisher
1978). Kernels may be dense (any memory order, memory maps), sparse or any `Columns`, rectangular,
and hold finite values of at least 0: a negative or missing value is refused.

Small kernels are read by NumPy, so that a handful of records pays for no compilation, and larger
ones by compiled loops. Both sum in an order that the length alone decides, and subtraction rounds
monotonically: a gain computed again later is never greater, to the last bit.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from delift_pipeline.errors import Refused
from delift_pipeline.selection import fused
from delift_pipeline.utility.columns import Columns, DenseColumns, as_columns


class Coverage:
    """Coverage of rows by the best of the chosen columns.

    f(A) = sum_i w_i (clamp(max_{j in A} s_ij, floor_i, cap_i) - floor_i) + sum_{j in A} bonus_j

    Args:
        kernel: Similarities s [rows, n], finite and at least 0.
        floor: float [rows], at least 0; None is 0.
        cap: float [rows], at least the floor; None is no cap.
        weights: float [rows], at least 0; None is 1.
        bonus: float [n], at least 0; None is 0.
        fold: How many of the chosen count for each row: the sum of its `fold` best values takes
            the place of the best. Above 1 there is no floor.
        saturating: Whether rows add up what all chosen columns give, up to the cap, instead.

    Attributes:
        state: float64 [rows], x of the form above, for the columns chosen so far.

    Raises:
        Refused: a value is missing, infinite or negative, or a shape does not fit.
    """

    name = "coverage"

    def __init__(
        self,
        kernel: Any,
        *,
        floor: np.ndarray | None = None,
        cap: np.ndarray | None = None,
        weights: np.ndarray | None = None,
        bonus: np.ndarray | None = None,
        fold: int = 1,
        saturating: bool = False,
    ) -> None:
        self.kernel = as_columns(kernel)
        self.engine = fused.engine_of(self.kernel)
        rows, self.n = self.kernel.shape
        if fold < 1 or (fold > 1 and floor is not None) or (saturating and cap is None):
            raise Refused(f"{fold} is no number of picks a target is covered by")
        self._floor = _vector(floor, rows, "floor", 0.0)
        self.cap = None if cap is None else np.maximum(_vector(cap, rows, "cap"), self._floor)
        self.weights = None if weights is None else _vector(weights, rows, "weights")
        self.bonus = _vector(bonus, self.n, "bonus", 0.0)
        self._fold, self.saturating = fold, saturating
        self.reset()
        self._first = self._checked_gains()

    def _checked_gains(self) -> np.ndarray | None:
        """Gains of all columns while none is chosen, found in the pass that checks the values.

        None where NumPy reads the kernel.
        """
        if self.engine is None:
            _check(self.kernel, "kernel")
            return None
        first, fault = fused.checked_lifts(self.engine, self._terms)
        if fault >= 0:
            _refuse_faults(self.kernel, [fault], "kernel")
        return first + self.bonus

    @property
    def weighted(self) -> bool:
        """Whether targets have weights."""
        return self.weights is not None

    def reset(self) -> None:
        """Choose nothing."""
        start = self.cap if self.saturating and self.cap is not None else self._floor
        self.state = start.copy()
        # The r best values of each row, greatest first, where more than one counts.
        self._best = np.zeros((len(start), self._fold if self._fold > 1 else 0))
        self._bonuses = 0.0
        if self.engine is not None:
            self._terms = fused.terms_of(
                self.state, self.cap, self.weights, self._best, self.saturating
            )
        self._untouched = True

    def gain(self, j: int) -> float:
        """How much adding column j would raise the value."""
        if self.engine is not None:
            return float(self.gains(np.array([j]))[0])
        rows, values = self.kernel.column(j)
        where = slice(None) if rows is None else rows
        lift = self._lift(values, where)
        if self.weights is not None:
            lift *= self.weights[where]
        return float(lift.sum()) + float(self.bonus[j])

    def _lift(self, values: np.ndarray, where: Any) -> np.ndarray:
        state = self.state[where]
        if self.saturating:
            return np.minimum(values, state, dtype=np.float64)
        lift = (values if self.cap is None else np.minimum(values, self.cap[where])) - state
        return np.maximum(lift, 0, out=lift)

    def gains(self, candidates: np.ndarray) -> np.ndarray:
        """`gain` of several columns, float64."""
        if self._untouched and self._first is not None:
            return self._first[candidates]
        if self.engine is not None:
            lifts = fused.lifts(self.engine, self._terms, np.asarray(candidates))
            return lifts + self.bonus[candidates]
        return np.array([self.gain(int(j)) for j in candidates], dtype=np.float64)

    def add(self, j: int) -> None:
        """Take column j into the chosen set."""
        self.add_all(np.array([j]))

    def add_all(self, picks: np.ndarray) -> None:
        """Take several columns into the chosen set, in order."""
        picks = np.asarray(picks, dtype=np.int64)
        self._untouched = self._untouched and not len(picks)
        for j in picks:
            self._bonuses += float(self.bonus[j])
        if self.engine is not None:
            return fused.take_all(self.engine, self._terms, picks)
        for j in picks:
            self._raise(int(j))

    def _raise(self, j: int) -> None:
        rows, values = self.kernel.column(j)
        where = np.arange(len(self.state)) if rows is None else rows
        if self.saturating:
            self.state[where] -= np.minimum(values, self.state[where])
            return
        if self.cap is not None:
            values = np.minimum(values, self.cap[where])
        if self._fold == 1:
            self.state[where] = np.maximum(self.state[where], values)
            return
        kept = np.column_stack([self._best[where], values])
        self._best[where] = -np.sort(-kept, axis=1)[:, : self._fold]
        self.state[where] = self._best[where, -1]

    @property
    def value(self) -> float:
        """The value of the chosen set."""
        if self.saturating and self.cap is not None:
            lift = self.cap - self.state
        else:
            lift = self._best.sum(axis=1) if self._fold > 1 else self.state - self._floor
        return float((lift if self.weights is None else lift * self.weights).sum()) + (
            self._bonuses
        )

    def lazily(self, plan: fused.Plan) -> fused.Picks:
        """Lazy greedy in compiled loops from the set chosen so far; needs an engine."""
        if self.engine is None:
            raise Refused("a small kernel has no compiled loops")
        first = self.gains(plan.candidates)
        self._untouched = False
        picks = fused.lazy(self.engine, self._terms, self.bonus, plan, first)
        for j in picks.picks:
            self._bonuses += float(self.bonus[j])
        return picks


def checked_kernel(kernel: Any, called: str = "kernel") -> Columns:
    """The kernel, ready to be read, every value of it finite and at least 0.

    Raises:
        Refused: it is not, with the first column at fault.
    """
    columns = as_columns(kernel)
    engine = fused.engine_of(columns)
    if engine is None:
        _check(columns, called)
    elif (fault := fused.first_fault(engine)) >= 0:
        _refuse_faults(columns, [fault], called)
    return columns


def _check(kernel: Columns, called: str) -> None:
    """Refuse a kernel with a bad value; a dense one is read as a whole first."""
    whole = kernel.matrix if isinstance(kernel, DenseColumns) else None
    # NaN makes both comparisons false, and infinity the second one.
    if whole is not None and whole.size and whole.min() >= 0 and whole.max() < np.inf:
        return
    _refuse_faults(kernel, range(kernel.shape[1]), called)


def _refuse_faults(kernel: Columns, suspects: Iterable[int], called: str) -> None:
    for j in suspects:
        _, values = kernel.column(j)
        if len(values) and not (values.min() >= 0 and values.max() < np.inf):
            fault = "a negative" if np.isfinite(values).all() else "a missing or infinite"
            raise Refused(
                f"the {called} has {fault} value in column {j}: objectives need finite values "
                "of at least 0 (clip or scale the utilities)"
            )


def _vector(values: Any, length: int, called: str, default: float | None = None) -> np.ndarray:
    if values is None and default is not None:
        return np.full(length, default)
    vector = np.asarray(values, dtype=np.float64)
    if vector.shape != (length,):
        raise Refused(f"{called} has shape {vector.shape}, and the kernel asks for ({length},)")
    if not (np.isfinite(vector).all() and (vector >= 0).all()):
        raise Refused(f"{called} holds a missing, infinite or negative value")
    return vector
