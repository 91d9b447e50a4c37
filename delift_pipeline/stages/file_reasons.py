"""The reasons that `delift select --why` writes."""

from collections.abc import Mapping
from dataclasses import asdict

import polars as pl

from delift_pipeline.core.output import json_text
from delift_pipeline.selection.language_model import LanguageModel
from delift_pipeline.selection.result import Selection, subset_frames
from delift_pipeline.selection.token_changes import MOST_RECORDS, token_changes
from delift_pipeline.selection.trust import evidence_of, text_of


def reasons_text(
    selection: Selection,
    pool: pl.DataFrame,
    whole: pl.DataFrame,
    reader: LanguageModel,
    unscorable: Mapping[str, str],
) -> str:
    """One JSON line a record: the chosen in rank order, then the dropped in file order.

    `suspected` holds the near prompts that speak most against a record with little trust, and is
    null where nothing is suspected; of the `MOST_RECORDS` least trusted each of them says with
    `tokens` what it does to the record's answer. In `near_duplicates` stand the other records of
    its group. `unscorable` says why a record could not be scored, and is null where it could.

    Args:
        selection: What was chosen.
        pool: What it was chosen from.
        whole: Those records, and the existing ones.
        reader: The model, loaded only where a record is suspected.
        unscorable: record_id -> why it could not be scored.
    """
    subset, dropped = subset_frames(selection, pool)
    rows = [*subset.iter_rows(named=True), *dropped.iter_rows(named=True)]
    texts = {row["record_id"]: row for row in whole.iter_rows(named=True)}
    groups: dict[int, list[str]] = {}
    for record, group in selection.duplicates.items():
        groups.setdefault(group, []).append(record)
    trust, ids = selection.trust, [row["record_id"] for row in rows]
    found = [] if trust is None else [evidence_of(trust, record) for record in ids]
    suspects = {one.record_id: one for one in found if one is not None and one.suspected}
    least = sorted(suspects.values(), key=lambda one: (one.trust, one.record_id))[:MOST_RECORDS]
    disagreeing = {
        one.record_id: [near.record_id for near in one.neighbours if near.disagrees]
        for one in least
    }
    changes = token_changes(reader, texts, disagreeing)
    for row in rows:
        name = row["record_id"]
        others, evidence = groups.get(row["near_duplicates"], ()), suspects.get(name)
        tokens = {one.record_id: one.as_json() for one in changes.get(name, ())}
        row["near_duplicates"] = [record for record in others if record != name]
        row["text"] = text_of(texts, name)
        row["unscorable"] = unscorable.get(name)
        row["suspected"] = evidence and [
            {
                **asdict(near),
                "disagrees": near.disagrees,
                "text": text_of(texts, near.record_id),
                "tokens": tokens.get(near.record_id),
            }
            for near in evidence.neighbours
        ]
    return "".join(f"{json_text(row)}\n" for row in rows)
