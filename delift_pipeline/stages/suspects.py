"""The suspected records of a subset, and how near prompts change the tokens of their answers.

These token changes depend only on the model and the records. They are stored in the folder of the
version's kernel, for the reports of all arms.
"""

from typing import Any

import polars as pl

from delift_pipeline.core.atomic import write_parquet
from delift_pipeline.core.home import Home
from delift_pipeline.core.progress import Progress
from delift_pipeline.records.stored import DatasetVersion
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.selection.language_model import LanguageModel
from delift_pipeline.selection.run import SUSPECTS
from delift_pipeline.selection.token_changes import (
    TokenChange,
    changes_frame,
    read_changes,
    token_changes,
)
from delift_pipeline.selection.trust import record_line
from delift_pipeline.stages.arms import Arm

TOKENS = "token_changes.parquet"
MOST_SUSPECTS = 20
"""How many suspected records a report shows."""


def suspects_of(
    home: Home,
    dataset: DatasetVersion,
    arm: Arm,
    model: ModelOptions,
    fingerprint: str,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Return the least trusted records with their near prompts and token changes.

    Returns:
        At most `MOST_SUSPECTS` rows {trust, selected, text, neighbours: [{text, tokens, change}]}.
    """
    path = home.subset(dataset.version, arm.name) / SUSPECTS
    if not path.exists():
        return []
    rows = pl.read_parquet(path).head(MOST_SUSPECTS).to_dicts()
    texts = {row["record_id"]: row for row in dataset.pool.iter_rows(named=True)}
    stored = stored_token_changes(home, dataset.version, fingerprint)
    known = {record: {one.record_id for one in changes} for record, changes in stored.items()}
    missing: dict[str, list[str]] = {}
    for row in rows:
        # `delift forget` may have removed a record since the subset was stored.
        near = [one["record_id"] for one in row["neighbours"] if one["record_id"] in texts]
        if row["record_id"] in texts and not set(near) <= known.get(row["record_id"], set()):
            missing[row["record_id"]] = near
    if missing:
        stored |= token_changes(LanguageModel(model, home, progress), texts, missing)
        folder = home.kernel(dataset.version, fingerprint)
        if folder.is_dir():
            write_parquet(folder / TOKENS, changes_frame(stored))
    pairs = {(record, one.record_id): one for record, changes in stored.items() for one in changes}

    def neighbour(record: str, near: str) -> dict[str, Any]:
        pair = pairs.get((record, near))
        tokens, change = (pair.tokens, pair.change) if pair else ((), ())
        return {"text": record_line(texts, near), "tokens": [*tokens], "change": [*change]}

    return [
        {
            "trust": row["trust"],
            "selected": row["selected"],
            "text": record_line(texts, row["record_id"]),
            "neighbours": [
                neighbour(row["record_id"], one["record_id"]) for one in row["neighbours"]
            ],
        }
        for row in rows
    ]


def stored_token_changes(
    home: Home, version: str, fingerprint: str
) -> dict[str, list[TokenChange]]:
    """Read the token changes that reports have stored, by suspected record."""
    path = home.kernel(version, fingerprint) / TOKENS
    return read_changes(pl.read_parquet(path)) if path.is_file() else {}
