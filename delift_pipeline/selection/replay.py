"""New and replayed records in one ranking whose every prefix holds the same share of replay."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


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
