"""What a file format has to offer, and the numbered rows that its reader gives.

A row that cannot be parsed stays in its place with the reason, so that every fault of a file is
found in one reading. After a `fatal` fault the rest of the file cannot be read.
"""

import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from delift_pipeline.core.errors import Fault

BYTE_ORDER_MARK = "\ufeff"
"""The byte-order mark, once it is decoded."""
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
        number: Its place among the rows, from 1; blank lines do not count.
        line: The physical line it starts on, else its number.
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
        fatal: Faults after which the rest of the file cannot be read.
        schema: The column types (Parquet and Arrow only).
        notes: What the user should know about how the file was read.
    """

    rows: list[Row]
    fatal: list[Fault] = field(default_factory=list)
    schema: pl.Schema | None = None
    notes: tuple[str, ...] = ()


Reader = Callable[[bytes, str, Collection[str]], Table]
"""Takes a file's bytes, its name for faults, and the columns that records may have."""
Writer = Callable[[list[dict[str, Any]], pl.Schema | None], bytes]
"""Takes rows and, where they come from a columnar file, their column types."""


@dataclass(frozen=True)
class Format:
    """A file format; `tables.FORMATS` lists those there are.

    Attributes:
        suffixes: How its files' names end.
        starts: First bytes that no other format has; none for a text format.
        read: Bytes to rows. A text format gets UTF-8, or bytes in an unknown encoding.
        write: Rows to bytes; equal rows give equal bytes.
    """

    name: str
    suffixes: tuple[str, ...]
    starts: tuple[bytes, ...]
    read: Reader
    write: Writer


def text_start(data: bytes) -> int:
    """Where the text begins after white space and byte-order marks."""
    blank = _BLANK_START.match(data)
    return blank.end() if blank else 0


def type_name(value: Any) -> str:
    """The name a JSON reader would give the value's type."""
    return _JSON_NAMES.get(type(value), type(value).__name__)


def is_encodable(text: str) -> bool:
    """Whether the text is free of lone surrogates, which UTF-8 cannot hold."""
    return _SURROGATE.search(text) is None


def decode_leniently(data: bytes) -> tuple[str, bool]:
    """The text, and whether it is valid; bytes that are not UTF-8 become lone surrogates."""
    try:
        return data.decode("utf-8"), True
    except UnicodeDecodeError:
        return data.decode("utf-8", "surrogateescape"), False


def check_row(row: Row) -> Row:
    """The row, or the fault that some of its bytes are not UTF-8."""
    if _ESCAPED_BYTE.search(json.dumps(row.value, ensure_ascii=False, default=str)):
        return Row(row.number, row.line, None, f"{NOT_UTF8}: save the file as UTF-8")
    return row
