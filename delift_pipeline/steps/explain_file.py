"""Why a record of a file was chosen or not, from the reasons that `delift select --why` wrote."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.records.stored import find_record
from delift_pipeline.selection.trust import SUSPECTED_BELOW
from delift_pipeline.steps.explain import Explanation

KEYS = {"record_id", "source_id", "text", "trust", "near_duplicates", "suspected"}
FORM = "is no line of reasons: write the file anew with delift select --why FILE"


def explain_file(path: Path, record: str) -> Explanation:
    """Explain one record of a file of reasons.

    Args:
        path: What `delift select --why` wrote.
        record: A record_id, the beginning of one, or the file's own id.

    Raises:
        Refused: the file cannot be read or holds something else, or not one record is meant.
    """
    rows = _read(path)
    known = {one["record_id"]: one for one in rows}
    ids = pl.DataFrame(
        {"record_id": list(known), "source_ids": [[one["source_id"]] for one in known.values()]}
    )
    row = known[find_record(ids, record, "no record of the file")]

    def shown(other: str) -> dict[str, str]:
        found = known.get(other, {"source_id": other, "text": other})
        return {"record_id": other, "source_id": found["source_id"], "text": found["text"]}

    by = row.get("covered_by")
    return Explanation(
        version=str(path),
        arm="delift select",
        record_id=row["record_id"],
        record={"text": row["text"], "source_ids": [row["source_id"]]},
        selected="rank" in row,
        covers=[shown(other) for other in row.get("covers") or ()],
        covered_by=None if by is None else shown(by),
        near_duplicates=[shown(other) for other in row["near_duplicates"]],
        evidence=_evidence(row, shown),
        unscorable=row.get("unscorable"),
        tokens=[
            {**one["tokens"], "source_id": shown(one["record_id"])["source_id"]}
            for one in row["suspected"] or ()
            if one.get("tokens")
        ],
        rank=row.get("rank"),
        gain=row.get("gain"),
        self_share=row.get("self_share"),
        coverage=row.get("coverage"),
        replayed=bool(row.get("replayed")),
    )


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        # Not splitlines(), which also ends a line at characters that a text may hold.
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(Fault(f"cannot be read: {error}", file=str(path))) from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise Refused(Fault(FORM, file=str(path), line=number)) from error
        if not isinstance(row, dict) or set(row) < KEYS:
            raise Refused(Fault(FORM, file=str(path), line=number))
        rows.append(row)
    return rows


def _evidence(
    row: Mapping[str, Any], shown: Callable[[str], dict[str, str]]
) -> dict[str, Any] | None:
    """Trust and, of a suspected record, who disagrees; None where it is not known."""
    if row["trust"] is None:
        return None
    return {
        "trust": row["trust"],
        "suspected": row["trust"] < SUSPECTED_BELOW,
        "neighbours": [
            {
                **shown(one["record_id"]),
                **one,
                "disagrees": (one["helps"] or 0.0) + (one["helped"] or 0.0) < 0,
            }
            for one in row["suspected"] or ()
        ],
    }
