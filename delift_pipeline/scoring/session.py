"""One run of scoring: the engine, the shard in the making, the leases, the progress."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from delift_pipeline.errors import DeliftError
from delift_pipeline.progress import Meter, Progress
from delift_pipeline.prompts.encoded import EncodedRecords
from delift_pipeline.scoring.distance import reduce_scores
from delift_pipeline.scoring.engine import Engine, Job
from delift_pipeline.scoring.engines import engine_for
from delift_pipeline.scoring.model import LoadedModel
from delift_pipeline.scoring.shards import BASELINE
from delift_pipeline.scoring.store import ScoreStore
from delift_pipeline.scoring.writer import ShardWriter


@dataclass
class Session:
    """Scores jobs and puts them into shards."""

    engine: Engine
    records: EncodedRecords
    writer: ShardWriter
    meter: Meter

    def score(
        self, demonstration: int, prefix: np.ndarray, ids: np.ndarray, rows: np.ndarray
    ) -> bool:
        """Score the targets `ids`, which are the encoded `rows`, after a prefix.

        Returns:
            Whether that closed a shard.

        Raises:
            DeliftError: the model gives no numbers.
        """
        started = time.monotonic()
        found = self.engine.score(self.records, [Job(prefix, rows)])[0]
        if not np.isfinite(found.logprobs).all():
            raise DeliftError(
                "the model gives log-probabilities that are not finite; try dtype float32"
            )
        closed = self.writer.add(
            demonstration,
            ids,
            reduce_scores(found),
            seconds=time.monotonic() - started,
            halved=found.halved,
            tokens=found.lengths if demonstration == BASELINE else None,
        )
        self.meter.advance(len(ids))
        return closed


@contextmanager
def scoring_session(
    model: LoadedModel,
    store: ScoreStore,
    records: EncodedRecords,
    progress: Progress,
    *,
    engine: Engine | None,
    shard_seconds: float,
    name: str,
    pairs: int,
) -> Iterator[Session]:
    """A session whose last shard is closed and whose leases are given back at the end.

    What was scored before an error is kept as well.
    """
    chosen = engine or engine_for(model, progress)
    with store.leases() as leases, progress.track(name, pairs, "pairs") as meter:
        writer = ShardWriter(store, leases, chosen.settings, shard_seconds)
        try:
            yield Session(chosen, records, writer, meter)
        finally:
            writer.flush()
    store.refresh()
