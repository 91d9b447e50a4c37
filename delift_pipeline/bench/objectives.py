"""Objectives that only the benchmark of greedy selection runs, beside those of the selectors."""

from typing import Any

import numpy as np

from delift_pipeline.selection.coverage import Coverage, checked_kernel
from delift_pipeline.selection.objectives import checked_factor
from delift_pipeline.utility.columns import row_sums


class FoldCoverage(Coverage):
    """rFL(A) = sum_i (sum of the r greatest s_ij with j in A): r demonstrations for every target.

    With r = 1 it is facility location. The sum of the r greatest of a set is the weighted rank of a
    uniform matroid, which is monotone and submodular (Edmonds 1970; r-fold or fault-tolerant
    facility location: Jain and Vazirani 2000). Assumes s >= 0.

    Args:
        kernel: s [targets, n].
        fold: r, at least 1.
        weights: Optional weight of each target.
    """

    name = "rfl"

    def __init__(self, kernel: Any, fold: int = 2, weights: np.ndarray | None = None) -> None:
        super().__init__(kernel, weights=weights, fold=fold)
        self.fold = fold


class SaturatedCoverage(Coverage):
    """SC(A) = sum_i min(sum_{j in A} s_ij, alpha sum_{j in D} s_ij).

    A target is satisfied once it has a share alpha of all the help there is. A concave function of
    a modular one is submodular. Assumes s >= 0 and alpha >= 0. Source: Lin and Bilmes 2011, "A
    Class of Submodular Functions for Document Summarization".

    Args:
        kernel: s [targets, n].
        alpha: The share of its column sum at which a target is satisfied.
        weights: Optional weight of each target.
    """

    name = "saturated"

    def __init__(self, kernel: Any, alpha: float = 0.1, weights: np.ndarray | None = None) -> None:
        columns, self.alpha = checked_kernel(kernel), checked_factor(alpha, "alpha")
        cap = self.alpha * row_sums(columns)
        super().__init__(columns, cap=cap, weights=weights, saturating=True)
