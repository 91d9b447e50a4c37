"""Chosen records back into a file, as they came."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from delift_pipeline.errors import DeliftError
from delift_pipeline.records.compression import compress, kind_of
from delift_pipeline.records.formats import encodable
from delift_pipeline.records.read import RecordsFile
from delift_pipeline.storage.atomic import replacing


def write_chosen(path: Path, file: RecordsFile, record_ids: Sequence[str]) -> None:
    """Write the original rows of `record_ids`, unchanged, in that order.

    The format follows the suffix of `path`, JSON Lines where it says nothing; `.gz` and `.zst`
    compress. From JSON Lines to JSON Lines the lines' own text is kept. Equal input gives equal
    bytes.

    Raises:
        DeliftError: an id is not in the file, or the rows do not fit the format.
    """
    places = {record: at for at, record in enumerate(file.frame["record_id"])}
    if lost := [record for record in record_ids if record not in places]:
        raise DeliftError(f"{len(lost)} chosen records are not in the file, the first {lost[0]}")
    chosen = [places[record] for record in record_ids]
    kind = kind_of(Path(path))
    writers = {"json": _json_array, "csv": _csv, "parquet": _parquet}
    data = writers.get(kind.format or "jsonl", _json_lines)(file, chosen)
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(compress(data, kind.codec))


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    # Half of a surrogate pair in a column that no record uses exists only as a JSON escape.
    return text if encodable(text) else json.dumps(value, default=str)


def _json_lines(file: RecordsFile, chosen: list[int]) -> bytes:
    lines = file.raw
    texts = [_json(file.rows[at]) if lines is None else lines[at] for at in chosen]
    return "".join(f"{text}\n" for text in texts).encode("utf-8")


def _json_array(file: RecordsFile, chosen: list[int]) -> bytes:
    body = ",\n".join(_json(file.rows[at]) for at in chosen)
    return f"[\n{body}\n]\n".encode()


def _csv(file: RecordsFile, chosen: list[int]) -> bytes:
    rows = [file.rows[at] for at in chosen]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO(newline="")
    # The default line ending, "\r\n", also makes the writer quote cells with a lone "\r".
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
    return text.getvalue().encode("utf-8")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else _json(value)


def _parquet(file: RecordsFile, chosen: list[int]) -> bytes:
    rows = [file.rows[at] for at in chosen]
    try:
        frame = pl.DataFrame(rows, schema=file.schema, infer_schema_length=None)
    except (pl.exceptions.PolarsError, TypeError, ValueError) as error:
        raise DeliftError(
            f"a column holds values of several types, which Parquet cannot: write JSON Lines "
            f"({error})"
        ) from error
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd")
    return buffer.getvalue()
