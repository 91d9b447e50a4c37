"""Monotone submodular objectives over utility kernels.

All of them are coverage of rows: each row i has a value c_i that starts at a floor and rises to the
best similarity among the chosen columns, at most to a cap; a column may bring a bonus of its own.

    f(A) = sum_i w_i (clamp(max_{j in A} s_ij, floor_i, cap_i) - floor_i) + sum_{j in A} bonus_j

With s, w, bonus >= 0 and floor <= cap this is normalised (f of nothing is 0), monotone and
submodular, so greedy maximisation reaches 1 - 1/e of the best subset of any size (Nemhauser, Wolsey
and Fisher 1978). Kernels may be dense (any memory order, memory maps), sparse or any `Columns`, and
rectangular. They must hold finite values of at least 0: a negative or missing value is refused.
"""

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

from delift_pipeline.errors import Refused
from delift_pipeline.utility.columns import (
    Columns,
    as_columns,
    column_maxima,
    each_column,
    row_maxima,
)


class Objective(Protocol):
    """What an optimizer needs to know of an objective; columns are its ground set.

    Attributes:
        name: The name in options and reports.
        n: Size of the ground set.
    """

    name: str
    n: int

    def gain(self, j: int) -> float:
        """How much adding column j would raise the value; never more than it was before."""
        ...

    def gains(self, candidates: np.ndarray) -> np.ndarray:
        """`gain` of several columns, float64."""
        ...

    def add(self, j: int) -> None:
        """Take column j into the chosen set."""
        ...

    @property
    def value(self) -> float:
        """The value of the chosen set."""
        ...

    def reset(self) -> None:
        """Choose nothing."""
        ...


