"""One maximisation, or two whose picks are mixed: new records, and a share of replayed ones."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from delift_pipeline.selection.constraints import Constraints
from delift_pipeline.selection.objectives import Coverage, objective_of_random
from delift_pipeline.selection.optimizers import Optimizer, order_of
from delift_pipeline.selection.result import Reasons, Selection, reasons_of, self_shares
from delift_pipeline.selection.selector import SelectionInputs

T = TypeVar("T")


@dataclass(frozen=True)
class Picks:
    """A ranking of one kind of record.

    Attributes:
        ids: record_ids, best first.
        gains: float64 [ids]; NaN for a record that serves another objective.
        reasons: Who covers whom.
        self_shares: Share of each gain that is the record's own row; empty where not known.
    """

    ids: tuple[str, ...]
    gains: np.ndarray = field(repr=False)
    reasons: Reasons = field(repr=False)
    self_shares: tuple[float | None, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Part:
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

    def ranked(self, greedy: Optimizer, count: int, constraints: Constraints | None) -> Picks:
        """The first `count` picks with their reasons."""
        ranking = greedy(self.objective, count, order_of(self.columns), constraints)
        picks, shares = [int(j) for j in ranking.picks], ()
        if self.shares:
            own = {record: row for row, record in enumerate(self.rows)}
            rows = [own.get(self.columns[j], -1) for j in picks]
            shares = self_shares(self.objective, picks, rows, ranking.gains)
        reasons = reasons_of(self.objective.kernel, picks, self.rows, self.columns)
        return Picks(tuple(self.columns[j] for j in picks), ranking.gains, reasons, shares)


def maximised(
    selector: str,
    inputs: SelectionInputs,
    parts: Sequence[Part],
    greedy: Optimizer,
    budget: int,
    seed: int,
    share: float = 0.0,
) -> Selection:
    """The ranking of the first part, with a share of the picks from the second one, if any.

    Args:
        selector: Its name.
        inputs: What is chosen from.
        parts: The records to choose from, and the existing ones that may be replayed.
        greedy: The optimizer.
        budget: Records asked for.
        seed: Of the random subsets that the value is compared with.
        share: Share of the picks that is replayed.
    """
    first = parts[0]
    replayable = len(parts[1].columns) if len(parts) > 1 else 0
    schedule = replay_schedule(budget, share, len(first.columns), replayable)
    new = first.ranked(greedy, schedule.new, inputs.constraints(first.columns, schedule.new))
    old = parts[1].ranked(greedy, schedule.replayed, None) if schedule.replayed else None
    picks = joined(new, old, schedule)
    notes = [*inputs.unranked_notes(selector, len(first.columns))]
    if schedule.replayed:
        notes.append(f"{schedule.replayed:,} of the picks are replayed from the existing records")
    if (places := len(schedule.replays)) < budget:
        notes.append(f"the ranking has {places:,} records, fewer than the {budget:,} of the budget")
    return Selection(
        selector=selector,
        ranking=picks.ids,
        gains=picks.gains,
        reasons=picks.reasons,
        objective=first.objective.name,
        value=float(new.gains.sum()),
        value_random=objective_of_random(first.objective, len(new.ids), seed),
        details={"replayed": schedule.replayed} if replayable else {},
        notes=tuple(notes),
        self_shares=picks.self_shares,
        replayed=None if old is None else inputs.records_of(old.ids),
    )


@dataclass(frozen=True)
class Schedule:
    """Which places of a ranking are replayed records: one bool a place."""

    replays: tuple[bool, ...]

    @property
    def replayed(self) -> int:
        """How many places are replayed records."""
        return sum(self.replays)

    @property
    def new(self) -> int:
        """How many places are new records."""
        return len(self.replays) - self.replayed


def replay_schedule(budget: int, share: float, new: int, replayable: int) -> Schedule:
    """Spread the replay: of the first p places, `share * p` rounded half up are replayed.

    A place whose kind is used up goes to the other kind, new records first; the schedule ends where
    no new record is left, so that a smaller budget is always a prefix.

    Args:
        budget: Places wanted.
        share: Share of replay, from 0 to below 1.
        new: New candidates.
        replayable: Existing records that may be replayed.
    """
    places: list[bool] = []
    replayed = 0
    for place in range(1, budget + 1):
        due = int(share * place + 0.5) > replayed and replayed < replayable
        if not due and place - 1 - replayed >= new:
            break
        places.append(due)
        replayed += due
    return Schedule(tuple(places))


def interleaved(schedule: Schedule, new: Sequence[T], replayed: Sequence[T]) -> tuple[T, ...]:
    """The items of both kinds in the order of the schedule."""
    fresh, old = iter(new), iter(replayed)
    return tuple(next(old) if due else next(fresh) for due in schedule.replays)


def joined(new: Picks, replayed: Picks | None, schedule: Schedule) -> Picks:
    """Both rankings as one; a replayed pick has no gain, since it serves another objective."""
    if replayed is None:
        return new
    nothing = [float("nan")] * len(replayed.ids)
    reasons = Reasons(
        interleaved(schedule, new.reasons.covers, replayed.reasons.covers),
        {**replayed.reasons.covered_by, **new.reasons.covered_by},
        {**replayed.reasons.coverage, **new.reasons.coverage},
    )
    gains = interleaved(schedule, new.gains.tolist(), nothing)
    shares: tuple[float | None, ...] = ()
    if new.self_shares or replayed.self_shares:
        shares = interleaved(schedule, new.self_shares, replayed.self_shares)
    return Picks(
        interleaved(schedule, new.ids, replayed.ids),
        np.array(gains, dtype=np.float64),
        reasons,
        shares,
    )
