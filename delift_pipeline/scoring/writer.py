"""Gathers scores into shards and gives leases back once their scores are safe on the disk."""

from typing import Any

import numpy as np

from delift_pipeline.scoring.distance import PairScores
from delift_pipeline.scoring.leases import Leases
from delift_pipeline.scoring.shards import ShardDraft
from delift_pipeline.scoring.store import ScoreStore

SHARD_SECONDS = 5.0
"""A shard closes after the demonstration with which it holds this much work."""


class ShardWriter:
    """Closes a shard whenever enough work is in it.

    Attributes:
        shards: Shards written.
        pairs: Pairs written or about to be.
        halved: Batches halved for memory.
    """

    def __init__(
        self, store: ScoreStore, leases: Leases, settings: dict[str, Any], shard_seconds: float
    ) -> None:
        self.store, self.leases, self.settings = store, leases, settings
        self.shard_seconds = shard_seconds
        self.shards = self.pairs = self.halved = 0
        self._draft = ShardDraft()

    def add(
        self,
        demonstration: int,
        targets: np.ndarray,
        scores: PairScores,
        *,
        seconds: float,
        halved: int,
        tokens: np.ndarray | None = None,
    ) -> None:
        """Add a demonstration's scores."""
        self._draft.add(demonstration, targets, scores, tokens)
        self._draft.seconds += seconds
        self._draft.halved += halved
        self.pairs += len(targets)
        self.halved += halved

    def close_full(self) -> bool:
        """Close the shard in the making where enough work is in it; whether it was."""
        full = bool(self._draft.demonstrations) and self._draft.seconds >= self.shard_seconds
        if full:
            self.flush()
        return full

    def flush(self) -> None:
        """Close the shard in the making, if anything is in it."""
        if self._draft.demonstrations:
            self.store.write(self._draft, self.settings)
            self.shards += 1
            self._draft = ShardDraft()

    def release(self, keep: str | None = None) -> None:
        """Give back every lease but `keep`; only after `flush`."""
        self.leases.release(self.leases.held - {keep})
