"""Greedy maximisation of any objective, under any constraints.

All optimizers pick the greatest gain, and among equal gains the first in `tie_order` (the order of
record_ids). A prefix of a ranking is the ranking for a smaller budget, unless quotas in shares,
least counts or costs depend on the budget.

For a budget of costs, one ranking by gain and one by gain per unit of cost are computed, and the
better one is returned. It reaches 1/2 (1 - 1/e) of the best subset of that cost (Leskovec et al.
2007), while each alone can be arbitrarily bad. In the second ranking, gains per unit of cost fall
from pick to pick, and gains may rise.
"""

import functools
import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from delift_pipeline.core.errors import InputError
from delift_pipeline.selection.constraints import Constraints, ConstraintTracker
from delift_pipeline.selection.objectives import BLOCK, Coverage, TensorCoverage


@dataclass(frozen=True)
class Ranking:
    """Picks in order.

    Attributes:
        picks: int64 [k], column numbers.
        gains: float64 [k], how much each pick added to the objective.
        computed: How many gains were computed in total.
    """

    picks: np.ndarray = field(repr=False)
    gains: np.ndarray = field(repr=False)
    computed: int = 0


class Optimizer(Protocol):
    """An algorithm that ranks the columns of an objective."""

    def __call__(
        self,
        objective: Coverage,
        budget: int,
        tie_order: np.ndarray,
        constraints: Constraints | None = None,
    ) -> Ranking:
        """Return the ranking. Afterwards its picks are chosen in the objective."""
        ...


# One greedy run: (objective, candidates in tie order, most picks, tracker of the constraints).
Phase = Callable[[Coverage, np.ndarray, int, ConstraintTracker], Ranking]


def tie_order_of(ids: Sequence[str]) -> np.ndarray:
    """Return the position of each id in the sorted order of all, int64. It breaks ties."""
    order = np.empty(len(ids), dtype=np.int64)
    order[sorted(range(len(ids)), key=ids.__getitem__)] = np.arange(len(ids))
    return order


def take_in_order(order: np.ndarray, budget: int, constraints: Constraints | None) -> np.ndarray:
    """Pick candidates in an order, int [n], as constraints allow. Pinned ones come first.

    Raises:
        InputError: The budget or the constraints are not possible.
    """
    constraints = constraints or Constraints()
    tracker = ConstraintTracker(constraints, len(order), budget)
    pinned = np.isin(order, constraints.pinned)
    picks = order[pinned].tolist()
    for j in picks:
        tracker.count_pick(j)
    for j in order[~pinned & ~np.isin(order, constraints.excluded)].tolist():
        if len(picks) < budget and tracker.admissible_mask(np.array([j]))[0]:
            tracker.count_pick(j)
            picks.append(j)
    tracker.check_complete(len(picks))
    return np.array(picks, dtype=np.int64)


def rank_greedily(
    objective: Coverage,
    budget: int,
    tie_order: np.ndarray,
    constraints: Constraints | None = None,
    *,
    phase: Callable[[Coverage], Phase],
) -> Ranking:
    """Rank under constraints with one kind of greedy run. With costs, return the better of two.

    Afterwards the picks are chosen in the objective. The budget includes pinned records,
    `tie_order` is int [n], and `phase` returns a new greedy run for each ranking.

    Raises:
        InputError: The budget or the constraints are not possible.
    """
    if budget < 0 or budget > objective.n:
        raise InputError(f"the budget is {budget:,} picks. It must be from 0 to {objective.n:,}")
    if len(tie_order) != objective.n:
        raise InputError(f"tie_order has {len(tie_order):,} ids for {objective.n:,} candidates")
    constraints = constraints or Constraints()
    plain = _rank_once(objective, budget, tie_order, constraints, phase(objective), scaled=False)
    if constraints.costs is None:
        return plain
    value = objective.value
    scaled = _rank_once(objective, budget, tie_order, constraints, phase(objective), scaled=True)
    if objective.value >= value:
        return scaled
    objective.reset()
    objective.add_all(plain.picks)
    return plain


naive_greedy: Optimizer = functools.partial(rank_greedily, phase=lambda f: sampling_phase(f.n))
"""Computes the gains of all candidates in every step. Tests compare the others with it."""

