"""`delift find-wrong`: list the records whose prompt tells the model least about their answer."""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from delift_pipeline.core.home import Home
from delift_pipeline.core.progress import Progress
from delift_pipeline.records.read import write_rows
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.scoring.plan import PairBlock, PairPlan
from delift_pipeline.scoring.store import ScoreStore
from delift_pipeline.scoring.support import support_of
from delift_pipeline.selection.language_model import LanguageModel
from delift_pipeline.selection.run import refuse_unscorable
from delift_pipeline.selection.token_changes import TokenChange, prompt_changes
from delift_pipeline.selection.trust import (
    SUSPECTED_BELOW,
    Trust,
    estimate_wrong_share,
    evidence_of,
    record_line,
    trust_from_support,
)
from delift_pipeline.stages.score import PASSES, encode_records, score_plan

MOST_TOKENS = 5
"""How many answer tokens are shown that the prompt makes less likely."""
OUT_SCHEMA = pl.Schema(
    {"record_id": pl.String(), "source_ids": pl.List(pl.String())}
    | dict.fromkeys(("support", "trust"), pl.Float64())
)


def find_wrong(
    home: Home,
    records: pl.DataFrame,
    options: ModelOptions,
    progress: Progress,
    *,
    count: int = 20,
    out: Path | None = None,
) -> dict[str, Any]:
    """Rank records by support, the least supported first. No pairs are scored.

    An answer that stays plausible for its prompt (a wrong letter, a wrong number) keeps its
    support, so it is not found.

    Args:
        home: The home that stores the scores.
        records: The records (`RECORD_SCHEMA`).
        options: The model.
        progress: The progress display.
        count: How many of the least supported records are listed with their evidence.
        out: The file for one row of each scorable record (`OUT_SCHEMA`), or None.

    Returns:
        Counts, the estimated number of wrong answers, the listed records and those left out.

    Raises:
        InputError: the model cannot be used, or no record can be scored.
    """
    started, ids = time.monotonic(), tuple(records["record_id"])
    reader = LanguageModel(options, home, progress)
    encoded = encode_records(reader.encoder, records, progress)
    refuse_unscorable(records, encoded.unscorable, "records of the file")
    plan = PairPlan((PairBlock("self", ids, ()),))
    report = score_plan(
        home, options, records, plan, progress, parts=("baseline",), encoded=encoded
    )
    store = ScoreStore(home.scores(reader.fingerprint))
    trust = trust_from_support(records, partial(support_of, store))
    order = sorted(trust.ids, key=lambda one: (trust.support[trust.places[one]], one))
    texts = {row["record_id"]: row for row in records.iter_rows(named=True)}
    changes = prompt_changes(reader, {one: texts[one] for one in order[:count]})
    share = estimate_wrong_share(trust.trust)
    if out is not None:
        rows = [_row(trust, texts, record) for record in order]
        write_rows(out, rows, OUT_SCHEMA)
    return {
        "records": records.height,
        "scored": len(order),
        "estimated_wrong": round(share * len(order)),
        "estimated_share": round(share, 4),
        "suspected": int((trust.trust < SUSPECTED_BELOW).sum()),
        "least_supported": [
            _entry(trust, texts, changes, rank, record)
            for rank, record in enumerate(order[:count], 1)
        ],
        "left_out": [
            {"record_id": one, "source_ids": list(texts[one]["source_ids"]), "reason": reason}
            for one, reason in encoded.unscorable.items()
        ],
        "cuts": dict(encoded.cuts),
        "passes": PASSES * len(order),
        "passes_done": report.pairs_scored,
        "pairs_scored": 0,
        "seconds": round(time.monotonic() - started, 3),
        "fingerprint": reader.fingerprint,
        "template": reader.template,
        "out": None if out is None else str(out),
    }


def _row(trust: Trust, texts: Mapping[str, Mapping[str, Any]], record: str) -> dict[str, Any]:
    place = trust.places[record]
    numbers = {"support": float(trust.support[place]), "trust": float(trust.trust[place])}
    return {"record_id": record, "source_ids": list(texts[record]["source_ids"]), **numbers}


def _entry(
    trust: Trust,
    texts: Mapping[str, Mapping[str, Any]],
    changes: Mapping[str, TokenChange],
    rank: int,
    record: str,
) -> dict[str, Any]:
    """Return a record with its evidence against the answer.

    `tokens` are the answer tokens that the prompt makes less likely, the most first. `near` are
    near prompts with other answers, the nearest first.
    """
    change, evidence = changes.get(record), evidence_of(trust, record)
    pairs = [] if change is None else zip(change.tokens, change.change, strict=True)
    # The last token ends the answer, and support leaves it out.
    tokens = [{"token": token, "change": value} for token, value in [*pairs][:-1] if value < 0]
    near = [
        {
            "record_id": one.record_id,
            "similarity": one.similarity,
            "text": record_line(texts, one.record_id),
        }
        for one in (evidence.neighbours if evidence else ())
        if texts[one.record_id]["output"] != texts[record]["output"]
    ]
    return {
        "rank": rank,
        **_row(trust, texts, record),
        "text": record_line(texts, record),
        "tokens": sorted(tokens, key=lambda one: one["change"])[:MOST_TOKENS],
        "near": near,
    }
