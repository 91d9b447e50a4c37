"""Monotone submodular objectives over utility kernels: coverage of rows by the chosen columns.

Each row i has a state x_i, the best value of the columns chosen so far. A column's gain is a sum of
lifts:

    lift_i(j) = w_i max(min(s_ij, cap_i) - x_i, 0)

No lift grows when x grows, so the objective is submodular. No lift is negative, so it is monotone.
Greedy maximisation therefore reaches 1 - 1/e of the best subset of any size (Nemhauser, Wolsey and
Fisher 1978). Kernels may be dense (any memory order, memory maps), sparse or any `Columns`, and
rectangular. A negative or missing value is refused.

NumPy reads small kernels, which saves the time to compile, and compiled loops read larger ones.
Both sum in an order that only the length decides, and subtraction rounds monotonically. So a gain
that is computed again later is never greater, to the last bit.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from delift_pipeline.core.errors import InputError
from delift_pipeline.kernel.columns import (
    Columns,
    DenseColumns,
    as_columns,
    column_maxima,
    each_column,
    row_maxima,
    to_dense,
)
from delift_pipeline.selection.options import ObjectiveName

COMPILED_FROM = 1_000_000
"""From this many stored values on, compiled loops are used."""
COLUMN_COST = 50
"""NumPy's fixed cost of one column, as a number of values."""
BLOCK = 256


