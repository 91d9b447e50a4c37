"""The suspected wrong records of a subset, with what near prompts do to their tokens.

The token changes depend on the model and the records alone, so that they are kept beside the
version's kernel and serve every arm's report.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
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
    as_frame,
    from_frame,
    token_changes,
)
from delift_pipeline.selection.trust import text_of
from delift_pipeline.stages.arms import Arm

TOKENS = "token_changes.parquet"
MOST_SUSPECTS = 20
"""Suspected records that a report shows."""


def suspects_of(
    home: Home,
    dataset: DatasetVersion,
    arm: Arm,
    model: ModelOptions,
    fingerprint: str,
    progress: Progress,
) -> list[dict[str, Any]]:
    """The least trusted records, the near prompts that disagree, and the tokens that lose.

    Returns:
        At most `MOST_SUSPECTS` rows {trust, selected, text, neighbours: [{text, tokens, change}]}.
    """
    path = home.subset(dataset.version, arm.name) / SUSPECTS
    if not path.exists():
        return []
    rows = pl.read_parquet(path).head(MOST_SUSPECTS).to_dicts()
    texts = {row["record_id"]: row for row in dataset.pool.iter_rows(named=True)}
    # A record may be forgotten since.
    wanted = {
        row["record_id"]: [n["record_id"] for n in row["neighbours"] if n["record_id"] in texts]
        for row in rows
        if row["record_id"] in texts
    }
    folder = home.kernel(dataset.version, fingerprint)
    kept = _kept(folder)
    missing = {
        record: near
        for record, near in wanted.items()
        if not set(near) <= {one.record_id for one in kept.get(record, ())}
    }
    if missing:
        kept |= token_changes(LanguageModel(model, home, progress), texts, missing)
        if folder.is_dir():
            write_parquet(folder / TOKENS, as_frame(kept))
    return [
        {
            "trust": row["trust"],
            "selected": row["selected"],
            "text": text_of(texts, row["record_id"]),
            "neighbours": [
                _neighbour(near["record_id"], texts, kept.get(row["record_id"], ()))
                for near in row["neighbours"]
            ],
        }
        for row in rows
    ]


def kept_changes(home: Home, version: str, fingerprint: str, record: str) -> list[TokenChange]:
    """The token changes of a record that a report has kept; none where it was not suspected."""
    return _kept(home.kernel(version, fingerprint)).get(record, [])


def _kept(folder: Path) -> dict[str, list[TokenChange]]:
    path = folder / TOKENS
    return from_frame(pl.read_parquet(path)) if path.is_file() else {}


def _neighbour(
    record: str, texts: Mapping[str, Mapping[str, Any]], changes: Sequence[TokenChange]
) -> dict[str, Any]:
    change = next((one for one in changes if one.record_id == record), None)
    return {
        "text": text_of(texts, record),
        "tokens": list(change.tokens) if change else [],
        "change": list(change.change) if change else [],
    }
