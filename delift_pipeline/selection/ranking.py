"""Build a selection from scores, from an order of the records, or by maximising an objective.

    f(A) = sum_{j in A} score_j

is modular, so the ranking by score is the greedy one, and a record's score is its marginal gain.
Equal scores are ranked by record_id. A maximisation ranks new records, and may add a share of
replayed records.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import polars as pl

from delift_pipeline.core.errors import DeliftError, InputError
from delift_pipeline.selection.budget import resolve_budget
from delift_pipeline.selection.constraints import Constraints
from delift_pipeline.selection.objectives import Coverage, mean_random_value
from delift_pipeline.selection.optimizers import Optimizer, take_in_order, tie_order_of
from delift_pipeline.selection.result import Reasons, Selection, self_shares
from delift_pipeline.selection.selector import SelectionInputs

T = TypeVar("T")
DECIMALS = 6
"""Scores are rounded before a comparison, because later decimals depend on the order of sums."""


def rank_by_score(
    selector: str,
    inputs: SelectionInputs,
    ids: Sequence[str],
    scores: np.ndarray,
    budget: int,
    *,
    ties: np.ndarray | None = None,
    notes: tuple[str, ...] = (),
    dropped: int = 0,
) -> Selection:
    """Rank the records that have a score, `ids`, by `scores`, float [ids].

    `ties`, float [ids], decides among equal scores before the record_id does. If fewer records have
    a score than the budget allows, fewer are ranked, and a note after `notes` says so. `dropped` is
    how many records with a score the selector left out.

    Raises:
        DeliftError: No record has a score, or a score is not finite.
        InputError: A rule or quota cannot be obeyed.
    """
    if not len(ids):
        raise DeliftError(f"no record of the pool has scores, so {selector} cannot rank any")
    rounded = np.round(np.asarray(scores, dtype=np.float64), DECIMALS)
    if not np.isfinite(rounded).all():
        raise DeliftError(f"some scores of {selector} are not finite. Use dtype float32")
    second = np.zeros(len(ids)) if ties is None else np.round(ties, DECIMALS)
    keys = zip(-rounded, -second, ids, range(len(ids)), strict=True)
    order = np.array([number for *_, number in sorted(keys)], dtype=np.int64)
    count = min(budget, len(ids))
    constraints = inputs.constraints(ids, count)
    picks = _cut_off(take_in_order(order, count, constraints), rounded, constraints)
    short = f"the ranking has {len(ids):,} records, fewer than the {budget:,} of the budget"
    return Selection(
        selector=selector,
        ranking=tuple(ids[int(j)] for j in picks),
        gains=rounded[picks],
        objective=f"sum of {selector} scores",
        value=float(rounded[picks].sum()),
        value_random=float(rounded.mean() * len(picks)),
        notes=(
            *notes,
            *inputs.unranked_notes(selector, len(ids) + dropped),
            *([short] if budget > len(ids) else ()),
        ),
    )


def rank_by_order(
    selector: str,
    inputs: SelectionInputs,
    ids: Sequence[str],
    order: np.ndarray,
    budget: int,
    **fields: Any,
) -> Selection:
    """Select the candidates `ids` in an order, int [ids], as budget and rules allow.

    The selection has no gains. `fields` are further fields of it.
    """
    picks = take_in_order(order, budget, inputs.constraints(ids, budget))
    return Selection(selector, tuple(ids[int(j)] for j in picks), **fields)


def take_turns(scores: np.ndarray, groups: Sequence[np.ndarray] | None = None) -> np.ndarray:
    """Return all records in order, int64 [n]: columns pick in turn, each its best one not picked.

    `scores` are float [n, columns]. Of equal scores, the record with the smaller number comes
    first. With `groups` of columns, the groups take turns, and within each group its columns do.
    """
    groups = [np.array([column]) for column in range(scores.shape[1])] if groups is None else groups
    # A view gives Python's own numbers one by one, which saves the memory of a list.
    queues = [iter(np.argsort(-one, kind="stable").astype(np.int32).data) for one in scores.T]
    turns = itertools.cycle([itertools.cycle(group.tolist()) for group in groups])
    order: dict[int, None] = {}
    while len(order) < len(scores):
        queue = queues[next(next(turns))]
        order[next(record for record in queue if record not in order)] = None
    return np.array(list(order), dtype=np.int64)


def refuse_auto(selector: str, inputs: SelectionInputs) -> None:
    """Refuse the budget `auto`, which stops at a small gain, for a ranking without gains."""
    if inputs.allowance is not None and inputs.allowance.stop:
        reason = f"{selector} has no gains, so auto cannot stop it. Give a share or a count"
        raise InputError(reason, field="budget")


def _cut_off(picks: np.ndarray, scores: np.ndarray, constraints: Constraints | None) -> np.ndarray:
    """Return the picks up to where a budget of `auto` stops. Pinned ones stay."""
    if constraints is None or not constraints.stop or not len(picks):
        return picks
    pinned = np.isin(picks, constraints.pinned)
    enough = scores[picks] >= constraints.stop * scores[picks[0]]
    return picks[pinned | np.logical_and.accumulate(enough | pinned)]


TARGET_SHARE = 0.05
TARGETS, WARM_UP = 1, 2
"""Second part of the seed, so that two draws of one arm differ."""


@dataclass(frozen=True)
class TargetSet:
    """The targets, sorted by record_id, and whether they are a sample of the pool."""

    records: pl.DataFrame = field(repr=False)
    from_pool: bool

    @property
    def ids(self) -> tuple[str, ...]:
        """Return their record_ids."""
        return tuple(self.records["record_id"])

    @property
    def notes(self) -> tuple[str, ...]:
        """Return a note if the targets are a sample of the pool."""
        if not self.from_pool:
            return ()
        count = self.records.height
        return (f"the stage has no target set, so {count:,} records of the pool serve as one",)


def target_set(inputs: SelectionInputs, seed: int, share: float = TARGET_SHARE) -> TargetSet:
    """Return D_T in the task-specific stage, and a seeded share of the pool in other stages.

    A selection has no access to held-out records, so they are never targets. A target from the pool
    stays a candidate, and selectors ignore its score with itself.

    Raises:
        DeliftError: The stage has a target set, and its records are missing.
    """
    if inputs.stage == "task_specific":
        if inputs.target is None:
            raise DeliftError("the target set's records are missing from the inputs")
        return TargetSet(inputs.target.sort("record_id"), from_pool=False)
    return TargetSet(draw_share(inputs.pool, share, [seed, TARGETS]), from_pool=True)


def draw_share(pool: pl.DataFrame, share: float, seeds: Sequence[int]) -> pl.DataFrame:
    """Draw a random share of the pool, sorted by record_id, whatever the order of the file.

    The share is rounded half up, to at least one record; 1 is all. `seeds` are the arm's seed and
    `TARGETS` or `WARM_UP`.
    """
    ordered = pool.sort("record_id")
    count = resolve_budget(share if share < 1 else "full", ordered.height)
    chosen = np.random.default_rng(seeds).permutation(ordered.height)[:count]
    return ordered[np.sort(chosen)]


def tasks_of(records: pl.DataFrame) -> dict[str, np.ndarray]:
    """Return task -> positions of its records, int64, sorted. Records without one have task ""."""
    if "task" not in records.columns:
        return {"": np.arange(records.height)}
    names = np.array([task or "" for task in records["task"]])
    return {str(name): np.flatnonzero(names == name) for name in np.unique(names)}


class Pick(NamedTuple):
    """A record_id, its gain, and the share of the gain from the record's own row, if known."""

    record: str
    gain: float
    share: float | None


