"""Constraints on a subset: pinned and excluded records, quotas and costs. All optimizers obey them.

Quotas on one grouping are a partition matroid. (With least counts, they are the sets that can still
be completed: El Halabi et al. 2020.) There, greedy reaches 1/2 of the best value of a monotone
submodular objective (Fisher, Nemhauser and Wolsey 1978). With p groupings that set only greatest
counts it reaches 1/(p + 1). Pinned records come first, so these bounds hold for all other picks.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from delift_pipeline.core.errors import InputError


@dataclass(frozen=True)
class Grouping:
    """Quotas on the groups of one partition, such as `task`.

    Attributes:
        of: int64 [n], the group of each candidate.
        low: int64 [groups], the fewest picks of each group.
        high: int64 [groups], the most picks of each group.
    """

    name: str
    groups: tuple[str, ...]
    of: np.ndarray = field(repr=False)
    low: np.ndarray = field(repr=False)
    high: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Constraints:
    """All constraints on a subset, in candidate numbers.

    Attributes:
        pinned: Candidates that must be in; they are ranked before all others.
        excluded: Candidates that must not be in.
        groupings: Quotas.
        costs: float64 [n] above 0, or None if every record costs the same.
        capacity: The most that the subset may cost, or None.
        stop: Selection stops at a gain below this share of the first gain; 0 never stops it.
    """

    pinned: tuple[int, ...] = ()
    excluded: tuple[int, ...] = ()
    groupings: tuple[Grouping, ...] = ()
    costs: np.ndarray | None = field(default=None, repr=False)
    capacity: float | None = None
    stop: float = 0.0

    @property
    def is_open_ended(self) -> bool:
        """Whether a ranking may have fewer picks than the budget."""
        return self.capacity is not None or self.stop > 0


class Limits(NamedTuple):
    """Constraints and counts as arrays, which compiled loops read and update.

    Attributes:
        costs: float64 [n], the cost of each candidate.
        scale: float64 [n], above 0: candidates are compared by gain / scale.
        left: float64 [1], the cost that is still allowed.
        groups: int64 [d, n], group of each candidate in each of d partitions.
        low: int64 [d, g], the fewest picks of each group.
        high: int64 [d, g], the most picks of each group.
        counts: int64 [d, g], the picks so far.
        owed: int64 [d], how many picks groups still need to reach their `low`.
    """

    costs: np.ndarray
    scale: np.ndarray
    left: np.ndarray
    groups: np.ndarray
    low: np.ndarray
    high: np.ndarray
    counts: np.ndarray
    owed: np.ndarray


class ConstraintTracker:
    """Tracks which candidates may still be picked. One that may not be picked never may again.

    Args:
        constraints: The constraints.
        n: Number of candidates.
        budget: Number of picks, pinned ones included.
        scaled: Whether candidates are compared by gain per unit of cost.

    Raises:
        InputError: No set of that size fulfils the constraints.
    """

    def __init__(self, constraints: Constraints, n: int, budget: int, scaled: bool = False) -> None:
        self.stop, self.slots, groupings = constraints.stop, budget, constraints.groupings
        self._is_open_ended = constraints.is_open_ended
        costs = np.ones(n) if constraints.costs is None else constraints.costs
        if costs.shape != (n,) or not (np.isfinite(costs).all() and (costs > 0).all()):
            raise InputError(f"the costs must be {n:,} finite numbers above 0")
        widest = max((len(grouping.groups) for grouping in groupings), default=0)
        groups = np.zeros((len(groupings), n), np.int64)
        low, high, counts = (np.zeros((len(groupings), widest), np.int64) for _ in range(3))
        for d, grouping in enumerate(groupings):
            groups[d] = grouping.of
            low[d, : len(grouping.low)] = grouping.low
            high[d, : len(grouping.high)] = grouping.high
        left = np.array([np.inf if constraints.capacity is None else constraints.capacity])
        scale = costs if scaled else np.ones(n)
        self.limits = Limits(costs, scale, left, groups, low, high, counts, low.sum(axis=1))
        _check_numbers(constraints, n, budget, costs)
        for grouping in groupings:
            _check_feasible(grouping, constraints, n, budget)

    def admissible_mask(self, candidates: np.ndarray) -> np.ndarray:
        """Return which of the candidates may be picked next, bool [candidates]."""
        limits = self.limits
        allowed = limits.costs[candidates] <= limits.left[0]
        for d, of in enumerate(limits.groups):
            groups = of[candidates]
            allowed &= (limits.counts[d] < limits.high[d])[groups]
            if limits.owed[d] >= self.slots:
                allowed &= (limits.counts[d] < limits.low[d])[groups]
        return allowed

    def count_pick(self, j: int) -> None:
        """Subtract the cost of a pick and count it in its groups."""
        limits = self.limits
        self.slots -= 1
        limits.left[0] -= limits.costs[j]
        for d, group in enumerate(limits.groups[:, j]):
            limits.owed[d] -= limits.counts[d, group] < limits.low[d, group]
            limits.counts[d, group] += 1

    def check_complete(self, picked: int) -> None:
        """Refuse a ranking that stopped before its budget or without filling a quota.

        Raises:
            InputError: Each constraint is possible, but they are not possible together.
        """
        short = picked > 0 and bool((self.limits.owed > 0).any())
        if short or (self.slots > 0 and not self._is_open_ended):
            reason = f"the quotas conflict: after {picked:,} picks no other record is allowed"
            raise InputError(f"{reason}. Widen a quota, or lower the budget", field="quota")


def _check_numbers(constraints: Constraints, n: int, budget: int, costs: np.ndarray) -> None:
    pinned, excluded = set(constraints.pinned), set(constraints.excluded)
    if not all(0 <= j < n for j in pinned | excluded):
        raise InputError(f"a pinned or excluded record is not one of the {n:,} candidates")
    if both := pinned & excluded:
        reason = f"{len(both):,} records are both pinned and excluded. Remove one of the rules"
        raise InputError(reason, field="pin")
    if len(pinned) > budget:
        reason = f"{len(pinned):,} pinned records are above the budget of {budget:,}"
        raise InputError(f"{reason}. Raise the budget, or pin fewer", field="pin")
    if budget > (left := n - len(excluded)) and not constraints.is_open_ended:
        reason = (
            f"{len(excluded):,} of {n:,} records are excluded, and the other {left:,} are fewer "
            f"than the budget of {budget:,}. Exclude fewer records, or lower the budget"
        )
        raise InputError(reason, field="exclude")
    cost = float(costs[list(pinned)].sum())
    if constraints.capacity is not None and cost > constraints.capacity:
        reason = f"the pinned records cost {cost:,.0f}, above {constraints.capacity:,.0f}"
        raise InputError(f"{reason}. Raise the budget, or pin fewer", field="budget")


def _check_feasible(grouping: Grouping, constraints: Constraints, n: int, budget: int) -> None:
    size, free = len(grouping.groups), np.ones(n, bool)
    free[list(constraints.excluded)] = False
    available = np.bincount(grouping.of[free], minlength=size)
    pinned = np.bincount(grouping.of[list(constraints.pinned)], minlength=size)
    low, high = grouping.low, grouping.high
    for group in np.flatnonzero((pinned > high) | (low > high) | (low > available)):
        quota = f"{grouping.groups[group]} needs {low[group]:,} to {high[group]:,} records"
        counts = f"{pinned[group]:,} are pinned and {available[group]:,} are available"
        raise _bad_quota(grouping, f"{quota}, of which {counts}")
    if (least := int(np.maximum(low, pinned).sum())) > budget:
        raise _bad_quota(grouping, f"it needs at least {least:,} records of {budget:,}")
    most = int(np.minimum(high, available).sum())
    if most < budget and not constraints.is_open_ended:
        raise _bad_quota(grouping, f"it allows at most {most:,} records of {budget:,}")


def _bad_quota(grouping: Grouping, reason: str) -> InputError:
    start = f"no subset of the budget's size can fulfil the quota on {grouping.name}"
    return InputError(f"{start}: {reason}. Change the quota or the budget", field="quota")
