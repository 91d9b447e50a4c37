"""Rows of Parquet and Arrow files."""

import io
from collections.abc import Callable
from typing import Any

import polars as pl

from delift_pipeline.core.errors import DeliftError, Fault
from delift_pipeline.records.formats import Format, Row, Table

_ARROW_FILE, _ARROW_STREAM = b"ARROW1", b"\xff\xff\xff\xff"


def _table(read: Callable[[io.BytesIO], pl.DataFrame], data: bytes, name: str, file: str) -> Table:
    try:
        frame = read(io.BytesIO(data))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        first = str(error).splitlines()[0]
        return Table([], [Fault(f"cannot be read as {name}: {first}", file)])
    rows = [Row(n, n, value) for n, value in enumerate(frame.iter_rows(named=True), start=1)]
    return Table(rows, schema=frame.schema)


def _frame(rows: list[dict[str, Any]], schema: pl.Schema | None) -> pl.DataFrame:
    try:
        return pl.DataFrame(rows, schema=schema, infer_schema_length=None)
    except (pl.exceptions.PolarsError, TypeError, ValueError) as error:
        raise DeliftError(
            f"a column holds values of several types, which Parquet and Arrow cannot: write JSON "
            f"Lines ({error})"
        ) from error


def _parquet_bytes(rows: list[dict[str, Any]], schema: pl.Schema | None) -> bytes:
    buffer = io.BytesIO()
    _frame(rows, schema).write_parquet(buffer, compression="zstd")
    return buffer.getvalue()


def _arrow_table(data: bytes, file: str) -> Table:
    read = pl.read_ipc if data.startswith(_ARROW_FILE) else pl.read_ipc_stream
    return _table(read, data, "Arrow", file)


PARQUET = Format(
    name="parquet",
    suffixes=(".parquet",),
    starts=(b"PAR1",),
    read=lambda data, file, _: _table(pl.read_parquet, data, "Parquet", file),
    write=_parquet_bytes,
)
ARROW = Format(
    name="arrow",
    suffixes=(".arrow",),
    starts=(_ARROW_FILE, _ARROW_STREAM),
    read=lambda data, file, _: _arrow_table(data, file),
    write=lambda rows, schema: _frame(rows, schema).write_ipc(None).getvalue(),
)
