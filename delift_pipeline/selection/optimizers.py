"""Greedy maximisation of any objective, under any constraints.

All optimizers break ties by gain, then by `tie_order` (the order of record_ids), pick no column
twice, and give a ranking whose prefixes are the answers for smaller budgets; quotas counted in
shares, least counts and costs bind a ranking to its budget.

Under a cost budget the ranking by gain and the one by gain a unit of cost are both made and the
better is kept: 1/2 (1 - 1/e) of the best subset of that cost (Leskovec et al. 2007), while either
alone can be arbitrarily bad. The gains of the second kind do not fall, its gains a unit of cost do.
"""

import functools
import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from delift_pipeline.core.errors import Refused
from delift_pipeline.selection.constraints import Constraints, ConstraintTracker
from delift_pipeline.selection.objectives import BLOCK, Coverage, TensorCoverage


@dataclass(frozen=True)
class Ranking:
    """Picks in order.

    Attributes:
        picks: int64 [k], column numbers.
        gains: float64 [k], what each pick added.
        computed: How many gains were computed on the way.
    """

    picks: np.ndarray = field(repr=False)
    gains: np.ndarray = field(repr=False)
    computed: int = 0


class Optimizer(Protocol):
    """Ranks columns: optimizer(objective, budget, tie_order, constraints)."""

    def __call__(
        self,
        objective: Coverage,
        budget: int,
        tie_order: np.ndarray,
        constraints: Constraints | None = None,
    ) -> Ranking:
        """The ranking; the objective is left with its picks chosen."""
        ...


# One greedy run over candidates in tie order, at most `budget` picks, counted by the tracker.
Phase = Callable[[Coverage, np.ndarray, int, ConstraintTracker], Ranking]


def tie_order_of(ids: Sequence[str]) -> np.ndarray:
    """Place of each id in the sorted order of all, int64; what ties are broken by."""
    order = np.empty(len(ids), dtype=np.int64)
    order[sorted(range(len(ids)), key=ids.__getitem__)] = np.arange(len(ids))
    return order


def take_in_order(order: np.ndarray, budget: int, constraints: Constraints | None) -> np.ndarray:
    """The first candidates of an order, int [n], that keep to the constraints, pinned ones first.

    Raises:
        Refused: the budget or the constraints are not possible.
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
    """Rank under constraints with one kind of greedy run; the better of two under a cost budget.

    The objective is left with the picks chosen. The budget counts pinned records too, `tie_order`
    is int [n], and `phase` makes the greedy run, anew for each ranking.

    Raises:
        Refused: the budget or the constraints are not possible.
    """
    if budget < 0 or budget > objective.n:
        raise Refused(f"{budget:,} picks were asked for, and there are {objective.n:,} candidates")
    if len(tie_order) != objective.n:
        raise Refused(f"{len(tie_order):,} ids were given for {objective.n:,} candidates")
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
"""Look at every candidate in every step: n gains a pick; the oracle for the others."""

lazy_greedy: Optimizer = functools.partial(rank_greedily, phase=lambda _: _lazy_phase)
"""The same ranking as `naive_greedy` with few gains computed (Minoux 1978).

A gain never grows, so a candidate whose former gain is below the best fresh one need not be looked
at again.
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
    """Look at a fresh random sample of the candidates in each step (Mirzasoleiman et al. 2015).

    The sample is a share of the ground set and not of the budget, so that a smaller budget is a
    prefix. With s = ceil(sample * n) candidates a step, a budget k reaches 1 - 1/e - exp(-s k / n)
    of the best in expectation. Gains may rise from one pick to the next, since a better candidate
    may be met later.
    """
    size = max(1, math.ceil(sample * objective.n))

    def phase(_: Coverage) -> Phase:
        return sampling_phase(16 if lazily else size, np.random.default_rng(seed), size)

    return rank_greedily(objective, budget, tie_order, constraints, phase=phase)


lazier_than_lazy_greedy = functools.partial(stochastic_greedy, lazily=True)
"""The ranking of `stochastic_greedy` with fewer gains computed (Mirzasoleiman et al. 2015).

Within each sample, candidates are looked at from the greatest former gain down until none left
could be better than the best one seen.
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
    """The ranking of `lazy_greedy`, gains computed by the block for processors with many lanes.

    The memory of `device`, a torch device such as `cuda`, holds the kernel; None computes where the
    objective does. Gains of a device may differ from others in their last digits, and so may picks
    whose gains do not differ by more.

    Raises:
        Refused: the budget or the constraints are not possible, or the device is not there.
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
    """One ranking: pinned records first, then the rest."""
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
    """A phase that looks at `size` candidates drawn in each step; without `random`, at all of them.

    Gains are computed by the `block`, those with the greatest former gains first, and twice as many
    the next time in a step. A step ends where no former gain left could be the best, which changes
    no pick.
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
                # In tie order, so that the first of equals is taken.
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
    """Place of the best of a sample, the first of equals, and how many gains were computed."""
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
    """Pick j, unless its gain is under the share of the first at which to stop."""
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
    """How many picks stand at the knee of the gain curve, at least 1 where there is any.

    The point of the curve of summed gains that lies farthest above the straight line from its start
    to its end (Satopaa et al. 2011, "Finding a Kneedle in a Haystack").
    """
    summed = np.cumsum(np.asarray(gains, dtype=np.float64))
    if len(summed) and summed[-1] <= 0:
        return 1
    if len(summed) < 3:
        return len(summed)
    picks = np.arange(1, len(summed) + 1)
    return int(np.argmax(summed / summed[-1] - picks / len(summed))) + 1
