"""Every pair's score as a table, for looking inside."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl

from delift_pipeline.progress import Progress
from delift_pipeline.prompts.encoded import EncodedRecords
from delift_pipeline.scoring.model import LoadedModel
from delift_pipeline.scoring.plan import PairBlock, PairPlan
from delift_pipeline.scoring.run import score_baseline, score_pairs
from delift_pipeline.scoring.store import ScoreStore

SCORE_SCHEMA = pl.Schema(
    {
        "target_id": pl.String(),
        "demonstration_id": pl.String(),  # null: no demonstration
        "sum_logprob": pl.Float32(),
        "squared_distance": pl.Float32(),
        "tokens": pl.Int32(),
    }
)


def score_table(
    model: LoadedModel,
    store: ScoreStore | None,
    records: EncodedRecords,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Score all records against all, and each without a demonstration.

    Args:
        model: The scorer.
        store: Where scores are kept and reused; None for a store that is thrown away.
        records: The encoded records; the unscorable ones are in no row.
        progress: Where progress is shown.

    Returns:
        One row a pair in `SCORE_SCHEMA`: the rows without demonstration first, then demonstration
        after demonstration, targets in the order of the records.
    """
    if store is None:
        with TemporaryDirectory() as folder:
            return score_table(model, ScoreStore(Path(folder)), records, progress)
    score_baseline(model, store, records, progress)
    plan = PairPlan((PairBlock("self", records.ids, records.ids),))
    score_pairs(model, store, records, plan, progress)
    return read_table(store, records.ids)


def read_table(store: ScoreStore, record_ids: tuple[str, ...]) -> pl.DataFrame:
    """The stored scores of all records against all; `score_table` says how rows are ordered."""
    alone = store.baseline(record_ids)
    frames = [_rows(record_ids, None, alone.sum_logprob, alone.squared_distance, alone.tokens)]
    for name, column in zip(record_ids, store.columns(record_ids, record_ids), strict=True):
        frames.append(
            _rows(record_ids, name, column.sum_logprob, column.squared_distance, alone.tokens)
        )
    return pl.concat(frames)


def _rows(
    targets: tuple[str, ...],
    demonstration: str | None,
    logprob: np.ndarray,
    squared: np.ndarray,
    tokens: np.ndarray,
) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "target_id": list(targets),
            "demonstration_id": [demonstration] * len(targets),
            "sum_logprob": logprob,
            "squared_distance": squared,
            "tokens": tokens,
        },
        schema=SCORE_SCHEMA,
    )
