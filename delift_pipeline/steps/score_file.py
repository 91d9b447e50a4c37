"""`delift score`, and the scores that `delift select` reads: files, not versions."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from delift_pipeline.progress import LARGE, Progress, tracked
from delift_pipeline.scoring.fingerprint import fingerprint_of
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.scoring.pairs import PairBlock, PairPlan
from delift_pipeline.scoring.rate import pairs_per_second, stored_rate
from delift_pipeline.scoring.store import ScoreStore
from delift_pipeline.selection.scorable import refuse_unscorable, unscorable_notes
from delift_pipeline.steps.ahead import announce_pairs, announce_scoring
from delift_pipeline.steps.score import scorable_pairs
from delift_pipeline.storage.atomic import write_parquet
from delift_pipeline.storage.home import Home
from delift_pipeline.storage.output import refuse_unwritable_folder, writing

if TYPE_CHECKING:
    from delift_pipeline.prompts.encode import Encoder
    from delift_pipeline.prompts.encoded import EncodedRecords
    from delift_pipeline.scoring.model import LoadedModel


@dataclass(frozen=True)
class Scored:
    """What scoring a plan found or made.

    Attributes:
        store: Where the scores are.
        ids: Scorable records, in the frame's order.
        unscorable: record_id -> why.
        cuts: Kind of cut -> records.
        pairs_scored: Pairs that went through the model.
        pairs_reused: Pairs that were in the store.
    """

    store: ScoreStore
    ids: tuple[str, ...]
    unscorable: dict[str, str]
    cuts: dict[str, int]
    pairs_scored: int
    pairs_reused: int


def encode_records(encoder: "Encoder", frame: pl.DataFrame, progress: Progress) -> "EncodedRecords":
    """Encode records, once what the user should know of the wording is said."""
    for note in encoder.notes:
        progress.say(note)
    with tracked(progress, "tokenised", frame.height, "records") as meter:
        return encoder.encode(frame, meter.advance)


def score_plan(
    home: Home,
    options: ModelOptions,
    frame: pl.DataFrame,
    plan: PairPlan,
    progress: Progress,
    encoded: "EncodedRecords | None" = None,
) -> Scored:
    """Score what is missing of a plan; the model is loaded only where something is.

    Args:
        home: Where scores are kept, by fingerprint.
        options: The scorer.
        frame: All records the plan names (`RECORD_SCHEMA`).
        plan: The wanted pairs.
        progress: Where progress is shown.
        encoded: The records of `frame`, where they are encoded already.

    Raises:
        Refused: the model cannot be used, or the home cannot be written.
        DeliftError: the model gives no numbers.
    """
    from delift_pipeline.scoring.model import load_encoder, load_scorer
    from delift_pipeline.scoring.run import score_baseline, score_pairs
    from delift_pipeline.scoring.workers import score_together

    store = ScoreStore(home.scores(fingerprint_of(options).digest))
    if encoded is None:
        encoded = encode_records(load_encoder(options), frame, progress)
    unscorable = dict(encoded.unscorable)
    wanted = sum(scorable_pairs(block, unscorable) for block in plan.blocks)
    missing = sum(scorable_pairs(block, unscorable) for block in store.missing(plan).blocks)
    alone = bool((store.baseline(encoded.ids).tokens == 0).any())
    scored, reused = 0, wanted
    if missing or alone:
        refuse_unwritable_folder(home.root, "--home")
    if (missing or alone) and options.workers > 1:
        announce_scoring(frame.height, missing, stored_rate(store), progress)
        report = score_together(options, store, frame, encoded, plan, progress, baseline=True)
        scored, reused = report.pairs_scored, report.pairs_reused
    elif missing or alone:
        model = load_scorer(options)
        if frame.height > LARGE:
            announce_scoring(frame.height, missing, _rate(store, model, encoded), progress)
        score_baseline(model, store, encoded, progress)
        report = score_pairs(model, store, encoded, plan, progress)
        scored, reused = report.pairs_scored, report.pairs_reused
    return Scored(store, encoded.ids, unscorable, dict(encoded.cuts), scored, reused)


def _rate(store: ScoreStore, model: "LoadedModel", encoded: "EncodedRecords") -> float | None:
    """Pairs a second by stored scores, else by a trial; vLLM would have to be started for one."""
    from delift_pipeline.scoring.engines import engine_for

    rate = stored_rate(store)
    if rate or model.options.engine == "vllm":
        return rate
    return pairs_per_second(engine_for(model), encoded)


def score_file(
    home: Home, records: pl.DataFrame, options: ModelOptions, out: Path, progress: Progress
) -> dict[str, Any]:
    """Score all records against all and write one row a pair (`scoring.table.SCORE_SCHEMA`).

    Returns:
        Counts, seconds, the fingerprint, and where the table is.

    Raises:
        Refused: the model cannot be used, or no record can be scored.
    """
    from delift_pipeline.scoring.table import read_table

    started = time.monotonic()
    ids = tuple(records["record_id"])
    plan = PairPlan((PairBlock("self", ids, ids),))
    announce_pairs(home, records, plan.pairs, options, progress)
    scored = score_plan(home, options, records, plan, progress)
    refuse_unscorable(records, scored.unscorable, "records of the file")
    for note in unscorable_notes(records, scored.unscorable, "records"):
        progress.say(note)
    with writing(out) as temporary:
        write_parquet(temporary, read_table(scored.store, scored.ids))
    return {
        "records": len(ids),
        "unscorable": len(scored.unscorable),
        "pairs_scored": scored.pairs_scored,
        "pairs_reused": scored.pairs_reused,
        "cuts": scored.cuts,
        "seconds": round(time.monotonic() - started, 3),
        "fingerprint": fingerprint_of(options).digest,
        "out": str(out),
    }
