"""The typed frame of records that every part reads."""

import polars as pl

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