class Coverage:
    """Coverage of rows by the best of the chosen columns.

    f(A) = sum_i w_i (clamp(max_{j in A} s_ij, floor_i, cap_i) - floor_i) + sum_{j in A} bonus_j

    Args:
        kernel: Similarities s [rows, n], finite and at least 0.
        floor: float [rows], at least 0; None is 0.
        cap: float [rows], raised to the floor where it is less; None is no cap.
        weights: float [rows], at least 0; None is 1.
        bonus: float [n], at least 0; None is 0.

    Attributes:
        state: float64 [rows], x above, for the columns chosen so far.
        floor: float64 [rows], the state before any column is chosen.

    Raises:
        InputError: A value is missing, infinite or negative, or a shape does not fit.
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
        self.kernel, self.compiled = check_kernel(kernel), None
        rows, self.n = self.kernel.shape
        if rows and self.n and max(self.kernel.stored, COLUMN_COST * self.n) >= COMPILED_FROM:
            from delift_pipeline.selection.compiled import compiled_kernel

            # None if the compiled loops cannot read this kind of kernel.
            self.compiled = compiled_kernel(self.kernel)
        self.floor = _as_vector(floor, rows, "floor", 0.0)
        self.cap = None if cap is None else np.maximum(_as_vector(cap, rows, "cap"), self.floor)
        self.weights = None if weights is None else _as_vector(weights, rows, "weights")
        self.bonus = _as_vector(bonus, self.n, "bonus", 0.0)
        self.reset()

    def reset(self) -> None:
        """Start again with no column chosen."""
        self.state, self._bonuses = self.floor.copy(), 0.0
        if self.compiled is not None:
            from delift_pipeline.selection.compiled import objective_terms

            self.terms = objective_terms(self.state, self.cap, self.weights)

    def gain(self, j: int) -> float:
        """Return how much column j would raise the value."""
        if self.compiled is not None:
            return float(self.gains(np.array([j]))[0])
        where, capped = self._capped_values(j)
        lift = np.maximum(capped - self.state[where], 0)
        lift = lift if self.weights is None else lift * self.weights[where]
        return float(lift.sum()) + float(self.bonus[j])

    def gains(self, candidates: np.ndarray) -> np.ndarray:
        """Return `gain` of several columns, float64."""
        if self.compiled is None:
            return np.array([self.gain(int(j)) for j in candidates], dtype=np.float64)
        from delift_pipeline.selection.compiled import compute_lifts

        candidates, out = np.asarray(candidates, dtype=np.int64), np.empty(len(candidates))
        compute_lifts(self.compiled, self.terms, candidates, out)
        return out + self.bonus[candidates]

    def add(self, j: int) -> None:
        """Add column j to the chosen set."""
        self.add_all(np.array([j]))

    def add_all(self, picks: np.ndarray) -> None:
        """Add several columns to the chosen set, in order."""
        picks = np.asarray(picks, dtype=np.int64)
        self.add_bonuses(picks)
        if self.compiled is not None:
            from delift_pipeline.selection.compiled import cover_all

            return cover_all(self.compiled, self.terms, picks)
        for j in picks:
            where, capped = self._capped_values(int(j))
            self.state[where] = np.maximum(self.state[where], capped)

    def _capped_values(self, j: int) -> tuple[Any, np.ndarray]:
        """Return the rows of column j and its values, at most the cap."""
        rows, values = self.kernel.column(j)
        where = slice(None) if rows is None else rows
        return where, values if self.cap is None else np.minimum(values, self.cap[where])

    def add_bonuses(self, picks: np.ndarray) -> None:
        """Add the bonuses of columns whose rows the state already includes."""
        for j in picks:
            self._bonuses += float(self.bonus[j])

    @property
    def value(self) -> float:
        """Return the value of the chosen set."""
        lift = self.state - self.floor
        return float((lift if self.weights is None else lift * self.weights).sum()) + self._bonuses


class FacilityLocation(Coverage):
    """FL(A) = sum_i max_{j in A} s_ij: each target counts with its best chosen demonstration.

    s [targets, n] and the weights of the targets, if any, must be at least 0. Source: the paper's
    instruction-tuning stage; Mirchandani and Francis 1990.
    """

    name = "fl"

    def __init__(self, kernel: Any, weights: np.ndarray | None = None) -> None:
        super().__init__(kernel, weights=weights)


class FLMI(Coverage):
    """FLMI(A; T) = sum_{i in D} max_{j in A} s_ij + eta sum_{j in A} max_{t in T} s_tj.

    Facility location on s [D, n], with optional weights of its rows, plus each pick's greatest
    utility for a target-set record, s [T, n]. s and eta must be at least 0. Source: the paper's
    task-specific stage as printed (its published code maximises FL1MI instead).
    """

    name = "flmi"

    def __init__(
        self, kernel: Any, target: Any, eta: float = 1.0, weights: np.ndarray | None = None
    ) -> None:
        self.target, self.eta = check_kernel(target, "target kernel"), check_factor(eta, "eta")
        super().__init__(kernel, bonus=self.eta * column_maxima(self.target), weights=weights)


class FL1MI(Coverage):
    """FL1MI(A; T) = sum_{i in D} min(max_{j in A} s_ij, eta max_{t in T} s_ti).

    Record i counts at most with its own relevance to the target set. submodlib reads the relevance
    as s_it. Here it is s_ti [T, D], how much record i helps target t, because these pairs are
    scored. s and eta must be at least 0. Source: submodlib's FacilityLocationMutualInformation
    (Kaushal et al. 2021), which the paper's code calls.
    """

    name = "fl1mi"

    def __init__(self, kernel: Any, target: Any, eta: float = 1.0) -> None:
        self.target, self.eta = check_kernel(target, "target kernel"), check_factor(eta, "eta")
        super().__init__(kernel, cap=self.eta * column_maxima(self.target))


class FL2MI(Coverage):
    """FL2MI(A; T) = sum_{t in T} max_{j in A} s_tj + eta sum_{j in A} max_{t in T} s_tj.

    It reads only pairs with the target set, s [T, n]. s and eta must be at least 0. Source:
    submodlib's FacilityLocationVariantMutualInformation (Kaushal et al. 2021), also called FLQMI.
    """

    name = "fl2mi"

    def __init__(self, target: Any, eta: float = 1.0, weights: np.ndarray | None = None) -> None:
        kernel, self.eta = check_kernel(target, "target kernel"), check_factor(eta, "eta")
        super().__init__(kernel, bonus=self.eta * column_maxima(kernel), weights=weights)


class FLCG(Coverage):
    """FLCG(A | E) = sum_{i in D} max(max_{j in A} s_ij - nu max_{e in E} s_ie, 0).

    Only coverage beyond that of the existing records, s [D, E], counts. s and nu must be at least
    0. Source: the paper's continual stage; submodlib's FacilityLocationConditionalGain (Kaushal et
    al. 2022).
    """

    name = "flcg"

    def __init__(
        self, kernel: Any, existing: Any, nu: float = 1.0, weights: np.ndarray | None = None
    ) -> None:
        self.existing = check_kernel(existing, "kernel of existing records")
        self.nu = check_factor(nu, "nu")
        super().__init__(kernel, floor=self.nu * row_maxima(self.existing), weights=weights)


class TensorCoverage(Coverage):
    """A coverage objective on a torch device, which computes gains of a block of columns at once.

    The original objective does not change. Shorter blocks are padded, so all sums have one order.

    Raises:
        InputError: The device cannot be used.
    """

    def __init__(self, objective: Coverage, device: str, block: int = BLOCK) -> None:
        import torch

        self.__dict__.update(objective.__dict__)
        self.name, self.compiled, self._block = objective.name, None, block
        try:
            self._device = torch.device(device)
            # The kernel is transposed: each of its columns is contiguous in memory.
            self._kernel = torch.from_numpy(to_dense(objective.kernel).T).to(self._device)
        except RuntimeError as error:
            reason = f"the device {device} cannot be used ({error}). Choose another"
            raise InputError(reason) from error
        self.reset()

    def gain(self, j: int) -> float:
        """Return how much column j would raise the value."""
        return float(self.gains(np.array([j]))[0])

    def gains(self, candidates: np.ndarray) -> np.ndarray:
        """Return `gain` of several columns, float64."""
        import torch

        state = torch.from_numpy(self.state).to(self._device)
        cap, weights = (
            None if values is None else torch.from_numpy(values).to(self._device)
            for values in (self.cap, self.weights)
        )
        lifts = [np.zeros(0)]
        for start in range(0, len(candidates), self._block):
            part = candidates[start : start + self._block]
            padded = torch.from_numpy(np.resize(part, self._block)).to(self._device)
            values = self._kernel[padded].double()
            values = values if cap is None else torch.minimum(values, cap)
            lift = (values - state).clamp_(min=0)
            lift = lift if weights is None else lift * weights
            lifts.append(lift.sum(dim=1).cpu().numpy()[: len(part)])
        return np.concatenate(lifts) + self.bonus[candidates]


def build_objective(
    name: ObjectiveName,
    own: Any,
    target: Any = None,
    existing: Any = None,
    *,
    eta: float = 1.0,
    nu: float = 1.0,
) -> Coverage:
    """Build an objective by its name from the kernels that it reads.

    They are `own` s [D, n], which fl2mi does not read, `target` s [T, n] and `existing` s [D, E].
    """
    match name:
        case "flmi":
            return FLMI(own, target, eta)
        case "fl1mi":
            return FL1MI(own, target, eta)
        case "fl2mi":
            return FL2MI(target, eta)
        case "flcg":
            return FLCG(own, existing, nu)
        case "fl":
            return FacilityLocation(own)


def check_factor(value: float, name: str) -> float:
    """Return a factor of an objective.

    Raises:
        InputError: It is negative or not finite.
    """
    if not (np.isfinite(value) and value >= 0):
        raise InputError(f"{name} is {value}. Give a finite number of at least 0")
    return float(value)


def evaluate(objective: Coverage, subset: Iterable[int]) -> float:
    """Return the value of a subset. Afterwards no column of the objective is chosen."""
    objective.reset()
    objective.add_all(np.fromiter(subset, dtype=np.int64))
    value = objective.value
    objective.reset()
    return value


def mean_random_value(objective: Coverage, k: int, seed: int, draws: int = 20) -> float:
    """Return the mean value of `draws` random subsets of size k, drawn with `seed`."""
    random = np.random.default_rng(seed)
    subsets = (random.permutation(objective.n)[:k] for _ in range(draws))
    return float(np.mean([evaluate(objective, subset) for subset in subsets]))


def check_kernel(kernel: Any, name: str = "kernel") -> Columns:
    """Return the kernel as `Columns` after a check that all values are finite and at least 0.

    Raises:
        InputError: A value is not; the message names the first such column.
    """
    columns = as_columns(kernel)
    stored = getattr(columns, "matrix" if isinstance(columns, DenseColumns) else "data", None)
    if stored is not None and _all_usable(stored):
        return columns
    for j, (_, values) in enumerate(each_column(columns)):
        if not _all_usable(values):
            fault = "a negative" if np.isfinite(values).all() else "a missing or infinite"
            raise InputError(
                f"the {name} has {fault} value in column {j}. Objectives need finite values of "
                "at least 0: clip or scale the utilities"
            )
    return columns


def _all_usable(values: np.ndarray) -> bool:
    # NaN makes both comparisons false, and infinity makes the second one false.
    return not values.size or bool(values.min() >= 0 and values.max() < np.inf)


def _as_vector(values: Any, length: int, name: str, default: float | None = None) -> np.ndarray:
    """Return values, or the default, as float64 [length], all finite and at least 0."""
    if values is None and default is not None:
        return np.full(length, default)
    vector = np.asarray(values, dtype=np.float64)
    if vector.shape != (length,):
        raise InputError(f"{name} has shape {vector.shape}. The kernel needs ({length},)")
    if not (np.isfinite(vector).all() and (vector >= 0).all()):
        raise InputError(f"{name} has a missing, infinite or negative value")
    return vector
