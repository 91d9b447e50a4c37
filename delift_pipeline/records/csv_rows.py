"""Rows of CSV, whatever its separator; encodings that spreadsheets write are recognised."""

import csv
import io
import re
from collections.abc import Collection, Iterator
from typing import Any

from delift_pipeline.errors import Fault
from delift_pipeline.records.formats import MARK, Row, Table, checked_row, lenient_text

SEPARATORS = (",", ";", "\t", "|")
WINDOWS = "Windows-1252"
_SEPARATOR_LINE = re.compile(r'"?sep=([^"\r\n])"?\r?\n', re.IGNORECASE)
_VALID_LETTER = re.compile("[^\x00-\x7f\udc80-\udcff]")
_ASCII = bytes(range(128))
_MOST_LETTERS = 0.15
"""Western text has a smaller share of accented letters; other scripts have a larger one."""
_LONGEST_CELL = 2**31 - 1


def csv_table(data: bytes, file: str, columns: Collection[str]) -> Table:
    """Rows of a table whose first line names the columns.

    A first line `sep=X` names the separator; otherwise it is the one that finds most of `columns`
    in the header. Lines that repeat the header, as in files put together, are left out.

    Args:
        data: UTF-8, or Windows-1252 where no letter speaks against it.
        file: Named in faults and notes.
        columns: Columns that records may have.
    """
    text, valid, notes = _decoded(data, file)
    stated = _SEPARATOR_LINE.match(text)
    separator = stated[1] if stated else separator_of(text, columns)
    start = stated.end() if stated else 0
    csv.field_size_limit(_LONGEST_CELL)
    # Only "\n" ends a physical line here: universal newlines would count a "\r" inside a cell.
    lines = io.StringIO(text[start:], newline="\n")
    numbered = _numbered(csv.reader(lines, delimiter=separator, strict=True), bool(stated))
    first, header, reason = next(numbered, (1, [], ""))
    if problem := reason or _header_fault(header):
        return Table([], [Fault(problem, file, first)])
    rows: list[Row] = []
    for line, cells, reason in numbered:
        if cells and [cells[0].strip(f'{MARK}"'), *cells[1:]] == header:
            continue
        row = _row(len(rows) + 1, line, header, cells, reason)
        rows.append(row if valid else checked_row(row))
    return Table(rows, notes=notes)


def separator_of(text: str, columns: Collection[str]) -> str:
    """The separator that finds most of `columns` in the header, then the most cells."""

    def found(separator: str) -> tuple[int, int]:
        header = header_of(text, separator)
        return len(set(columns).intersection(header)), len(header)

    return max(SEPARATORS, key=found)


def header_of(text: str, separator: str) -> list[str]:
    """The cells of the first row; none where it cannot be read."""
    lines = io.StringIO(text, newline="\n")
    try:
        return next(csv.reader(lines, delimiter=separator, strict=True), [])
    except csv.Error:
        return []


def _decoded(data: bytes, file: str) -> tuple[str, bool, tuple[str, ...]]:
    """The text, whether all of it is valid, and a note where it is not UTF-8."""
    text, valid = lenient_text(data)
    letters = len(data.translate(None, _ASCII))
    if not valid and not _VALID_LETTER.search(text) and letters <= _MOST_LETTERS * len(data):
        try:
            windows = data.decode("cp1252")
        except UnicodeDecodeError:
            return text, False, ()
        at = next(place for place, byte in enumerate(data) if byte > 127)
        line = data.count(b"\n", 0, at) + 1
        note = (
            f"{file} is not UTF-8 and is read as {WINDOWS} (line {line} has the letter "
            f"{windows[at]!r}); save it as UTF-8 if letters come out wrong"
        )
        return windows, True, (note,)
    return text.lstrip(MARK), valid, ()


def _numbered(reader: Any, shifted: bool) -> Iterator[tuple[int, list[str], str]]:
    """(physical line a row starts on, its cells, why it cannot be read), blank lines left out."""
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


def _header_fault(header: list[str]) -> str:
    if not header:
        return "no header row"
    twice = sorted({name for name in header if header.count(name) > 1})
    return f"columns named twice: {', '.join(map(repr, twice))}" if twice else ""


def _row(number: int, line: int, header: list[str], cells: list[str], reason: str) -> Row:
    if not reason and len(cells) != len(header):
        reason = f"{len(cells)} cells where the header has {len(header)}"
    value = None if reason else dict(zip(header, cells, strict=True))
    return Row(number, line, value, reason)
