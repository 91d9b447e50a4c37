"""The suspected wrong records of a subset, with what near prompts do to their tokens.

The token changes depend on the model and the records alone, so that they are kept beside the
version's kernel and serve every arm's report.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from delift_pipeline.arms import Arm
from delift_pipeline.progress import Progress
from delift_pipeline.records.stored import DatasetVersion
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.selection.language_model import LanguageModel
from delift_pipeline.selection.reasons_trust import text_of
from delift_pipeline.selection.run import SUSPECTS
from delift_pipeline.selection.token_changes import (
    TokenChange,
    as_frame,
    from_frame,
    token_changes,
)
from delift_pipeline.steps.outcome import PREVIEW_ROWS
from delift_pipeline.storage.atomic import write_parquet
from delift_pipeline.storage.home import Home

TOKENS = "token_changes.parquet"


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
        At most `PREVIEW_ROWS` rows {trust, selected, text, neighbours: [{text, tokens, change}]}.
    """
    path = home.subset(dataset.version, arm.name) / SUSPECTS
    if not path.exists():
        return []
    rows = pl.read_parquet(path).head(PREVIEW_ROWS).to_dicts()
    texts = {row["record_id"]: row for row in dataset.pool.iter_rows(named=True)}
    wanted = {row["record_id"]: _known(row, texts) for row in rows if row["record_id"] in texts}
    reader = LanguageModel(model, home, progress)
    changes = _found(home.kernel(dataset.version, fingerprint), reader, texts, wanted)
    return [
        {
            "trust": row["trust"],
            "selected": row["selected"],
            "text": text_of(texts, row["record_id"]),
            "neighbours": _shown(row, texts, changes.get(row["record_id"], [])),
        }
        for row in rows
    ]


def kept_changes(home: Home, version: str, fingerprint: str, record: str) -> list[TokenChange]:
    """The token changes of a record that a report has kept; none where it was not suspected."""
    return _kept(home.kernel(version, fingerprint)).get(record, [])


def _found(
    folder: Path,
    reader: LanguageModel,
    texts: Mapping[str, Mapping[str, Any]],
    wanted: Mapping[str, Sequence[str]],
) -> dict[str, list[TokenChange]]:
    """The changes wanted, computed where they are not kept yet."""
    kept = _kept(folder)
    missing = {
        record: near
        for record, near in wanted.items()
        if not set(near) <= {one.record_id for one in kept.get(record, ())}
    }
    if missing:
        kept |= token_changes(reader, texts, missing)
        if folder.is_dir():
            write_parquet(folder / TOKENS, as_frame(kept))
    return kept


def _known(row: Mapping[str, Any], texts: Mapping[str, Any]) -> list[str]:
    """The neighbours that are still records: one may be forgotten since."""
    near = [neighbour["record_id"] for neighbour in row["neighbours"]]
    return [record for record in near if record in texts]


def _kept(folder: Path) -> dict[str, list[TokenChange]]:
    path = folder / TOKENS
    return from_frame(pl.read_parquet(path)) if path.is_file() else {}


def _shown(
    row: Mapping[str, Any], texts: Mapping[str, Mapping[str, Any]], changes: Sequence[TokenChange]
) -> list[dict[str, Any]]:
    by_neighbour = {one.record_id: one for one in changes}
    shown = []
    for near in row["neighbours"]:
        change = by_neighbour.get(near["record_id"])
        shown.append(
            {
                "text": text_of(texts, near["record_id"]),
                "tokens": list(change.tokens) if change else [],
                "change": list(change.change) if change else [],
            }
        )
    return shown
