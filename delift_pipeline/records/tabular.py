"""Read and write tables: Parquet, Arrow, and CSV with any separator, in UTF-8 or Windows-1252."""

import csv
import io
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from typing import Any

import polars as pl

from delift_pipeline.core.errors import DeliftError, Fault
from delift_pipeline.core.output import json_text, json_value
from delift_pipeline.records.formats import (
    BYTE_ORDER_MARK,
    Format,
    Row,
    Table,
    check_row,
    decode_leniently,
)

SEPARATORS = (",", ";", "\t", "|")
WINDOWS_ENCODING = "Windows-1252"
_SEPARATOR_LINE = re.compile(r'"?sep=([^"\r\n])"?\r?\n', re.IGNORECASE)
_VALID_LETTER = re.compile("[^\x00-\x7f\udc80-\udcff]")
_ASCII = bytes(range(128))
_MOST_LETTERS = 0.15
"""The largest share of accented letters in Western text; other scripts have a larger share."""
_LONGEST_CELL = 2**31 - 1


def read_csv_rows(data: bytes, file: str, columns: Collection[str]) -> Table:
    """Read the rows of a CSV table, whose first line is the header.

    A line `sep=X` before the header gives the separator. Otherwise it is the one with which the
    header has most of `columns`. Repeated headers, as in concatenated files, are left out. Text is
    read as UTF-8, or as Windows-1252 if it is not UTF-8 and looks like Western text.
    """
    text, valid, notes = _decode(data, file)
    stated = _SEPARATOR_LINE.match(text)
    separator = stated[1] if stated else best_header(text, columns)[0]
    csv.field_size_limit(_LONGEST_CELL)
    numbered = _parse_rows(text[stated.end() if stated else 0 :], separator, bool(stated))
    first, header, reason = next(numbered, (1, [], ""))
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        reason = f"Several columns have the same name: {', '.join(map(repr, twice))}. Rename them."
    if reason or not header:
        reason = reason or "The file has no header row. Add one."
        return Table([], [Fault(reason, file, first)])
    rows: list[Row] = []
    for line, cells, reason in numbered:
        if cells and [cells[0].strip(f'{BYTE_ORDER_MARK}"'), *cells[1:]] == header:
            continue
        if not reason and len(cells) != len(header):
            reason = f"{len(cells)} cells where the header has {len(header)}"
        value = None if reason else dict(zip(header, cells, strict=True))
        row = Row(len(rows) + 1, line, value, reason)
        rows.append(row if valid else check_row(row))
    return Table(rows, notes=notes)


def best_header(text: str, columns: Collection[str]) -> tuple[str, list[str]]:
    """Return the separator that finds most of `columns` (then, most cells) in a header, and it."""

    def header_rank(separator: str) -> tuple[int, int]:
        return len(set(columns).intersection(headers[separator])), len(headers[separator])

    headers = {separator: list[str]() for separator in SEPARATORS}
    for separator in SEPARATORS:
        with suppress(csv.Error):  # a row that this separator cannot split has no cells
            headers[separator] = next(_reader(text, separator), [])
    best = max(SEPARATORS, key=header_rank)
    return best, headers[best]


def _reader(text: str, separator: str) -> Any:
    # Only "\n" ends a line here: universal newlines would also count a "\r" inside a cell.
    return csv.reader(io.StringIO(text, newline="\n"), delimiter=separator, strict=True)


def _decode(data: bytes, file: str) -> tuple[str, bool, tuple[str, ...]]:
    """Decode a file. Return its text, whether all of it is valid, and notes on the encoding."""
    text, valid = decode_leniently(data)
    letters = len(data.translate(None, _ASCII))
    if not valid and not _VALID_LETTER.search(text) and letters <= _MOST_LETTERS * len(data):
        try:
            windows = data.decode("cp1252")
        except UnicodeDecodeError:
            return text, False, ()
        position = next(index for index, byte in enumerate(data) if byte > 127)
        line = data.count(b"\n", 0, position) + 1
        note = (
            f"{file} is not UTF-8 and is read as {WINDOWS_ENCODING} (line {line} has the letter "
            f"{windows[position]!r}); save it as UTF-8 if letters come out wrong"
        )
        return windows, True, (note,)
    return text.lstrip(BYTE_ORDER_MARK), valid, ()


def _parse_rows(text: str, separator: str, shifted: bool) -> Iterator[tuple[int, list[str], str]]:
    """Yield (line on which a row starts, its cells, why it cannot be read), without blank lines."""
    reader = _reader(text, separator)
    while True:
        line = reader.line_num + 1 + shifted
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, [], f"invalid CSV: {error}"
            continue
        if cells:
            yield line, cells, ""


def csv_cell(value: Any) -> str:
    """Return a value as the text of a cell: empty for None, and JSON for other types than text."""
    value = json_value(value)
    if value is None:
        return ""
    return value if isinstance(value, str) else json_text(value)


def _csv_format(suffix: str, separator: str) -> Format:
    def write(rows: list[dict[str, Any]], _: pl.Schema | None) -> bytes:
        """Write a header and the rows; values of other types than text become JSON."""
        columns = list(dict.fromkeys(column for row in rows for column in row))
        text = io.StringIO(newline="")
        # The default line ending, "\r\n", also makes the writer quote cells with a lone "\r".
        writer = csv.writer(text, delimiter=separator)
        writer.writerow(columns)
        writer.writerows([csv_cell(row.get(column)) for column in columns] for row in rows)
        return text.getvalue().encode("utf-8")

    return Format(suffix[1:], (suffix,), (), read_csv_rows, write)


CSV, TSV = _csv_format(".csv", ","), _csv_format(".tsv", "\t")


def _columnar_format(
    name: str,
    starts: tuple[bytes, ...],
    read: Callable[[bytes], pl.DataFrame],
    write: Callable[[pl.DataFrame, io.BytesIO], object],
) -> Format:
    def table(data: bytes, file: str, _: Collection[str]) -> Table:
        try:
            frame = read(data)
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
            first = str(error).splitlines()[0]
            return Table([], [Fault(f"cannot be read as {name}: {first}", file)])
        rows = [Row(n, n, value) for n, value in enumerate(frame.iter_rows(named=True), start=1)]
        return Table(rows, schema=frame.schema)

    def data(rows: list[dict[str, Any]], schema: pl.Schema | None) -> bytes:
        buffer = io.BytesIO()
        try:
            write(pl.DataFrame(rows, schema=schema, infer_schema_length=None), buffer)
        except (pl.exceptions.PolarsError, TypeError, ValueError) as error:
            raise DeliftError(
                "A column has values of several types, which Parquet and Arrow cannot hold. "
                f"Write JSON Lines instead ({error})"
            ) from error
        return buffer.getvalue()

    return Format(name.lower(), (f".{name.lower()}",), starts, table, data)


def _read_arrow(data: bytes) -> pl.DataFrame:
    read = pl.read_ipc if data.startswith(_ARROW_FILE) else pl.read_ipc_stream
    return read(io.BytesIO(data))


_ARROW_FILE, _ARROW_STREAM = b"ARROW1", b"\xff\xff\xff\xff"
PARQUET = _columnar_format(
    "Parquet",
    (b"PAR1",),
    lambda data: pl.read_parquet(io.BytesIO(data)),
    lambda frame, buffer: frame.write_parquet(buffer, compression="zstd"),
)
ARROW = _columnar_format("Arrow", (_ARROW_FILE, _ARROW_STREAM), _read_arrow, pl.DataFrame.write_ipc)
