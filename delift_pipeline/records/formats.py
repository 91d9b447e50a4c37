"""Numbered rows of a file, before anything is known about their shape.

A row that cannot be parsed stays in its place with the reason, so that every fault of a file is
found in one reading. After a `fatal` fault the rest of the file cannot be read.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from delift_pipeline.errors import Fault

MARK = "\ufeff"
"""The byte-order mark, once it is decoded."""
NOT_UTF8 = "not valid UTF-8"
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


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


def lenient_text(data: bytes) -> tuple[str, bool]:
    """The text, and whether it is valid; bytes that are not UTF-8 become lone surrogates."""
    try:
        return data.decode("utf-8"), True
    except UnicodeDecodeError:
        return data.decode("utf-8", "surrogateescape"), False


def checked_row(row: Row) -> Row:
    """The row, or the fault that some of its bytes are not UTF-8."""
    if _ESCAPED_BYTE.search(json.dumps(row.value, ensure_ascii=False, default=str)):
        return Row(row.number, row.line, None, f"{NOT_UTF8}: save the file as UTF-8")
    return row
