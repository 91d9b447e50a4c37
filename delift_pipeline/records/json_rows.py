"""Rows of JSON Lines, arrays, objects that follow each other, and an object around one list."""

import json
import re
from collections import Counter
from collections.abc import Collection, Generator, Iterator
from itertools import accumulate, pairwise
from typing import Any

import polars as pl

from delift_pipeline.core.errors import Fault
from delift_pipeline.core.output import json_text
from delift_pipeline.records.formats import (
    MARK,
    NOT_UTF8,
    Format,
    Row,
    Table,
    checked_row,
    lenient_text,
    text_start,
    type_name,
)

_BLANK = re.compile(rf"[ \t\r\n{MARK}]*")
_NEXT_OBJECT = re.compile(r"^\{", re.MULTILINE)
_MARK_BYTES = MARK.encode()
_CONVERT = "convert the file, for example with `iconv -f WINDOWS-1252 -t UTF-8`"

Place = tuple[int, Any, str]
"""Where a value starts in the text, the value, and what is wrong with it."""


class _Decoder:
    """Decodes JSON, and says what Python's decoder accepts or changes without a word."""

    def __init__(self) -> None:
        self._problem = ""
        self._json = json.JSONDecoder(parse_constant=self._constant, object_pairs_hook=self._object)

    def value(self, text: str, start: int = 0) -> tuple[Any, int, str]:
        """The value at `start`, where it ends, and what is wrong with it.

        Raises:
            ValueError: there is no JSON value.
            RecursionError: it is nested too deeply.
        """
        self._problem = ""
        value, end = self._json.raw_decode(text, start)
        return value, end, self._problem

    def only(self, text: str) -> tuple[Any, str]:
        """The one value of a text, and what is wrong with it."""
        self._problem = ""
        return self._json.decode(text), self._problem

    def _constant(self, name: str) -> None:
        self._problem = f"invalid JSON: {name} is not a JSON value"

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            ((repeated, _),) = Counter(key for key, _ in pairs).most_common(1)
            self._problem = f"the key {repeated!r} occurs twice in one object: keep one of them"
        return value


def json_table(data: bytes, file: str, columns: Collection[str]) -> Table:
    """Rows of JSON Lines, or of a text that starts with `{` or `[`.

    An object with one of the columns is a record, not an object around a list of records.
    """
    if not data.startswith((b"{", b"["), text_start(data)):
        return _json_lines(data)
    if _is_lines(data):
        table = _json_lines(data)
        if len(table.rows) > 1 or not _lists(table.rows, columns):
            return table
    text, valid = lenient_text(data)
    decoder = _Decoder()
    table = _placed(text, file, _values(text, decoder))
    if lists := _lists(table.rows, columns):
        if len(lists) > 1:
            reason = (
                f"the file is one object with several lists of records ({', '.join(lists)}): write "
                f"one of them to a file of its own, for example with `jq .{lists[0]}`"
            )
            return Table([], [Fault(reason, file)])
        start = _member(text, lists[0], decoder)
        table = _placed(text, file, _elements(text, start, decoder))
    return table if valid else Table([checked_row(row) for row in table.rows], table.fatal)


def _json_lines(data: bytes) -> Table:
    """One row for each line that is not blank."""
    rows: list[Row] = []
    decoder = _Decoder()
    for line, encoded in enumerate(data.split(b"\n"), start=1):
        while encoded.startswith(_MARK_BYTES):
            encoded = encoded.removeprefix(_MARK_BYTES)
        if not encoded.strip():
            continue
        value, text = None, None
        try:
            text = encoded.removesuffix(b"\r").decode("utf-8")
            value, problem = decoder.only(text)
        except UnicodeDecodeError as error:
            problem = f"{NOT_UTF8} (byte {error.start + 1} of the line): {_CONVERT}"
        except json.JSONDecodeError as error:
            problem = f"invalid JSON: {error.msg} (column {error.colno})"
        except (ValueError, RecursionError) as error:
            problem = _syntax_fault(error)
        rows.append(_row(len(rows) + 1, line, value, problem, text))
    return Table(rows)


def _row(number: int, line: int, value: Any, problem: str, raw: str | None = None) -> Row:
    if problem or not isinstance(value, dict):
        reason = problem or f"not an object but a JSON {type_name(value)}"
        return Row(number, line, None, reason)
    return Row(number, line, value, raw=raw)


