"""A plan in terms of ids: per demonstration its row in the encoded records and its targets' ids."""

from collections.abc import Sequence

import numpy as np

from delift_pipeline.errors import DeliftError
from delift_pipeline.prompts.encoded import EncodedRecords
from delift_pipeline.scoring.pairs import PairBlock, PairPlan
from delift_pipeline.scoring.store import ScoreStore


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
        self.store = store
        self._row = np.full(max(numbers, default=-1) + 1, -1, dtype=np.int64)
        self._row[numbers] = [records.rows[record] for record in scorable]
        number = dict(zip(scorable, numbers, strict=True))
        # Of each demonstration the blocks it stands in, its place there, and the targets' ids: of
        # a dense block as they are wanted, of another one -1 where they are unscorable.
        self._places: dict[int, list[tuple[PairBlock, int, np.ndarray]]] = {}
        for block in plan.blocks:
            targets = np.asarray([number.get(t, -1) for t in block.targets], dtype=np.int32)
            targets = np.unique(targets[targets >= 0]) if block.dense else targets
            for place, demonstration in enumerate(block.demonstrations):
                if demonstration in number:
                    entry = (block, place, targets)
                    self._places.setdefault(number[demonstration], []).append(entry)
        self.demonstrations = sorted(self._places)
        kept = (len(self._targets(*e)) for entries in self._places.values() for e in entries)
        self.left_out = plan.pairs - sum(kept)
        self.pairs = sum(len(self.targets(number)) for number in self.demonstrations)

    def row(self, number: int) -> int:
        """The row of an id in the encoded records."""
        return int(self._row[number])

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """The rows of several ids in the encoded records, int64."""
        return self._row[numbers]

    def targets(self, demonstration: int) -> np.ndarray:
        """Ascending ids of the targets wanted after a demonstration, int32."""
        found = [self._targets(*entry) for entry in self._places[demonstration]]
        return found[0] if len(found) == 1 else np.unique(np.concatenate(found))

    def missing(self, demonstrations: Sequence[int] | None = None) -> dict[int, int]:
        """Demonstration id -> targets that are not scored yet; those with none are left out."""
        asked = self.demonstrations if demonstrations is None else demonstrations
        index = self.store.index
        counts = {number: len(index.missing(number, self.targets(number))) for number in asked}
        return {number: count for number, count in counts.items() if count}

    def _targets(self, block: PairBlock, place: int, targets: np.ndarray) -> np.ndarray:
        if block.dense:
            return targets
        chosen = targets[block.targets_of(place)]
        return np.unique(chosen[chosen >= 0])
