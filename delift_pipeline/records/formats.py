"""What a file format consists of, and the numbered rows that its reader returns.

A row that cannot be parsed is kept with the reason, so one reading finds every fault of a file.
After a `fatal` fault the rest of the file cannot be read.
"""

import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from delift_pipeline.core.errors import Fault

BYTE_ORDER_MARK = "\ufeff"
"""The byte-order mark after decoding."""
NOT_UTF8 = "not valid UTF-8"
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_BLANK_START = re.compile(rb"(?:[ \t\r\n]|\xef\xbb\xbf)*")
_JSON_NAMES = {
    dict: "object", list: "list", str: "text", bool: "true/false", type(None): "null",
    int: "number", float: "number",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file.

    Attributes:
        number: The number of the row, from 1. Blank lines do not count.
        line: The line of the file on which the row starts; without lines, its number.
        value: The row's object, or None if it cannot be read.
        reason: Why it cannot be read.
        raw: The text of the line without its line ending (JSON Lines only).
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
        rows: All rows, also those that cannot be read.
        fatal: Faults after which the rest of the file cannot be read.
        schema: The column types (Parquet and Arrow only).
        notes: What the user should know about how the file was read.
    """

    rows: list[Row]
    fatal: list[Fault] = field(default_factory=list)
    schema: pl.Schema | None = None
    notes: tuple[str, ...] = ()


Reader = Callable[[bytes, str, Collection[str]], Table]
"""Takes a file's bytes, its name (for faults) and the columns that records may have."""
Writer = Callable[[list[dict[str, Any]], pl.Schema | None], bytes]
"""Takes rows and their column types (None, unless they come from a columnar file)."""


@dataclass(frozen=True)
class Format:
    """A file format. `tables.FORMATS` lists all of them.

    Attributes:
        suffixes: The suffixes of its files.
        starts: First bytes that identify the format; empty for a text format.
        read: Parses bytes into rows. A text format gets UTF-8, or bytes in an unknown encoding.
        write: Writes rows as bytes; equal rows give equal bytes.
    """

    name: str
    suffixes: tuple[str, ...]
    starts: tuple[bytes, ...]
    read: Reader
    write: Writer


def text_start(data: bytes) -> int:
    """Return the position of the first byte after white space and byte-order marks."""
    blank = _BLANK_START.match(data)
    return blank.end() if blank else 0


def type_name(value: Any) -> str:
    """Return the name of a value's type in the words of JSON."""
    return _JSON_NAMES.get(type(value), type(value).__name__)


def is_encodable(text: str) -> bool:
    """Whether a text can be encoded as UTF-8, that is, has no lone surrogates."""
    return _SURROGATE.search(text) is None


def decode_leniently(data: bytes) -> tuple[str, bool]:
    """Decode UTF-8 and say whether it is valid. Invalid bytes become lone surrogates."""
    try:
        return data.decode("utf-8"), True
    except UnicodeDecodeError:
        return data.decode("utf-8", "surrogateescape"), False


def check_row(row: Row) -> Row:
    """Return the row; if some of its bytes are not UTF-8, an unreadable row with the reason."""
    if _ESCAPED_BYTE.search(json.dumps(row.value, ensure_ascii=False, default=str)):
        return Row(row.number, row.line, None, f"{NOT_UTF8}: save the file as UTF-8")
    return row
