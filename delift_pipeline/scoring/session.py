"""One run of scoring: the engine, the shard in the making, the leases, the progress."""

import time
from collections.abc import Iterator, Sequence
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


@dataclass(frozen=True)
class Asked:
    """One demonstration and its targets.

    Attributes:
        demonstration: Its id; `BASELINE` for none.
        prefix: What stands before every target.
        ids: The targets' ids, ascending.
        rows: Their rows in the encoded records.
    """

    demonstration: int
    prefix: np.ndarray
    ids: np.ndarray
    rows: np.ndarray


@dataclass
class Session:
    """Scores jobs and puts them into shards."""

    engine: Engine
    records: EncodedRecords
    writer: ShardWriter
    meter: Meter

    @property
    def in_flight(self) -> int:
        """Demonstrations that the engine takes at a time."""
        return int(self.engine.settings.get("in_flight", 1))

    def score(self, asked: Sequence[Asked]) -> bool:
        """Score demonstrations together; a shard never ends between them.

        Returns:
            Whether that closed a shard.

        Raises:
            DeliftError: the model gives no numbers.
        """
        started = time.monotonic()
        jobs = [Job(one.prefix, one.rows) for one in asked]
        found = self.engine.score(self.records, jobs)
        if not all(np.isfinite(scores.logprobs).all() for scores in found):
            raise DeliftError(
                "the model gives log-probabilities that are not finite; try dtype float32"
            )
        seconds = (time.monotonic() - started) / len(asked)
        for one, scores in zip(asked, found, strict=True):
            self.writer.add(
                one.demonstration,
                one.ids,
                reduce_scores(scores),
                seconds=seconds,
                halved=scores.halved,
                tokens=scores.lengths if one.demonstration == BASELINE else None,
            )
        self.meter.advance(sum(len(one.ids) for one in asked))
        return self.writer.close_full()


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