lazy_greedy: Optimizer = functools.partial(rank_greedily, phase=lambda _: _lazy_phase)
"""Returns the ranking of `naive_greedy` but computes few gains (Minoux 1978).

A gain never grows. So the gain of a candidate is not computed again while the former one is below
the best new gain.
"""


def stochastic_greedy(
    objective: Coverage,
    budget: int,
    tie_order: np.ndarray,
    constraints: Constraints | None = None,
    *,
    seed: int = 0,
    sample: float = 0.1,
    lazily: bool = False,
) -> Ranking:
    """Pick the best of a new random sample of candidates in each step (Mirzasoleiman et al. 2015).

    The sample is a share of all candidates and not of the budget, so a smaller budget gives a
    prefix. With s = ceil(sample * n) candidates per step, a budget k reaches 1 - 1/e - exp(-s k/n)
    of the best in expectation. Gains may rise from one pick to the next, because a later sample may
    have a better candidate.
    """
    size = max(1, math.ceil(sample * objective.n))

    def phase(_: Coverage) -> Phase:
        return sampling_phase(16 if lazily else size, np.random.default_rng(seed), size)

    return rank_greedily(objective, budget, tie_order, constraints, phase=phase)


lazier_than_lazy_greedy = functools.partial(stochastic_greedy, lazily=True)
"""Returns the ranking of `stochastic_greedy` but computes fewer gains (Mirzasoleiman et al. 2015).

In each sample, gains are computed from the greatest former gain down, until no other candidate can
be better than the best so far.
"""


def blocked_greedy(
    objective: Coverage,
    budget: int,
    tie_order: np.ndarray,
    constraints: Constraints | None = None,
    *,
    block: int = BLOCK,
    device: str | None = None,
) -> Ranking:
    """Return the ranking of `lazy_greedy`, with gains computed in blocks, for example on a GPU.

    `device` is a torch device such as `cuda`, whose memory must hold the kernel. None computes with
    the objective itself. On a device, gains may differ in their last digits, and so may picks with
    almost equal gains.

    Raises:
        InputError: The budget or the constraints are not possible, or the device cannot be used.
    """
    on_device = objective if device is None else TensorCoverage(objective, device, block)
    phase = sampling_phase(block)
    ranking = rank_greedily(on_device, budget, tie_order, constraints, phase=lambda _: phase)
    if on_device is not objective:
        objective.reset()
        objective.add_all(ranking.picks)
    return ranking


def _rank_once(
    objective: Coverage,
    budget: int,
    tie_order: np.ndarray,
    constraints: Constraints,
    phase: Phase,
    scaled: bool,
) -> Ranking:
    """Rank pinned records first, then all others."""
    tracker = ConstraintTracker(constraints, objective.n, budget, scaled)
    objective.reset()
    order, free = np.argsort(tie_order, kind="stable"), np.ones(objective.n, bool)
    free[list(constraints.pinned) + list(constraints.excluded)] = False
    pins = Ranking(np.zeros(0, np.int64), np.zeros(0))
    if constraints.pinned:
        chosen = order[np.isin(order, constraints.pinned)]
        free_tracker = ConstraintTracker(Constraints(), objective.n, len(chosen))
        pins = phase(objective, chosen, len(chosen), free_tracker)
        for j in pins.picks:
            tracker.count_pick(int(j))
    rest = phase(objective, order[free[order]], budget - len(pins.picks), tracker)
    tracker.check_complete(len(pins.picks) + len(rest.picks))
    return Ranking(
        np.concatenate([pins.picks, rest.picks]),
        np.concatenate([pins.gains, rest.gains]),
        pins.computed + rest.computed,
    )


