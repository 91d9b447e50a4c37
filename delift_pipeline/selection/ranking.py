"""From numbers to a selection: rankings by score, by a given order, and by maximisation.

    f(A) = sum_{j in A} score_j

is modular, so that the ranking by score is the greedy one and a score is its marginal gain. Equal
scores are ranked by record_id. A maximisation ranks new records alone, or mixes its picks with a
share of replayed ones.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import polars as pl

from delift_pipeline.core.errors import DeliftError, Refused
from delift_pipeline.selection.budget import resolve_budget
from delift_pipeline.selection.constraints import Constraints
from delift_pipeline.selection.objectives import Coverage, mean_random_value
from delift_pipeline.selection.optimizers import Optimizer, take_in_order, tie_order_of
from delift_pipeline.selection.result import Reasons, Selection, self_shares
from delift_pipeline.selection.selector import SelectionInputs

T = TypeVar("T")
DECIMALS = 6
"""Scores are compared after rounding: further decimals depend on the order of sums."""


def rank_by_score(
    selector: str,
    inputs: SelectionInputs,
    ids: Sequence[str],
    scores: np.ndarray,
    budget: int,
    *,
    ties: np.ndarray | None = None,
    notes: tuple[str, ...] = (),
) -> Selection:
    """Rank the records that have a score, `ids`, by `scores`, float [ids].

    `ties`, float [ids], decides among equal scores before the record_id does. Where fewer records
    have a score than the budget asks for, fewer are ranked. `notes` go before those that say so.

    Raises:
        DeliftError: no record has a score, or a score is not finite.
        Refused: a rule or quota cannot be kept.
    """
    if not len(ids):
        raise DeliftError(f"no record of the pool has scores, so {selector} cannot rank any")
    rounded = np.round(np.asarray(scores, dtype=np.float64), DECIMALS)
    if not np.isfinite(rounded).all():
        raise DeliftError(f"{selector} gives scores that are not finite; try dtype float32")
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
            *inputs.unranked_notes(selector, len(ids)),
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
    """The candidates `ids` in an order, int [ids], as far as budget and rules allow; no gains.

    `fields` are further fields of the selection.
    """
    picks = take_in_order(order, budget, inputs.constraints(ids, budget))
    return Selection(selector, tuple(ids[int(j)] for j in picks), **fields)


def refuse_auto(selector: str, inputs: SelectionInputs) -> None:
    """Refuse the budget `auto`, which stops by gains, for a ranking that has none."""
    if inputs.allowance is not None and inputs.allowance.stop:
        reason = f"{selector} has no gains to stop at; give a share or a count"
        raise Refused(reason, field="budget")


def _cut_off(picks: np.ndarray, scores: np.ndarray, constraints: Constraints | None) -> np.ndarray:
    """The picks down to where a budget of `auto` stops; pinned ones stay."""
    if constraints is None or not constraints.stop or not len(picks):
        return picks
    pinned = np.isin(picks, constraints.pinned)
    enough = scores[picks] >= constraints.stop * scores[picks[0]]
    return picks[pinned | np.logical_and.accumulate(enough | pinned)]


TARGET_SHARE = 0.05
TARGETS, WARM_UP = 1, 2
"""What is drawn with one seed."""


@dataclass(frozen=True)
class TargetSet:
    """The targets, sorted by record_id, and whether they were drawn from the pool."""

    records: pl.DataFrame = field(repr=False)
    from_pool: bool

    @property
    def ids(self) -> tuple[str, ...]:
        """Their record_ids."""
        return tuple(self.records["record_id"])

    @property
    def notes(self) -> tuple[str, ...]:
        """What to say of them."""
        if not self.from_pool:
            return ()
        count = self.records.height
        return (f"the stage has no target set; {count:,} records of the pool stand for it",)


def target_set(inputs: SelectionInputs, seed: int, share: float = TARGET_SHARE) -> TargetSet:
    """D_T in the task-specific stage, elsewhere a seeded share of the pool.

    Held-out records are never among them: a selection does not even see them. A drawn target stays
    a candidate, and selectors leave out what it says of itself.

    Raises:
        DeliftError: the stage has a target set and its records were not given.
    """
    if inputs.stage == "task_specific":
        if inputs.target is None:
            raise DeliftError("the target set's records were not given")
        return TargetSet(inputs.target.sort("record_id"), from_pool=False)
    return TargetSet(draw_share(inputs.pool, share, [seed, TARGETS]), from_pool=True)


def draw_share(pool: pl.DataFrame, share: float, seeds: Sequence[int]) -> pl.DataFrame:
    """A seeded share of the pool, sorted by record_id; the order of the file does not matter.

    The share is rounded half up, to at least one record; 1 is all. `seeds` are the arm's seed and a
    number of what is drawn, so that two draws differ.
    """
    ordered = pool.sort("record_id")
    count = resolve_budget(share if share < 1 else "full", ordered.height)
    chosen = np.random.default_rng(seeds).permutation(ordered.height)[:count]
    return ordered[np.sort(chosen)]


def tasks_of(records: pl.DataFrame) -> dict[str, np.ndarray]:
    """Task -> places of its records, int64; tasks sorted, those without one under an empty name."""
    if "task" not in records.columns:
        return {"": np.arange(records.height)}
    names = np.array([task or "" for task in records["task"]])
    return {str(name): np.flatnonzero(names == name) for name in np.unique(names)}


class Pick(NamedTuple):
    """A record_id, its gain, and the share of the gain that is the record's own row, if known."""

    record: str
    gain: float
    share: float | None


@dataclass(frozen=True)
class Maximisation:
    """One maximisation: an objective and what its rows and columns are.

    Attributes:
        objective: The objective, whose kernel is [rows, columns].
        rows: record_ids of the targets.
        columns: record_ids of the candidates.
        shares: Whether the share of each gain that is the record's own row is computed.
    """

    objective: Coverage
    rows: tuple[str, ...] = field(repr=False)
    columns: tuple[str, ...] = field(repr=False)
    shares: bool = False

    def rank(
        self, greedy: Optimizer, count: int, constraints: Constraints | None
    ) -> tuple[list[Pick], dict[str, tuple[str, float]]]:
        """The first `count` picks; by target the pick that covers it best and how well.

        A target that no pick covers with a positive value is covered by none.
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
    """The ranking of the first part, with a share of the picks from the second one, if any.

    The second part has the existing records that may be replayed. `seed` decides the random subsets
    that the value is compared with.
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
        # A replayed pick serves another objective, so that it has no gain here.
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
    """Which places of a ranking are replayed records: one bool a place."""

    replays: tuple[bool, ...]

    @property
    def replay_count(self) -> int:
        """How many places are replayed records."""
        return sum(self.replays)

    @property
    def new_count(self) -> int:
        """How many places are new records."""
        return len(self.replays) - self.replay_count


def replay_schedule(budget: int, share: float, new: int, replayable: int) -> ReplaySchedule:
    """Spread the replay: of the first p places, `share * p` rounded half up are replayed.

    A place whose kind is used up goes to the other kind, new records first; the schedule ends where
    no new record is left, so that a smaller budget is always a prefix. There are `new` candidates
    and `replayable` existing records.
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
    """The items of both kinds in the order of the schedule."""
    fresh, old = iter(new), iter(replayed)
    return tuple(next(old) if due else next(fresh) for due in schedule.replays)
