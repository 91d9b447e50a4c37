"""Greedy maximisation of any objective.

All optimizers break ties by gain, then by `tie_order` (the order of record_ids), pick no column
twice, and give a ranking whose prefixes are the answers for smaller budgets.
"""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from delift_pipeline.errors import Refused
from delift_pipeline.selection.objectives import Objective


@dataclass(frozen=True)
class Ranking:
    """Picks in order.

    Attributes:
        picks: int64 [k], column numbers.
        gains: float64 [k], what each pick added.
    """

    picks: np.ndarray = field(repr=False)
    gains: np.ndarray = field(repr=False)


Optimizer = Callable[[Objective, int, np.ndarray], Ranking]


def order_of(ids: Sequence[str]) -> np.ndarray:
    """Place of each id in the sorted order of all, int64; what ties are broken by."""
    order = np.empty(len(ids), dtype=np.int64)
    order[sorted(range(len(ids)), key=ids.__getitem__)] = np.arange(len(ids))
    return order


def naive_greedy(objective: Objective, budget: int, tie_order: np.ndarray) -> Ranking:
    """Look at every candidate in every step: n gains a pick; the oracle for the others."""
    _start(objective, budget, tie_order)
    left = np.argsort(tie_order, kind="stable")
    picks, gains = [], []
    for _ in range(budget):
        now = objective.gains(left)
        # argmax takes the first of equals, and `left` stands in tie order.
        best = int(np.argmax(now))
        picks.append(int(left[best]))
        gains.append(float(now[best]))
        objective.add(picks[-1])
        left = np.delete(left, best)
    return _ranking(picks, gains)


def lazy_greedy(objective: Objective, budget: int, tie_order: np.ndarray) -> Ranking:
    """The same ranking as `naive_greedy` with few gains computed (Minoux 1978).

    A gain never grows, so a candidate whose former gain is below the best fresh one need not be
    looked at again.
    """
    _start(objective, budget, tie_order)
    first = objective.gains(np.arange(objective.n))
    heap = [(-float(first[j]), int(tie_order[j]), j, 0) for j in range(objective.n)]
    heapq.heapify(heap)
    picks: list[int] = []
    gains: list[float] = []
    while len(picks) < budget:
        negative, place, j, seen = heap[0]
        if seen < len(picks):
            heapq.heapreplace(heap, (-objective.gain(j), place, j, len(picks)))
            continue
        heapq.heappop(heap)
        picks.append(j)
        gains.append(-negative)
        objective.add(j)
    return _ranking(picks, gains)


def stochastic_greedy(
    objective: Objective,
    budget: int,
    tie_order: np.ndarray,
    *,
    seed: int = 0,
    sample: float = 0.1,
) -> Ranking:
    """Look at a fresh random sample of the candidates in each step (Mirzasoleiman et al. 2015).

    The sample is a share of the ground set and not of the budget, so that a smaller budget is a
    prefix. With s = ceil(sample * n) candidates a step, a budget k reaches 1 - 1/e - exp(-s k / n)
    of the best in expectation. Gains may rise from one pick to the next, since a better candidate
    may be met later.
    """
    _start(objective, budget, tie_order)
    random = np.random.default_rng(seed)
    size = max(1, math.ceil(sample * objective.n))
    left = np.argsort(tie_order, kind="stable")
    picks, gains = [], []
    for _ in range(budget):
        drawn = np.sort(random.choice(len(left), size=min(size, len(left)), replace=False))
        now = objective.gains(left[drawn])
        best = int(np.argmax(now))
        picks.append(int(left[drawn[best]]))
        gains.append(float(now[best]))
        objective.add(picks[-1])
        left = np.delete(left, drawn[best])
    return _ranking(picks, gains)


def _start(objective: Objective, budget: int, tie_order: np.ndarray) -> None:
    if budget < 0 or budget > objective.n:
        raise Refused(f"{budget:,} picks were asked for, and there are {objective.n:,} candidates")
    if len(tie_order) != objective.n:
        raise Refused(f"{len(tie_order):,} ids were given for {objective.n:,} candidates")
    objective.reset()


def _ranking(picks: list[int], gains: list[float]) -> Ranking:
    return Ranking(np.array(picks, dtype=np.int64), np.array(gains, dtype=np.float64))
