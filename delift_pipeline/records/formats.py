"""From a file's bytes to numbered rows, before anything is known about their shape.

A row that cannot be parsed stays in its place with the reason, so that every fault of a file is
found in one reading. `fatal` faults leave no way to go on behind them.
"""

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import polars as pl

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.records.compression import CODECS, FORMATS, kind_of, read_bytes

_BOM = b"\xef\xbb\xbf"
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
_BLANK = re.compile(r"[ \t\r\n]*")
_LONGEST_CELL = 2**31 - 1
NOT_UTF8 = "not valid UTF-8"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file.

    Attributes:
        number: Its place among the rows, from 1; blank lines are no rows.
        line: The physical line it starts on (JSON Lines, CSV), else its number.
        value: The row's object, or None where it cannot be read.
        reason: Why it cannot be read.
        raw: The line's text without its ending (JSON Lines only).
    """

    number: int
    line: int
    value: dict[str, Any] | None
    reason: str = ""
    raw: str | None = None


@dataclass(frozen=True)
class Table:
    """A file's rows in order.

    Attributes:
        rows: Good and bad ones.
        fatal: Faults of the file as a whole; what lies behind them is unread.
        schema: The column types (Parquet only).
    """

    rows: list[Row]
    fatal: list[Fault] = field(default_factory=list)
    schema: pl.Schema | None = None


def read_table(path: Path) -> Table:
    """Read the rows of a file by the format its name tells.

    Raises:
        Refused: the format is not known, or the file cannot be read at all.
    """
    kind = kind_of(path)
    if kind.format is None:
        known = ", ".join(FORMATS)
        raise Refused(
            Fault(f"unknown format: name it {known}, each plain or {', '.join(CODECS)}", str(path))
        )
    data = read_bytes(path, kind.codec).removeprefix(_BOM)
    readers = {"jsonl": _json_lines, "json": _json_array, "csv": _csv, "parquet": _parquet}
    return readers[kind.format](data, str(path))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _json_fault(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"invalid JSON: {error.msg} (column {error.colno})"
    if isinstance(error, RecursionError):
        return "invalid JSON: nested too deeply"
    return f"invalid JSON: {error}"


def _json_row(number: int, line: int, value: Any, raw: str | None = None) -> Row:
    if isinstance(value, dict):
        return Row(number, line, value, raw=raw)
    return Row(number, line, None, f"not an object but a JSON {type_name(value)}")


def type_name(value: Any) -> str:
    """The name a JSON reader would give the value's type."""
    names = {dict: "object", list: "list", str: "text", bool: "true/false", type(None): "null"}
    number = {int: "number", float: "number"}
    return (names | number).get(type(value), type(value).__name__)


def encodable(text: str) -> bool:
    """Whether the text is free of lone surrogates, which UTF-8 cannot hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _json_lines(data: bytes, file: str) -> Table:
    rows: list[Row] = []
    for line, encoded in enumerate(data.split(b"\n"), start=1):
        if encoded.strip():
            rows.append(_json_line(len(rows) + 1, line, encoded.removesuffix(b"\r")))
    return Table(rows)


def _json_line(number: int, line: int, encoded: bytes) -> Row:
    try:
        text = encoded.decode("utf-8")
        return _json_row(number, line, _DECODER.decode(text), text)
    except UnicodeDecodeError as error:
        return Row(number, line, None, f"{NOT_UTF8} (byte {error.start + 1} of the line)")
    except (ValueError, RecursionError) as error:
        return Row(number, line, None, _json_fault(error))


def _lenient_text(data: bytes) -> tuple[str, bool]:
    """The text, and whether it is valid; bytes that are not UTF-8 become lone surrogates."""
    try:
        return data.decode("utf-8"), True
    except UnicodeDecodeError:
        return data.decode("utf-8", "surrogateescape"), False


def _marked(row: Row) -> Row:
    """The row, or the fault that bytes in it are not UTF-8."""
    if _ESCAPED_BYTE.search(json.dumps(row.value, ensure_ascii=False, default=str)):
        return Row(row.number, row.line, None, NOT_UTF8)
    return row


def _json_array(data: bytes, file: str) -> Table:
    text, valid = _lenient_text(data)
    rows: list[Row] = []
    try:
        for number, value in enumerate(_elements(text), start=1):
            row = _json_row(number, number, value)
            rows.append(row if valid else _marked(row))
    except (ValueError, RecursionError) as error:
        return Table(rows, [Fault(_json_fault(error), file, len(rows) + 1)])
    return Table(rows)


def _elements(text: str) -> Iterator[Any]:
    """The elements of a JSON array one by one, so that a fault has a position."""
    at = _skip(text, 0)
    if not text.startswith("[", at):
        raise ValueError("expected an array; name JSON Lines files .jsonl")
    at = _skip(text, at + 1)
    more = not text.startswith("]", at)
    while more:
        value, at = _DECODER.raw_decode(text, at)
        yield value
        at = _skip(text, at)
        more = text.startswith(",", at)
        if not more and not text.startswith("]", at):
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
        at = _skip(text, at + 1) if more else at
    if _skip(text, at + 1) < len(text):
        raise json.JSONDecodeError("Extra data", text, at + 1)


def _skip(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    return found.end() if found else at


def _csv(data: bytes, file: str) -> Table:
    text, valid = _lenient_text(data)
    csv.field_size_limit(_LONGEST_CELL)
    # Only "\n" ends a physical line here: universal newlines would count a "\r" inside a cell.
    reader = csv.reader(io.StringIO(text, newline="\n"), strict=True)
    numbered = _csv_rows(reader)
    _, header, reason = next(numbered, (1, [], ""))
    if problem := reason or _header_fault(header):
        return Table([], [Fault(problem, file, 1)])
    rows: list[Row] = []
    for line, cells, reason in numbered:
        row = _csv_row(len(rows) + 1, line, header, cells, reason)
        rows.append(row if valid else _marked(row))
    return Table(rows)


def _csv_rows(reader: Any) -> Iterator[tuple[int, list[str], str]]:
    """(physical line a row starts on, its cells, why it cannot be read), blank lines left out."""
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, [], f"invalid CSV: {error}"
            continue
        if cells:
            yield line, cells, ""


def _header_fault(header: list[str]) -> str:
    if not header:
        return "no header row"
    twice = sorted({name for name in header if header.count(name) > 1})
    return f"columns named twice: {', '.join(map(repr, twice))}" if twice else ""


def _csv_row(number: int, line: int, header: list[str], cells: list[str], reason: str) -> Row:
    if not reason and len(cells) != len(header):
        reason = f"{len(cells)} cells where the header has {len(header)}"
    value = None if reason else dict(zip(header, cells, strict=True))
    return Row(number, line, value, reason)


def _parquet(data: bytes, file: str) -> Table:
    try:
        frame = pl.read_parquet(io.BytesIO(data))
    except (pl.exceptions.PolarsError, OSError) as error:
        first = str(error).splitlines()[0]
        return Table([], [Fault(f"cannot be read as Parquet: {first}", file)])
    rows = [Row(n, n, value) for n, value in enumerate(frame.iter_rows(named=True), start=1)]
    return Table(rows, schema=frame.schema)
