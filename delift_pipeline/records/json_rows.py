"""Read rows from JSON Lines, arrays, consecutive objects, or an object that holds one list."""

import json
import re
from collections import Counter
from collections.abc import Collection, Generator, Iterator
from itertools import accumulate, pairwise
from typing import Any

import polars as pl

from delift_pipeline.core.errors import Fault
from delift_pipeline.core.output import json_text
from delift_pipeline.records import formats
from delift_pipeline.records.formats import BYTE_ORDER_MARK, Format, Row, Table

_BLANK = re.compile(rf"[ \t\r\n{BYTE_ORDER_MARK}]*")
_ARRAY_OR_LONE_BRACE = re.compile(r"\[|\{\s*?$", re.MULTILINE)
_NEXT_OBJECT = re.compile(r"^\{", re.MULTILINE)
_BYTE_ORDER_MARKS = re.compile(b"^(?:%s)+" % BYTE_ORDER_MARK.encode())
_CONVERT = "convert the file, for example with `iconv -f WINDOWS-1252 -t UTF-8`"

ParsedValue = tuple[int, Any, str]
"""The position of a value in the text, the value, and what is wrong with it (may be empty)."""


class _Decoder(json.JSONDecoder):
    """Decodes JSON. `problem` says what is wrong with the last value although Python accepts it."""

    def __init__(self) -> None:
        self.problem = ""
        super().__init__(parse_constant=self._constant, object_pairs_hook=self._object)

    def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
        self.problem = ""
        return super().raw_decode(s, idx)

    def _constant(self, name: str) -> None:
        self.problem = f"invalid JSON: {name} is not a JSON value"

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            ((repeated, _),) = Counter(key for key, _ in pairs).most_common(1)
            self.problem = f"the key {repeated!r} occurs twice in one object: keep one of them"
        return value


def read_json_rows(data: bytes, file: str, columns: Collection[str]) -> Table:
    """Read rows from JSON Lines, or from a text that starts with `{` or `[`.

    An object that has one of `columns` is a record and not an object around a list of records.
    """
    if not data.startswith((b"{", b"["), formats.text_start(data)):
        return _read_json_lines(data)
    if _is_json_lines(formats.decode_leniently(data)[0]):
        table = _read_json_lines(data)
        if len(table.rows) > 1 or not _record_lists(table.rows, columns):
            return table
    text, valid = formats.decode_leniently(data)
    decoder = _Decoder()
    table = _collect_rows(text, file, _parse_values(text, decoder))
    if lists := _record_lists(table.rows, columns):
        if len(lists) > 1:
            reason = (
                f"The file is one object with several lists of records ({', '.join(lists)}). Write "
                f"one of them to a separate file, for example with `jq .{lists[0]}`."
            )
            return Table([], [Fault(reason, file)])
        start = _value_start(text, lists[0], decoder)
        table = _collect_rows(text, file, _parse_elements(text, start, decoder))
    return table if valid else Table([formats.check_row(row) for row in table.rows], table.fatal)


def _read_json_lines(data: bytes) -> Table:
    """Read one row from each line that is not blank."""
    rows: list[Row] = []
    decoder = _Decoder()
    for line, encoded in enumerate(data.split(b"\n"), start=1):
        encoded = _BYTE_ORDER_MARKS.sub(b"", encoded)
        if not encoded.strip():
            continue
        value, text = None, None
        try:
            text = encoded.removesuffix(b"\r").decode("utf-8")
            value, problem = decoder.decode(text), decoder.problem
        except (ValueError, RecursionError) as error:
            problem = _reason(error, "column {0.colno}")
        rows.append(_row(len(rows) + 1, line, value, problem, text))
    return Table(rows)


def _row(number: int, line: int, value: Any, problem: str, raw: str | None = None) -> Row:
    if problem or not isinstance(value, dict):
        reason = problem or f"not an object but a JSON {formats.type_name(value)}"
        return Row(number, line, None, reason)
    return Row(number, line, value, raw=raw)


def _reason(error: Exception, place: str = "line {0.lineno}, column {0.colno}") -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"{formats.NOT_UTF8} (byte {error.start + 1} of the line): {_CONVERT}"
    if isinstance(error, json.JSONDecodeError):
        return f"invalid JSON: {error.msg} ({place.format(error)})"
    return f"invalid JSON: {'nested too deeply' if isinstance(error, RecursionError) else error}"


