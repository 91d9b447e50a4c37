"""A plan in terms of ids: per demonstration its row in the encoded records and its targets' ids."""

from dataclasses import dataclass

import numpy as np

from delift_pipeline.errors import DeliftError
from delift_pipeline.prompts.encoded import EncodedRecords
from delift_pipeline.scoring.pairs import PairBlock, PairPlan
from delift_pipeline.scoring.store import ScoreStore


@dataclass(frozen=True)
class _Columns:
    """One block: ids of its targets (-1 where unscorable), and its scorable demonstrations."""

    block: PairBlock
    targets: np.ndarray
    places: dict[int, int]
    every_target: np.ndarray


class Wanted:
    """The pairs a plan wants, without those of unscorable records.

    A demonstration that stands in several blocks is wanted once, with the union of its targets.

    Attributes:
        demonstrations: Ids of the scorable demonstrations, ascending.
        left_out: Pairs of the plan that involve an unscorable record, counted block by block.
        pairs: Pairs wanted; one that stands in several blocks counts once.
    """

    def __init__(self, plan: PairPlan, records: EncodedRecords, store: ScoreStore) -> None:
        """Give every scorable record of the plan an id.

        Raises:
            DeliftError: the plan names a record that was not encoded.
        """
        mentioned = list(plan.records())
        unknown = [r for r in mentioned if r not in records.rows and r not in records.unscorable]
        if unknown:
            raise DeliftError(
                f"the plan names {len(unknown):,} records that were not given (first: {unknown[0]})"
            )
        scorable = [record for record in mentioned if record in records.rows]
        numbers = store.ids.add(scorable).tolist()
        self._number = dict(zip(scorable, numbers, strict=True))
        rows = [records.rows[record] for record in scorable]
        self._row = np.full(max(numbers, default=-1) + 1, -1, dtype=np.int64)
        self._row[numbers] = rows
        self._blocks = [self._columns(block) for block in plan.blocks]
        found = {number for columns in self._blocks for number in columns.places}
        self.demonstrations: list[int] = sorted(found)
        self.left_out = plan.pairs - sum(self._kept(columns) for columns in self._blocks)
        self.pairs = sum(len(self.targets(number)) for number in self.demonstrations)

    def row(self, number: int) -> int:
        """The row of an id in the encoded records."""
        return int(self._row[number])

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """The rows of several ids in the encoded records, int64."""
        return self._row[numbers]

    def targets(self, demonstration: int) -> np.ndarray:
        """Ascending ids of the targets wanted after a demonstration, int32."""
        found = [
            self._targets(columns, columns.places[demonstration])
            for columns in self._blocks
            if demonstration in columns.places
        ]
        return found[0] if len(found) == 1 else np.unique(np.concatenate(found))

    def _columns(self, block: PairBlock) -> _Columns:
        targets = np.asarray([self._number.get(t, -1) for t in block.targets], dtype=np.int32)
        places = {
            self._number[demonstration]: place
            for place, demonstration in enumerate(block.demonstrations)
            if demonstration in self._number
        }
        return _Columns(block, targets, places, np.unique(targets[targets >= 0]))

    def _targets(self, columns: _Columns, place: int) -> np.ndarray:
        if columns.block.dense:
            return columns.every_target
        chosen = columns.targets[columns.block.targets_of(place)]
        return np.unique(chosen[chosen >= 0])

    def _kept(self, columns: _Columns) -> int:
        return sum(len(self._targets(columns, place)) for place in columns.places.values())
