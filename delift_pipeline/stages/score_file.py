"""`delift score`: score every pair of a file's records."""

import time
from pathlib import Path
from typing import Any

import polars as pl

from delift_pipeline.core.atomic import write_parquet
from delift_pipeline.core.home import Home
from delift_pipeline.core.output import open_output
from delift_pipeline.core.progress import Progress
from delift_pipeline.scoring.fingerprint import fingerprint_of
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.scoring.plan import PairBlock, PairPlan
from delift_pipeline.scoring.store import ScoreStore
from delift_pipeline.selection.run import refuse_unscorable, unscorable_notes
from delift_pipeline.stages.announce import announce_pairs
from delift_pipeline.stages.score import scorable_records, score_plan


def score_file(
    home: Home, records: pl.DataFrame, options: ModelOptions, out: Path, progress: Progress
) -> dict[str, Any]:
    """Score every pair of records and write one row for each (`scoring.report.SCORE_SCHEMA`).

    Returns:
        Counts, seconds, the fingerprint, the name of the template, and the path of the table.

    Raises:
        InputError: the model cannot be used, or no record can be scored.
    """
    from delift_pipeline.scoring.report import read_table

    started, ids = time.monotonic(), tuple(records["record_id"])
    plan, fingerprint = PairPlan((PairBlock("self", ids, ids),)), fingerprint_of(options)
    announce_pairs(home, records, plan.pairs, options, progress)
    report = score_plan(home, options, records, plan, progress)
    refuse_unscorable(records, report.unscorable, "records of the file")
    for note in unscorable_notes(records, report.unscorable, "records"):
        progress.say(note)
    with open_output(out) as temporary:
        scorable = scorable_records(plan, report.unscorable)
        write_parquet(temporary, read_table(ScoreStore(home.scores(fingerprint.digest)), scorable))
    return {
        "records": len(ids),
        "unscorable": len(report.unscorable),
        "pairs_scored": report.pairs_scored,
        "pairs_reused": report.pairs_reused,
        "cuts": report.cuts,
        "seconds": round(time.monotonic() - started, 3),
        "fingerprint": fingerprint.digest,
        "template": fingerprint.template,
        "out": str(out),
    }
