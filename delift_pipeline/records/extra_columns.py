"""Extra columns of a file (`--keep`), stored as text beside the records of a version.

Balance reports and quotas can use them. Prompts, scores and training never read them.
"""

from collections.abc import Mapping, Sequence

import polars as pl

from delift_pipeline.core.errors import Fault, InputError
from delift_pipeline.core.hashing import digest_frame
from delift_pipeline.core.home import Home
from delift_pipeline.records.read import RecordsFile
from delift_pipeline.records.schema import RECORD_SCHEMA

COLUMNS_FILE = "columns.parquet"
RESERVED = {*RECORD_SCHEMA.names(), "tokens"}


def file_columns(
    pool: pl.DataFrame, file: RecordsFile, names: Sequence[str], option: str
) -> dict[str, list[object]]:
    """Return the columns that an option names, with one value for each record of the pool.

    The first of identical rows gives the values.

    Raises:
        InputError: No row of the file has one of the columns.
    """
    known = list(dict.fromkeys(column for row in file.rows for column in row))
    if missing := [name for name in names if name not in known]:
        reason = f"no row of the file has this column. The columns are: {', '.join(known)}"
        raise InputError(*(Fault(reason, field=f"{option} {name}") for name in missing))
    row_of = {record: at for at, record in enumerate(file.frame["record_id"])}
    rows = [file.rows[row_of[record]] for record in pool["record_id"]]
    return {name: [row.get(name) for row in rows] for name in names}


def text_series(columns: Mapping[str, Sequence[object]]) -> list[pl.Series]:
    """Convert columns to text; missing values stay null."""
    return [
        pl.Series(name, [None if v is None else str(v) for v in values], pl.String)
        for name, values in columns.items()
    ]


def read_extra_columns(pool: pl.DataFrame, file: RecordsFile, names: Sequence[str]) -> pl.DataFrame:
    """Return `record_id` and the named columns, with one row for each record of the pool.

    Raises:
        InputError: A column is a field of every record, or no row of the file has it.
    """
    reason = "is always stored with a record: leave it out"
    if reserved := [name for name in names if name in RESERVED]:
        raise InputError(*(Fault(reason, field=f"--keep {name}") for name in reserved))
    columns = file_columns(pool, file, names, "--keep")
    return pool.select("record_id").with_columns(text_series(columns))


def extra_columns_hash(columns: pl.DataFrame) -> str:
    """Return a hash of extra columns that does not depend on the order of records."""
    return digest_frame(columns.select(sorted(columns.columns)).sort("record_id"))


def join_extra_columns(home: Home, version: str, pool: pl.DataFrame) -> pl.DataFrame:
    """Join a version's extra columns, if it has any, to its records."""
    path = home.dataset(version) / COLUMNS_FILE
    if not path.is_file():
        return pool
    return pool.join(pl.read_parquet(path), on="record_id", how="left", maintain_order="left")