@dataclass(frozen=True)
class Maximisation:
    """An objective to maximise, with the records of its rows and columns.

    Attributes:
        objective: The objective, whose kernel is [rows, columns].
        rows: record_ids of the targets.
        columns: record_ids of the candidates.
        shares: Whether to compute the share of each gain from the record's own row.
    """

    objective: Coverage
    rows: tuple[str, ...] = field(repr=False)
    columns: tuple[str, ...] = field(repr=False)
    shares: bool = False

    def rank(
        self, greedy: Optimizer, count: int, constraints: Constraints | None
    ) -> tuple[list[Pick], dict[str, tuple[str, float]]]:
        """Return the first `count` picks, and target -> the pick that covers it best and its value.

        A target is left out if no pick has a positive value for it.
        """
        ranking = greedy(self.objective, count, tie_order_of(self.columns), constraints)
        picks, shares = ranking.picks.tolist(), itertools.repeat(None)
        if self.shares:
            own = {record: row for row, record in enumerate(self.rows)}
            rows = [own.get(self.columns[j], -1) for j in picks]
            shares = self_shares(self.objective, picks, rows, ranking.gains)
        best, owner = np.zeros(len(self.rows)), np.full(len(self.rows), -1)
        for j in picks:
            where, values = self.objective.kernel.column(j)
            numbers = np.arange(len(best)) if where is None else where
            better = values > best[numbers]
            best[numbers[better]], owner[numbers[better]] = values[better], j
        covered = {
            self.rows[row]: (self.columns[owner[row]], float(best[row]))
            for row in np.flatnonzero(owner >= 0)
        }
        records = (self.columns[j] for j in picks)
        return list(map(Pick, records, ranking.gains.tolist(), shares)), covered