def _syntax_fault(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"invalid JSON: {error.msg} (line {error.lineno}, column {error.colno})"
    if isinstance(error, RecursionError):
        return "invalid JSON: nested too deeply"
    return f"invalid JSON: {error}"


def _is_lines(data: bytes) -> bool:
    """Whether each line of the text is a value of its own, by the line of its first value."""
    start = text_start(data)
    if data.startswith(b"[", start):
        return False
    end = data.find(b"\n", start)
    line = lenient_text(data[start : None if end < 0 else end])[0].strip()
    decoder = _Decoder()
    try:
        decoder.only(line)
        return True
    except (ValueError, RecursionError):
        if line == "{":
            return False
    text, _ = lenient_text(data)
    first = _skip(text, 0)
    try:
        _, last, _ = decoder.value(text, first)
    except (ValueError, RecursionError):
        return True
    return "\n" not in text[first:last]


def _placed(text: str, file: str, values: Iterator[Place]) -> Table:
    """Rows with their lines; with their numbers where several start on one line."""
    found: list[Place] = []
    fatal: list[Fault] = []
    try:
        for place in values:
            found.append(place)
    except (ValueError, RecursionError) as error:
        line = len(found) + 1
        if isinstance(error, json.JSONDecodeError) and error.lineno > 1:
            line = error.lineno
        fatal.append(Fault(_syntax_fault(error), file, line))
    starts = [at for at, _, _ in found]
    ends = (text.count("\n", before, at) for before, at in pairwise([0, *starts]))
    lines = list(accumulate(ends, initial=1))[1:]
    if len(set(lines)) < len(lines):
        lines = range(1, len(found) + 1)
    numbered = enumerate(zip(lines, found, strict=True), start=1)
    return Table([_row(n, line, *place[1:]) for n, (line, place) in numbered], fatal)


def _values(text: str, decoder: _Decoder) -> Iterator[Place]:
    """The values of a text; the next line with an object follows one that is broken."""
    at = _skip(text, 0)
    while at < len(text):
        if text[at] == "[":
            at = yield from _elements(text, at, decoder)
        else:
            try:
                value, end, problem = decoder.value(text, at)
            except (ValueError, RecursionError) as error:
                found = _NEXT_OBJECT.search(text, at + 1)
                value, problem = None, _syntax_fault(error)
                end = found.start() if found else len(text)
            yield at, value, problem
            at = end
        at = _skip(text, at)


def _elements(text: str, at: int, decoder: _Decoder) -> Generator[Place, None, int]:
    """The elements of the array at a place one by one; returns where it ends."""
    at = _skip(text, at + 1)
    more = not text.startswith("]", at)
    while more:
        value, end, problem = decoder.value(text, at)
        yield at, value, problem
        at = _skip(text, end)
        more = text.startswith(",", at)
        if not more and not text.startswith("]", at):
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
        at = _skip(text, at + 1) if more else at
    return at + 1


def _skip(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    return found.end() if found else at


def _lists(rows: list[Row], columns: Collection[str]) -> list[str]:
    """The lists of objects in a file's only object, unless that is a record itself."""
    value = rows[0].value if len(rows) == 1 else None
    if value is None or not value.keys().isdisjoint(columns):
        return []
    return [
        key
        for key, items in value.items()
        if isinstance(items, list) and items and all(isinstance(item, dict) for item in items)
    ]


def _member(text: str, key: str, decoder: _Decoder) -> int:
    """Where the value of a key starts in the text's only object."""
    at, name = _skip(text, 0), None
    while True:
        name, end, _ = decoder.value(text, _skip(text, at + 1))
        at = _skip(text, _skip(text, end) + 1)
        if name == key:
            return at
        at = _skip(text, decoder.value(text, at)[1])


def _json_bytes(rows: list[dict[str, Any]], _: pl.Schema | None) -> bytes:
    body = ",\n".join(json_text(row) for row in rows)
    return f"[\n{body}\n]\n".encode()


def _line_bytes(rows: list[dict[str, Any]], _: pl.Schema | None) -> bytes:
    return "".join(f"{json_text(row)}\n" for row in rows).encode("utf-8")


JSON_LINES = Format("jsonl", (".jsonl", ".ndjson"), (), json_table, _line_bytes)
JSON = Format("json", (".json",), (), json_table, _json_bytes)
