"""Chosen records back into a file, as they came."""

import csv
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from delift_pipeline.errors import DeliftError
from delift_pipeline.records.compression import compress, kind_of
from delift_pipeline.records.read import RecordsFile
from delift_pipeline.storage.json_text import json_text, plain
from delift_pipeline.storage.output import is_standard_output, write_output


def write_chosen(
    path: Path, file: RecordsFile, record_ids: Sequence[str], source: Path | None = None
) -> None:
    """Write the original rows of `record_ids`, unchanged, in that order.

    The format follows the suffix of `path`, JSON Lines where it says nothing; `.gz` and `.zst`
    compress. From JSON Lines to JSON Lines the lines' own text is kept. What Parquet holds and text
    formats do not is written as `json_text.plain` says; Parquet to Parquet keeps every type. Equal
    input gives equal bytes.

    Args:
        path: Where to write: a file, a pipe or device, or `-` for standard output.
        file: The records and their rows.
        record_ids: Which of them, in the order to write.
        source: The file they were read from. Standard output takes its format where that is text.

    Raises:
        DeliftError: an id is not in the file, or the rows do not fit the format.
    """
    places = {record: at for at, record in enumerate(file.frame["record_id"])}
    if lost := [record for record in record_ids if record not in places]:
        raise DeliftError(f"{len(lost)} chosen records are not in the file, the first {lost[0]}")
    chosen = [places[record] for record in record_ids]
    kind, form = kind_of(path), kind_of(path).format
    if form is None and source is not None and is_standard_output(path):
        form = kind_of(source).format
        form = None if form == "parquet" else form
    tabs = partial(_csv, separator="\t")
    writers = {"json": _json_array, "csv": _csv, "tsv": tabs, "parquet": _parquet, "arrow": _arrow}
    data = writers.get(form or "jsonl", _json_lines)(file, chosen)
    write_output(path, compress(data, kind.codec))


def _json_lines(file: RecordsFile, chosen: list[int]) -> bytes:
    lines = file.raw
    texts = [json_text(file.rows[at]) if lines is None else lines[at] for at in chosen]
    return "".join(f"{text}\n" for text in texts).encode("utf-8")


def _json_array(file: RecordsFile, chosen: list[int]) -> bytes:
    body = ",\n".join(json_text(file.rows[at]) for at in chosen)
    return f"[\n{body}\n]\n".encode()


def _csv(file: RecordsFile, chosen: list[int], separator: str = ",") -> bytes:
    rows = [file.rows[at] for at in chosen]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO(newline="")
    # The default line ending, "\r\n", also makes the writer quote cells with a lone "\r".
    writer = csv.writer(text, delimiter=separator)
    writer.writerow(columns)
    writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
    return text.getvalue().encode("utf-8")


def _cell(value: Any) -> str:
    value = plain(value)
    if value is None:
        return ""
    return value if isinstance(value, str) else json_text(value)


def _parquet(file: RecordsFile, chosen: list[int]) -> bytes:
    buffer = io.BytesIO()
    _frame(file, chosen).write_parquet(buffer, compression="zstd")
    return buffer.getvalue()


def _arrow(file: RecordsFile, chosen: list[int]) -> bytes:
    buffer = io.BytesIO()
    _frame(file, chosen).write_ipc(buffer)
    return buffer.getvalue()


def _frame(file: RecordsFile, chosen: list[int]) -> pl.DataFrame:
    rows = [file.rows[at] for at in chosen]
    try:
        return pl.DataFrame(rows, schema=file.schema, infer_schema_length=None)
    except (pl.exceptions.PolarsError, TypeError, ValueError) as error:
        raise DeliftError(
            f"a column holds values of several types, which Parquet and Arrow cannot: write JSON "
            f"Lines ({error})"
        ) from error
