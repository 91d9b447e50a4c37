"""A file's rows, in the format that its content shows; its name decides only where that is open."""

import codecs
import io
import re
from collections.abc import Callable, Collection
from pathlib import Path

import polars as pl

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.records.compression import CODECS, FORMATS, kind_of, read_bytes
from delift_pipeline.records.csv_rows import csv_table, header_of, separator_of
from delift_pipeline.records.formats import Row, Table, lenient_text
from delift_pipeline.records.json_rows import json_lines, json_table

_START = re.compile(rb"(?:[ \t\r\n]|\xef\xbb\xbf)*")
_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_OTHER_CONTENT = {
    b"PK\x03\x04": "a ZIP archive or an Excel workbook: unpack it, or save it as CSV",
    b"BZh": "compressed by bzip2: unpack it",
    b"\xfd7zXZ\x00": "compressed by xz: unpack it",
    b"SQLite format 3\x00": "an SQLite database: write its table to a CSV file",
    b"%PDF": "a PDF file: give the records as JSON Lines or CSV",
}
ARROW_FILE, ARROW_STREAM = b"ARROW1", b"\xff\xff\xff\xff"
_SURE = 2
"""How many known columns make the first line of a file without a known suffix a CSV header."""


def read_table(path: Path, columns: Collection[str] = ()) -> Table:
    """Read the rows of a file.

    Args:
        path: The file.
        columns: Columns that records may have; they tell CSV separators apart, and a record from
            an object around a list of records.

    Raises:
        Refused: the format is not known, or the file cannot be read at all.
    """
    data, file = read_bytes(path), str(path)
    for start, content in _OTHER_CONTENT.items():
        if data.startswith(start):
            raise Refused(Fault(f"the file is {content}", file))
    if data.startswith(b"PAR1"):
        return _columnar(lambda: pl.read_parquet(io.BytesIO(data)), "Parquet", file)
    if data.startswith(ARROW_FILE):
        return _columnar(lambda: pl.read_ipc(io.BytesIO(data)), "Arrow", file)
    if data.startswith(ARROW_STREAM):
        return _columnar(lambda: pl.read_ipc_stream(io.BytesIO(data)), "Arrow", file)
    return _text_table(_as_utf8(data, file), path, columns)


def _text_table(data: bytes, path: Path, columns: Collection[str]) -> Table:
    found, named = _START.match(data), kind_of(path).format
    start = found.end() if found else 0
    if data[start : start + 1] in (b"{", b"["):
        return json_table(data, str(path), columns)
    if named in ("json", "jsonl"):
        return json_lines(data)
    if named in ("csv", "tsv"):
        return csv_table(data, str(path), columns)
    first, _ = lenient_text(data[start:].split(b"\n", 1)[0])
    header = header_of(first.rstrip("\r"), separator_of(first, columns))
    if len(set(columns).intersection(header)) >= _SURE:
        return csv_table(data, str(path), columns)
    if named:
        raise Refused(
            Fault(f"is not {named.title()}: its first bytes are those of another format", str(path))
        )
    known = ", ".join(FORMATS)
    reason = f"unknown format: name it {known}, each plain or {', '.join(CODECS)}"
    raise Refused(Fault(reason, str(path)))


def _as_utf8(data: bytes, file: str) -> bytes:
    """The bytes in UTF-8; a byte-order mark or zero bytes tell UTF-16 and UTF-32."""
    encoding = next((name for mark, name in _ENCODINGS.items() if data.startswith(mark)), None)
    if encoding is None and data[:2].count(0) == 1:
        encoding = "UTF-16-BE" if data[0] == 0 else "UTF-16-LE"
    if encoding is None:
        return data
    try:
        return data.decode(encoding).encode("utf-8")
    except UnicodeError as error:
        reason = f"looks like {encoding} but cannot be decoded ({error}): save it as UTF-8"
        raise Refused(Fault(reason, file)) from error


def _columnar(read: Callable[[], pl.DataFrame], kind: str, file: str) -> Table:
    try:
        frame = read()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        first = str(error).splitlines()[0]
        return Table([], [Fault(f"cannot be read as {kind}: {first}", file)])
    rows = [Row(n, n, value) for n, value in enumerate(frame.iter_rows(named=True), start=1)]
    return Table(rows, schema=frame.schema)
