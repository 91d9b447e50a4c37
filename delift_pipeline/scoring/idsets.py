"""Sets of ids in few bytes: as runs or as a list, whichever has fewer numbers."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

_UNSIGNED = (np.uint8, np.uint16, np.uint32)


def smallest(numbers: np.ndarray) -> np.ndarray:
    """Non-negative numbers below 2^32 in the smallest unsigned type that holds them all."""
    largest = int(numbers.max()) if len(numbers) else 0
    fits = next(kind for kind in _UNSIGNED if largest <= np.iinfo(kind).max)
    return numbers.astype(fits)


@dataclass(frozen=True)
class IdSets:
    """Several sets of ids.

    A set is a strictly ascending sequence: its ids, or, as runs, the ends start, stop, start, stop
    of its stretches of consecutive ids. The sequence is kept as its first number and the steps to
    the next ones.

    Attributes:
        first: First number of each sequence, int32 [sets].
        forms: Twice the length of each sequence, plus 1 where it holds runs, unsigned [sets].
        steps: The steps of all sequences, end to end, unsigned.
    """

    first: np.ndarray
    forms: np.ndarray
    steps: np.ndarray

    @classmethod
    def packed(cls, sets: list[np.ndarray]) -> "IdSets":
        """Pack sets; each a strictly ascending, non-empty int array."""
        sequences = [_shorter(ids.astype(np.int64)) for ids in sets]
        first = np.asarray([sequence[0] for sequence, _ in sequences], dtype=np.int32)
        forms = np.asarray([2 * len(sequence) + runs for sequence, runs in sequences])
        steps = [np.diff(sequence) for sequence, _ in sequences]
        joined = np.concatenate(steps) if steps else np.empty(0, dtype=np.int64)
        return cls(first, smallest(forms), smallest(joined))

    def unpacked(self, place: int) -> np.ndarray:
        """The ids of one set, ascending, int32."""
        begin, end = self._ends[place : place + 2]
        steps = self.steps[begin:end].astype(np.int64)
        sequence = np.concatenate([[0], np.cumsum(steps)]) + int(self.first[place])
        if not int(self.forms[place]) & 1:
            return sequence.astype(np.int32)
        stretches = [np.arange(a, b, dtype=np.int32) for a, b in sequence.reshape(-1, 2)]
        return np.concatenate(stretches)

    def sizes(self) -> np.ndarray:
        """How many ids each set has, int64 [sets]."""
        counts = (self.forms >> 1).astype(np.int64)
        for place in np.flatnonzero(self.forms & 1).tolist():
            counts[place] = len(self.unpacked(place))
        return counts

    @cached_property
    def _ends(self) -> np.ndarray:
        lengths = (self.forms >> 1).astype(np.int64)
        return np.concatenate([[0], np.cumsum(lengths - 1)])


def _shorter(ids: np.ndarray) -> tuple[np.ndarray, bool]:
    breaks = np.flatnonzero(np.diff(ids) > 1)
    if 2 * (len(breaks) + 1) >= len(ids):
        return ids, False
    starts = np.concatenate([ids[:1], ids[breaks + 1]])
    stops = np.concatenate([ids[breaks], ids[-1:]]) + 1
    return np.stack([starts, stops], axis=1).ravel(), True