def _is_json_lines(text: str) -> bool:
    """Whether each line is a value of its own. The first value decides: does it end on its line?"""
    first = _skip_blank(text, 0)
    if _ARRAY_OR_LONE_BRACE.match(text, first):
        return False
    try:
        return "\n" not in text[first : _Decoder().raw_decode(text, first)[1]]
    except (ValueError, RecursionError):
        return True


def _collect_rows(text: str, file: str, parsed: Iterator[ParsedValue]) -> Table:
    """Return a table of rows with their lines; if rows share a line, numbers replace the lines."""
    values: list[ParsedValue] = []
    fatal: list[Fault] = []
    try:
        for place in parsed:
            values.append(place)
    except (ValueError, RecursionError) as error:
        line = len(values) + 1
        if isinstance(error, json.JSONDecodeError) and error.lineno > 1:
            line = error.lineno
        fatal.append(Fault(_reason(error), file, line))
    starts = [at for at, _, _ in values]
    ends = (text.count("\n", before, at) for before, at in pairwise([0, *starts]))
    lines = list(accumulate(ends, initial=1))[1:]
    if len(set(lines)) < len(lines):
        lines = range(1, len(values) + 1)
    numbered = enumerate(zip(lines, values, strict=True), start=1)
    return Table([_row(n, line, *place[1:]) for n, (line, place) in numbered], fatal)


def _parse_values(text: str, decoder: _Decoder) -> Iterator[ParsedValue]:
    """Yield the values of a text. After a broken one, continue at the next line with an object."""
    at = _skip_blank(text, 0)
    while at < len(text):
        if text[at] == "[":
            at = yield from _parse_elements(text, at, decoder)
        else:
            try:
                value, end = decoder.raw_decode(text, at)
                yield at, value, decoder.problem
            except (ValueError, RecursionError) as error:
                following = _NEXT_OBJECT.search(text, at + 1)
                end = following.start() if following else len(text)
                yield at, None, _reason(error)
            at = end
        at = _skip_blank(text, at)


def _parse_elements(text: str, at: int, decoder: _Decoder) -> Generator[ParsedValue, None, int]:
    """Yield the elements of the array at position `at`; return the position after the array."""
    at = _skip_blank(text, at + 1)
    more = not text.startswith("]", at)
    while more:
        value, end = decoder.raw_decode(text, at)
        yield at, value, decoder.problem
        at = _skip_blank(text, end)
        more = text.startswith(",", at)
        if not more and not text.startswith("]", at):
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
        at = _skip_blank(text, at + 1) if more else at
    return at + 1


def _skip_blank(text: str, at: int) -> int:
    blank = _BLANK.match(text, at)
    return blank.end() if blank else at


def _record_lists(rows: list[Row], columns: Collection[str]) -> list[str]:
    """Return the keys of a file's only object that hold lists of objects; none for a record."""
    value = rows[0].value if len(rows) == 1 else None
    if value is None or not value.keys().isdisjoint(columns):
        return []
    return [
        key
        for key, items in value.items()
        if isinstance(items, list) and items and all(isinstance(item, dict) for item in items)
    ]


def _value_start(text: str, key: str, decoder: _Decoder) -> int:
    """Return the position of a key's value in the text's only object."""
    at = _skip_blank(text, 0)
    while True:
        name, end = decoder.raw_decode(text, _skip_blank(text, at + 1))
        at = _skip_blank(text, _skip_blank(text, end) + 1)
        if name == key:
            return at
        at = _skip_blank(text, decoder.raw_decode(text, at)[1])


def _write_json(rows: list[dict[str, Any]], _: pl.Schema | None) -> bytes:
    body = ",\n".join(json_text(row) for row in rows)
    return f"[\n{body}\n]\n".encode()


def _write_json_lines(rows: list[dict[str, Any]], _: pl.Schema | None) -> bytes:
    return "".join(f"{json_text(row)}\n" for row in rows).encode("utf-8")


JSON_LINES = Format("jsonl", (".jsonl", ".ndjson"), (), read_json_rows, _write_json_lines)
JSON = Format("json", (".json",), (), read_json_rows, _write_json)
