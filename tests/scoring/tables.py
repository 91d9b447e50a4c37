"""Scores of all records against all."""

from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from delift_pipeline.prompts.encode import EncodedRecords
from delift_pipeline.scoring.model import LoadedModel
from delift_pipeline.scoring.plan import PairBlock, PairPlan
from delift_pipeline.scoring.report import read_table
from delift_pipeline.scoring.run import score_baseline, score_pairs
from delift_pipeline.scoring.store import ScoreStore


def score_table(
    model: LoadedModel, store: ScoreStore | None, records: EncodedRecords
) -> pl.DataFrame:
    """Score all records against all, and each without a demonstration.

    Args:
        model: The scorer.
        store: Where scores are kept and reused; None for a store that is thrown away.
        records: The encoded records; the unscorable ones are in no row.
    """
    if store is None:
        with TemporaryDirectory() as folder:
            return score_table(model, ScoreStore(Path(folder)), records)
    score_baseline(model, store, records)
    score_pairs(model, store, records, PairPlan((PairBlock("self", records.ids, records.ids),)))
    return read_table(store, records.ids)