class Coverage:
    """The general form above.

    Args:
        kernel: Similarities s [rows, n], finite and at least 0.
        floor: float [rows], at least 0; None is 0.
        cap: float [rows], at least the floor; None is no cap.
        weights: float [rows], at least 0; None is 1.
        bonus: float [n], at least 0; None is 0.

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
    ) -> None:
        self.kernel = checked_kernel(kernel)
        rows, self.n = self.kernel.shape
        self._floor = _vector(floor, rows, "floor", 0.0)
        self._cap = None if cap is None else np.maximum(_vector(cap, rows, "cap"), self._floor)
        self._weights = None if weights is None else _vector(weights, rows, "weights")
        self.bonus = _vector(bonus, self.n, "bonus", 0.0)
        self.reset()

    @property
    def weighted(self) -> bool:
        """Whether targets have weights."""
        return self._weights is not None

    def reset(self) -> None:
        """Choose nothing."""
        self._covered = self._floor.copy()
        self._bonuses = 0.0

    def gain(self, j: int) -> float:
        """How much adding column j would raise the value."""
        rows, values = self.kernel.column(j)
        covered, cap, weights = self._covered, self._cap, self._weights
        if rows is not None:
            covered = covered[rows]
            cap = None if cap is None else cap[rows]
            weights = None if weights is None else weights[rows]
        lift = (values if cap is None else np.minimum(values, cap)) - covered
        np.maximum(lift, 0, out=lift)
        if weights is not None:
            lift *= weights
        # NumPy sums in an order fixed by the length alone and subtraction rounds monotonically, so
        # that a gain computed again later is never greater, to the last bit.
        return float(lift.sum()) + float(self.bonus[j])

    def gains(self, candidates: np.ndarray) -> np.ndarray:
        """`gain` of several columns, float64."""
        return np.array([self.gain(int(j)) for j in candidates], dtype=np.float64)

    def add(self, j: int) -> None:
        """Take column j into the chosen set."""
        rows, values = self.kernel.column(j)
        where = slice(None) if rows is None else rows
        if self._cap is not None:
            values = np.minimum(values, self._cap[where])
        self._covered[where] = np.maximum(self._covered[where], values)
        self._bonuses += float(self.bonus[j])

    @property
    def value(self) -> float:
        """The value of the chosen set."""
        lift = self._covered - self._floor
        return float((lift if self._weights is None else lift * self._weights).sum()) + (
            self._bonuses
        )


class FacilityLocation(Coverage):
    """FL(A) = sum_i max_{j in A} s_ij: every target is helped by its best demonstration.

    Assumes s >= 0. Source: the paper's instruction-tuning stage; Mirchandani and Francis 1990.

    Args:
        kernel: s [targets, n].
        weights: Optional weight of each target, at least 0.
    """

    name = "fl"

    def __init__(self, kernel: Any, weights: np.ndarray | None = None) -> None:
        super().__init__(kernel, weights=weights)


class FLMI(Coverage):
    """FLMI(A; T) = sum_{i in D} max_{j in A} s_ij + eta sum_{j in A} max_{t in T} s_tj.

    Facility location plus each pick's greatest help to a target-set record. Assumes s >= 0 and
    eta >= 0. Source: the paper's task-specific stage as printed (its published code maximises FL1MI
    instead).

    Args:
        kernel: s [D, n].
        target: s [T, n].
        eta: Weight of relevance.
        weights: Optional weight of each row of `kernel`.
    """

    name = "flmi"

    def __init__(
        self, kernel: Any, target: Any, eta: float = 1.0, weights: np.ndarray | None = None
    ) -> None:
        self.target, self.eta = checked_kernel(target, "target kernel"), _factor(eta, "eta")
        super().__init__(kernel, bonus=self.eta * column_maxima(self.target), weights=weights)


class FL1MI(Coverage):
    """FL1MI(A; T) = sum_{i in D} min(max_{j in A} s_ij, eta max_{t in T} s_ti).

    Covering record i pays up to its own relevance to the target set and no further. submodlib reads
    the relevance as s_it; here it is s_ti, how much record i helps target t, because those are the
    pairs that are scored. Assumes s >= 0, eta >= 0. Source: submodlib's
    FacilityLocationMutualInformation (Kaushal et al. 2021), which the paper's code calls.

    Args:
        kernel: s [D, n].
        target: s [T, D], the relevance of the rows of `kernel`.
        eta: How far relevance is stretched.
    """

    name = "fl1mi"

    def __init__(self, kernel: Any, target: Any, eta: float = 1.0) -> None:
        self.target, self.eta = checked_kernel(target, "target kernel"), _factor(eta, "eta")
        super().__init__(kernel, cap=self.eta * column_maxima(self.target))


class FL2MI(Coverage):
    """FL2MI(A; T) = sum_{t in T} max_{j in A} s_tj + eta sum_{j in A} max_{t in T} s_tj.

    Only pairs with the target set are read. Assumes s >= 0, eta >= 0. Source: submodlib's
    FacilityLocationVariantMutualInformation (Kaushal et al. 2021), called FLQMI elsewhere.

    Args:
        target: s [T, n].
        eta: Weight of each pick's own relevance.
        weights: Optional weight of each target.
    """

    name = "fl2mi"

    def __init__(self, target: Any, eta: float = 1.0, weights: np.ndarray | None = None) -> None:
        kernel, self.eta = checked_kernel(target, "target kernel"), _factor(eta, "eta")
        super().__init__(kernel, bonus=self.eta * column_maxima(kernel), weights=weights)


class FLCG(Coverage):
    """FLCG(A | E) = sum_{i in D} max(max_{j in A} s_ij - nu max_{e in E} s_ie, 0).

    Only what the existing records leave uncovered counts. Assumes s >= 0 and nu >= 0. Source: the
    paper's continual stage; submodlib's FacilityLocationConditionalGain (Kaushal et al. 2022).

    Args:
        kernel: s [D, n].
        existing: s [D, E].
        nu: How much of the existing coverage is held against new picks.
        weights: Optional weight of each target.
    """

    name = "flcg"

    def __init__(
        self, kernel: Any, existing: Any, nu: float = 1.0, weights: np.ndarray | None = None
    ) -> None:
        self.existing = checked_kernel(existing, "kernel of existing records")
        self.nu = _factor(nu, "nu")
        super().__init__(kernel, floor=self.nu * row_maxima(self.existing), weights=weights)


def checked_kernel(kernel: Any, called: str = "kernel") -> Columns:
    """The kernel, ready to be read, every value of it finite and at least 0.

    Raises:
        Refused: it is not, with the first column at fault.
    """
    columns = as_columns(kernel)
    for j, (_, values) in enumerate(each_column(columns)):
        # NaN makes both comparisons false, and infinity the second one.
        if len(values) and not (values.min() >= 0 and values.max() < np.inf):
            fault = "a negative" if np.isfinite(values).all() else "a missing or infinite"
            raise Refused(
                f"the {called} has {fault} value in column {j}: objectives need finite values "
                "of at least 0 (clip or scale the utilities)"
            )
    return columns


def _vector(values: Any, length: int, called: str, default: float | None = None) -> np.ndarray:
    if values is None and default is not None:
        return np.full(length, default)
    vector = np.asarray(values, dtype=np.float64)
    if vector.shape != (length,):
        raise Refused(f"{called} has shape {vector.shape}, and the kernel asks for ({length},)")
    if not (np.isfinite(vector).all() and (vector >= 0).all()):
        raise Refused(f"{called} holds a missing, infinite or negative value")
    return vector


def _factor(value: float, called: str) -> float:
    if not (np.isfinite(value) and value >= 0):
        raise Refused(f"{called} is {value}; it must be a finite number of at least 0")
    return float(value)


def evaluate(objective: Objective, subset: Iterable[int]) -> float:
    """The value of a subset; the objective's own chosen set is emptied."""
    objective.reset()
    for j in subset:
        objective.add(int(j))
    value = objective.value
    objective.reset()
    return value


def objective_of_random(objective: Objective, k: int, seed: int, draws: int = 20) -> float:
    """Mean value of `draws` random subsets of size k, drawn with `seed`."""
    random = np.random.default_rng(seed)
    subsets = (random.permutation(objective.n)[:k] for _ in range(draws))
    return float(np.mean([evaluate(objective, subset) for subset in subsets]))
