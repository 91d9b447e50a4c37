"""The columns of a frame of records, and the identity of records and sets of records."""

from collections.abc import Collection, Sequence

import polars as pl

from delift_pipeline.core.hashing import digest_json, digest_text

TEXT_FIELDS = ("instruction", "input", "output")

RECORD_SCHEMA = pl.Schema(
    {
        "record_id": pl.String(),  # BLAKE2b-128 of canonical prompt and answer, in hex
        "instruction": pl.String(),
        "input": pl.String(),  # may be empty
        "output": pl.String(),
        "source": pl.String(),
        "task": pl.String(),
        "copies": pl.UInt32(),  # how many identical records were folded into this one, at least 1
        "source_ids": pl.List(pl.String()),  # the file's own ids of all copies
    }
)


def record_id(instruction: str, input: str, output: str) -> str:
    """Return the identity of a record: 32 hexadecimal characters, BLAKE2b-128.

    The canonical form is the exact UTF-8 text of the three fields, each preceded by its length in
    bytes. Nothing is trimmed or normalised: every difference that reaches the tokens the model
    scores is a different record, so one id always stands for the same scores.
    """
    return digest_text(instruction, input, output)


def display_ids(frame: pl.DataFrame, records: Sequence[str]) -> list[str]:
    """Return the ids by which users know records: the source id of each one's first copy.

    A record that has no source id, or is not in the frame, keeps its record id.
    """
    if "source_ids" not in frame.columns:
        return list(records)
    named = frame.filter(pl.col("record_id").is_in(records))
    known = dict(zip(named["record_id"], named["source_ids"].list.first(), strict=True))
    return [known.get(record) or record for record in records]


def content_hash(frame: pl.DataFrame, derived: Collection[str] = ()) -> str:
    """Return the identity of a set of records: 32 hexadecimal characters.

    It depends on the records, their sources, tasks and source ids, but not on their order or the
    number of copies. `derived` columns (`source`, `source_ids`) do not count, because they only
    repeat the file's name.
    """
    blank: dict[str, object] = {"source": "", "source_ids": []}
    columns = frame.select("record_id", "source", "task", "source_ids").to_dict(as_series=False)
    columns |= {name: [blank[name]] * frame.height for name in derived}
    named = (sorted(set(names)) for names in columns["source_ids"])
    rows = zip(columns["record_id"], columns["source"], columns["task"], named, strict=True)
    return digest_json(sorted(rows))