def _lazy_phase(
    objective: Coverage, candidates: np.ndarray, budget: int, tracker: ConstraintTracker
) -> Ranking:
    if objective.compiled is not None:
        from delift_pipeline.selection.compiled import run_lazy_greedy

        size, limits = min(budget, len(candidates)), tracker.limits
        first, picks, gains = objective.gains(candidates), np.empty(size, np.int64), np.empty(size)
        inputs = objective.compiled, objective.terms, objective.bonus, limits, tracker.stop
        picked, computed = run_lazy_greedy(*inputs, candidates, first, picks, gains)
        objective.add_bonuses(picks[:picked])
        tracker.slots -= picked
        return Ranking(picks[:picked].copy(), gains[:picked].copy(), computed)
    scale = tracker.limits.scale
    first = objective.gains(candidates) / scale[candidates]
    heap = [(-float(key), place, 0) for place, key in enumerate(first)]
    heapq.heapify(heap)
    picks, gains, computed = [], [], len(candidates)
    while heap and len(picks) < budget:
        _, place, computed_at = heap[0]
        j = int(candidates[place])
        if not tracker.admissible_mask(np.array([j]))[0]:
            heapq.heappop(heap)
        elif computed_at < len(picks):
            computed += 1
            heapq.heapreplace(heap, (-objective.gain(j) / scale[j], place, len(picks)))
        elif not _pick(objective, j, picks, gains, tracker):
            break
        else:
            heapq.heappop(heap)
    return _as_ranking(picks, gains, computed)


def sampling_phase(block: int, random: np.random.Generator | None = None, size: int = 0) -> Phase:
    """Return a greedy run on `size` random candidates per step, or on all without `random`.

    Gains are computed in blocks that double within a step, the greatest former gains first. A step
    ends when no other former gain is greater than the best new gain, which does not change a pick.
    """

    def phase(
        objective: Coverage, candidates: np.ndarray, budget: int, tracker: ConstraintTracker
    ) -> Ranking:
        bounds = np.full(objective.n, np.inf)
        left, picks, gains, computed = candidates, [], [], 0
        while len(picks) < budget:
            left = left[tracker.admissible_mask(left)]
            if not len(left):
                break
            drawn = np.arange(len(left))
            if random is not None:
                # The sample is in tie order, so the first of equal gains is picked.
                some = min(size, len(left))
                drawn = np.sort(random.choice(len(left), size=some, replace=False))
            best, count = _best_of(objective, left[drawn], tracker.limits.scale, bounds, block)
            computed += count
            if not _pick(objective, int(left[drawn[best]]), picks, gains, tracker):
                break
            left = np.delete(left, drawn[best])
        return _as_ranking(picks, gains, computed)

    return phase


def _best_of(
    objective: Coverage, sample: np.ndarray, scale: np.ndarray, bounds: np.ndarray, block: int
) -> tuple[int, int]:
    """Return the position of the best of a sample, and how many gains were computed."""
    former, fresh, count = bounds[sample], np.full(len(sample), -np.inf), 0
    while count < len(sample) and former.max() >= fresh.max():
        size = min(block, len(sample) - count)
        part = np.sort(np.argpartition(-former, size - 1)[:size])
        columns = sample[part]
        fresh[part] = bounds[columns] = objective.gains(columns) / scale[columns]
        former[part] = -np.inf
        count, block = count + size, 2 * block
    return int(np.argmax(fresh)), count


def _pick(
    objective: Coverage, j: int, picks: list[int], gains: list[float], tracker: ConstraintTracker
) -> bool:
    """Pick j and return True, or return False if its gain is below the share that stops."""
    gain = objective.gain(j)
    if picks and gain < tracker.stop * gains[0]:
        return False
    objective.add(j)
    tracker.count_pick(j)
    picks.append(j)
    gains.append(gain)
    return True


def _as_ranking(picks: list[int], gains: list[float], computed: int) -> Ranking:
    return Ranking(np.array(picks, dtype=np.int64), np.array(gains, dtype=np.float64), computed)


def knee_of(gains: Any) -> int:
    """Return the number of picks at the knee of the gain curve, at least 1 if there are any.

    The knee is the point of the curve of summed gains that is farthest above the straight line from
    its start to its end (Satopaa et al. 2011, "Finding a Kneedle in a Haystack").
    """
    summed = np.cumsum(np.asarray(gains, dtype=np.float64))
    if len(summed) and summed[-1] <= 0:
        return 1
    if len(summed) < 3:
        return len(summed)
    picks = np.arange(1, len(summed) + 1)
    return int(np.argmax(summed / summed[-1] - picks / len(summed))) + 1