def maximise(
    selector: str,
    inputs: SelectionInputs,
    parts: Sequence[Maximisation],
    greedy: Optimizer,
    budget: int,
    seed: int,
    share: float = 0.0,
) -> Selection:
    """Maximise the first part, and replay a share of the picks from the second part, if any.

    The candidates of the second part are existing records. `seed` draws the random subsets for
    `value_random`.
    """
    first = parts[0]
    replayable = len(parts[1].columns) if len(parts) > 1 else 0
    schedule = replay_schedule(budget, share, len(first.columns), replayable)
    constraints = inputs.constraints(first.columns, schedule.new_count)
    new, covered = first.rank(greedy, schedule.new_count, constraints)
    picks, replayed = new, None
    notes = [*inputs.unranked_notes(selector, len(first.columns))]
    if count := schedule.replay_count:
        notes.append(f"{count:,} of the picks are replayed from the existing records")
        old, covered_by_old = parts[1].rank(greedy, count, None)
        replayed = inputs.records_of([pick.record for pick in old])
        covered = covered_by_old | covered
        # A replayed pick was chosen by another objective, so it has no gain of this one.
        picks = interleave(schedule, new, [pick._replace(gain=float("nan")) for pick in old])
    if (places := len(schedule.replays)) < budget:
        notes.append(f"the ranking has {places:,} records, fewer than the {budget:,} of the budget")
    covers = {pick.record: [] for pick in picks}
    for target, (record, _) in covered.items():
        covers[record].append(target)
    return Selection(
        selector=selector,
        ranking=tuple(covers),
        gains=np.array([pick.gain for pick in picks], dtype=np.float64),
        reasons=Reasons(
            tuple(map(tuple, covers.values())),
            {target: record for target, (record, _) in covered.items()},
            {target: value for target, (_, value) in covered.items()},
        ),
        objective=first.objective.name,
        value=float(np.array([pick.gain for pick in new]).sum()),
        value_random=mean_random_value(first.objective, len(new), seed),
        details={"replayed": schedule.replay_count} if replayable else {},
        notes=tuple(notes),
        self_shares=tuple(pick.share for pick in picks),
        replayed=replayed,
    )


@dataclass(frozen=True)
class ReplaySchedule:
    """Which places of a ranking are for replayed records, one bool per place."""

    replays: tuple[bool, ...]

    @property
    def replay_count(self) -> int:
        """Return how many places are for replayed records."""
        return sum(self.replays)

    @property
    def new_count(self) -> int:
        """Return how many places are for new records."""
        return len(self.replays) - self.replay_count


def replay_schedule(budget: int, share: float, new: int, replayable: int) -> ReplaySchedule:
    """Spread replayed records evenly: `share * p`, rounded half up, of the first p places.

    There are `new` candidates and `replayable` existing records. When all existing records are
    used, new ones fill their places. The schedule ends when a new record is due and none is left,
    so a smaller budget is always a prefix.
    """
    places: list[bool] = []
    replayed = 0
    for place in range(1, budget + 1):
        due = int(share * place + 0.5) > replayed and replayed < replayable
        if not due and place - 1 - replayed >= new:
            break
        places.append(due)
        replayed += due
    return ReplaySchedule(tuple(places))


def interleave(schedule: ReplaySchedule, new: Sequence[T], replayed: Sequence[T]) -> tuple[T, ...]:
    """Return the items of both kinds in the order of the schedule."""
    fresh, old = iter(new), iter(replayed)
    return tuple(next(old) if due else next(fresh) for due in schedule.replays)
