"""The typed frame of records that every part reads."""

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
    """The identity of a record: 32 hexadecimal characters, BLAKE2b-128.

    The canonical form is the exact UTF-8 text of the three fields, each preceded by its length in
    bytes. Nothing is trimmed or normalised: every difference that reaches the tokens the model
    scores is a different record, so one id always stands for the same scores.
    """
    return digest_text(instruction, input, output)


def display_ids(frame: pl.DataFrame, records: Sequence[str]) -> list[str]:
    """What the user calls records: the file's own id of each one's first copy.

    One that has none, or is not in the frame, is named by its record_id.
    """
    if "source_ids" not in frame.columns:
        return list(records)
    named = frame.filter(pl.col("record_id").is_in(records))
    known = dict(zip(named["record_id"], named["source_ids"].list.first(), strict=True))
    return [known.get(record) or record for record in records]


def content_hash(frame: pl.DataFrame, derived: Collection[str] = ()) -> str:
    """The identity of a set of records: 32 hexadecimal characters.

    It covers which records there are and what the file says of each (source, task, source ids),
    and neither their order nor their copies: a file that repeats or reorders another hashes like
    it.

    Those of `source` and `source_ids` that are `derived` only repeat the file's name, and so say
    nothing about the records.
    """
    blank: dict[str, object] = {"source": "", "source_ids": []}
    columns = frame.select("record_id", "source", "task", "source_ids").to_dict(as_series=False)
    columns |= {name: [blank[name]] * frame.height for name in derived}
    named = (sorted(set(names)) for names in columns["source_ids"])
    rows = zip(columns["record_id"], columns["source"], columns["task"], named, strict=True)
    return digest_json(sorted(rows))
