"""New and replayed records in one ranking whose every prefix holds the same share of replay."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from delift_pipeline.selection.result import Reasons

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


def shortfalls(schedule: Schedule, budget: int) -> tuple[str, ...]:
    """What to say of replay, and of a ranking that is short of the places asked for."""
    notes = []
    if schedule.replayed:
        notes.append(f"{schedule.replayed:,} of the picks are replayed from the existing records")
    if (places := len(schedule.replays)) < budget:
        notes.append(f"the ranking has {places:,} records, fewer than the {budget:,} of the budget")
    return tuple(notes)
