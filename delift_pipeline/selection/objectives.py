"""Monotone submodular objectives over utility kernels.

All of them are coverage of rows by columns; see `coverage.Coverage` for the general form, what is
assumed of kernels, and what is guaranteed.
"""

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

from delift_pipeline.core.errors import Refused
from delift_pipeline.kernel.columns import column_maxima, row_maxima
from delift_pipeline.selection.coverage import Coverage, checked_kernel
from delift_pipeline.selection.options import ObjectiveName


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
        self.target, self.eta = checked_kernel(target, "target kernel"), checked_factor(eta, "eta")
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
        self.target, self.eta = checked_kernel(target, "target kernel"), checked_factor(eta, "eta")
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
        kernel, self.eta = checked_kernel(target, "target kernel"), checked_factor(eta, "eta")
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
        self.nu = checked_factor(nu, "nu")
        super().__init__(kernel, floor=self.nu * row_maxima(self.existing), weights=weights)


def objective_named(
    name: ObjectiveName,
    own: Any,
    target: Any = None,
    existing: Any = None,
    *,
    eta: float = 1.0,
    nu: float = 1.0,
) -> Coverage:
    """The objective of that name.

    Args:
        name: Its short name.
        own: s [D, n]; not read by fl2mi.
        target: s [T, n], for the objectives that read it.
        existing: s [D, E], for flcg.
        eta: Weight of relevance to the target set.
        nu: Weight of what the existing records already cover.
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


def checked_factor(value: float, called: str) -> float:
    """A factor of an objective.

    Raises:
        Refused: it is negative or not finite.
    """
    if not (np.isfinite(value) and value >= 0):
        raise Refused(f"{called} is {value}; it must be a finite number of at least 0")
    return float(value)


def evaluate(objective: Objective, subset: Iterable[int]) -> float:
    """The value of a subset; the objective's own chosen set is emptied."""
    objective.reset()
    if isinstance(objective, Coverage):
        objective.add_all(np.fromiter(subset, dtype=np.int64))
    else:
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
