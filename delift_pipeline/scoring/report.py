"""Report a scoring run, measure the rate of scoring, and read scores as a table, without torch."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from delift_pipeline.scoring.engine import Engine, Job
from delift_pipeline.scoring.store import ScoreStore

if TYPE_CHECKING:
    from delift_pipeline.prompts.encode import EncodedRecords


@dataclass(frozen=True)
class ScoreReport:
    """The counts of a scoring run.

    Attributes:
        pairs_reused: Requested pairs that the store had, or that another writer scored meanwhile.
        pairs_left_out: Requested pairs that have an unscorable record.
        shards_before: Shards in the store at the start.
        seconds: Wall time.
        halved: How many batches were halved because memory ran out.
        cuts: Kind of cut -> how many records were cut in this way.
        unscorable: record_id -> why the record is in no pair.
    """

    pairs_scored: int
    pairs_reused: int
    pairs_left_out: int
    shards_before: int
    shards_written: int
    seconds: float
    halved: int
    engine: dict[str, Any]
    cuts: dict[str, int] = field(default_factory=dict)
    unscorable: dict[str, str] = field(default_factory=dict)

    @property
    def pairs_per_second(self) -> float:
        """Pairs per second of this run."""
        return self.pairs_scored / self.seconds if self.seconds > 0 else 0.0


def stored_rate(store: ScoreStore) -> float | None:
    """Return pairs per second over all shards of the store; None if it is empty.

    This needs no model, because every shard says how long its work took.
    """
    shards = [shard for shard in store.shards if shard.has_pairs]
    seconds = sum(float(shard.meta["seconds"]) for shard in shards)
    return sum(shard.pairs for shard in shards) / seconds if seconds > 0 else None


def pairs_per_second(engine: Engine, records: "EncodedRecords", trials: int = 2) -> float:
    """Measure pairs per second: `trials` demonstrations with a sample of up to 32 targets.

    One more demonstration warms up. `records` must not be empty.
    """
    rng = np.random.default_rng(0)
    size = min(32, len(records))
    rows = np.sort(rng.choice(len(records), size, replace=False))
    demonstrations = rng.integers(0, len(records), trials + 1).tolist()
    engine.score(records, [Job(records.prefix(demonstrations[0]), rows)])
    started = time.perf_counter()
    for row in demonstrations[1:]:
        engine.score(records, [Job(records.prefix(row), rows)])
    return size * trials / max(time.perf_counter() - started, 1e-9)


def duration_text(seconds: float) -> str:
    """Return a duration in words: `20 seconds`, `4 minutes`, `3 hours`, `2 days`."""
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}s"
    return f"{max(seconds, 1):,.0f} second{'' if seconds < 1.5 else 's'}"


SCORE_SCHEMA = pl.Schema(
    {
        "target_id": pl.String(),
        "demonstration_id": pl.String(),  # null: no demonstration
        "sum_logprob": pl.Float32(),
        "squared_distance": pl.Float32(),
        "tokens": pl.Int32(),
    }
)


def read_table(store: ScoreStore, record_ids: Sequence[str]) -> pl.DataFrame:
    """Read the scores of all pairs of the records, and of each without a demonstration.

    The table has one row for each pair (`SCORE_SCHEMA`): first those without a demonstration, then
    demonstration by demonstration, with targets in the order of the records.
    """
    alone = store.baseline(record_ids)
    columns = ((record, store.column(record, record_ids)) for record in record_ids)
    return pl.concat(
        pl.DataFrame(
            {
                "target_id": list(record_ids),
                "demonstration_id": [demonstration] * len(record_ids),
                "sum_logprob": scores.sum_logprob,
                "squared_distance": scores.squared_distance,
                "tokens": alone.tokens,
            },
            schema=SCORE_SCHEMA,
        )
        for demonstration, scores in [(None, alone), *columns]
    )
