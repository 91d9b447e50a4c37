"""Weighted sums of objectives over one ground set."""

from collections.abc import Sequence

import numpy as np

from delift_pipeline.errors import Refused
from delift_pipeline.selection.objectives import Objective


class WeightedSum:
    """F(A) = sum_k a_k f_k(A), with a_k >= 0.

    Sums of monotone submodular functions with non-negative factors are monotone and submodular
    (Nemhauser, Wolsey and Fisher 1978), so that all optimizers and their guarantees hold.

    Args:
        parts: (a_k, f_k); all f_k have the same columns.

    Raises:
        Refused: there is no part, their columns differ in number, or a factor is negative.
    """

    name = "sum"

    def __init__(self, parts: Sequence[tuple[float, Objective]]) -> None:
        if not parts or len({objective.n for _, objective in parts}) != 1:
            raise Refused("a sum needs objectives over the same candidates")
        if not all(np.isfinite(factor) and factor >= 0 for factor, _ in parts):
            raise Refused("the factors of a sum must be finite numbers of at least 0")
        self.parts = tuple((float(factor), objective) for factor, objective in parts)
        self.n = parts[0][1].n

    def gain(self, j: int) -> float:
        """How much adding column j would raise the value."""
        return float(self.gains(np.array([j]))[0])

    def gains(self, candidates: np.ndarray) -> np.ndarray:
        """`gain` of several columns, float64."""
        total = np.zeros(len(candidates))
        for factor, objective in self.parts:
            total += factor * objective.gains(candidates)
        return total

    def add(self, j: int) -> None:
        """Take column j into the chosen set."""
        for _, objective in self.parts:
            objective.add(j)

    @property
    def value(self) -> float:
        """The value of the chosen set."""
        return sum(factor * objective.value for factor, objective in self.parts)

    def reset(self) -> None:
        """Choose nothing."""
        for _, objective in self.parts:
            objective.reset()
