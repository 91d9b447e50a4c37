"""One file of instruction data as a typed frame of records."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.records.compression import kind_of
from delift_pipeline.records.fold import Folded, Folder
from delift_pipeline.records.formats import Row, Table, read_table
from delift_pipeline.records.shapes import (
    Draft,
    Shape,
    mapped_shape,
    missing_columns,
    recognise,
)


@dataclass(frozen=True)
class RecordsFile:
    """What was read from one file.

    Attributes:
        frame: n records (`RECORD_SCHEMA`), identical ones folded, in file order of first copies.
        rows: n row objects as the file holds them (first copies), aligned with the frame.
        raw: n lines of text without their endings, aligned with the frame; JSON Lines only.
        faults: Why rows were left out (`skip_bad` only; a row may have several).
        read: How many rows the file has, bad ones included.
        folded: How many good rows went into an identical one.
        shape: The recognised shape's name, or `mapping`.
        derived: Those of `source` and `source_ids` that come from the file's name because no row
            gives them; two files that differ only there hold the same version.
        schema: The file's column types; Parquet only.
    """

    frame: pl.DataFrame
    rows: list[dict[str, Any]]
    raw: list[str] | None
    faults: list[Fault]
    read: int
    folded: int
    shape: str
    derived: frozenset[str] = field(default_factory=frozenset)
    schema: pl.Schema | None = None

    @property
    def left_out(self) -> int:
        """How many bad rows were left out."""
        return self.read - self.folded - self.frame.height


def read_records(
    path: Path, *, mapping: Mapping[str, str] | None = None, skip_bad: bool = False
) -> RecordsFile:
    """Read JSON Lines, a JSON array, CSV or Parquet, each plain, .gz or .zst.

    The shape is recognised (`records.shapes`) unless `mapping` (field -> column) gives it. A row
    without a source id gets `<file stem>-<row number>`, rows counted from 1; one without a source
    gets the file's name. A missing or null input is empty.

    Args:
        path: The file; its suffixes name the format.
        mapping: Columns by field: instruction, input, output (or messages), source_id, source,
            task. A field that is not named stands in the column of its own name.
        skip_bad: Leave faulty rows out instead of refusing the file.

    Raises:
        Refused: the file as a whole is unusable, has no good record, or has faults and `skip_bad`
            is off; every fault is given, in file order.
    """
    path = Path(path)
    table = read_table(path)
    shape, whole = _shape_for(table, mapping, str(path), skip_bad)
    if shape is None or whole or table.fatal:
        raise Refused(*whole, *_in_order(_unreadable(table, str(path)) + table.fatal))
    folded, faults = _fold(table, shape, path)
    if faults and not skip_bad:
        raise Refused(*faults)
    if folded.frame.is_empty():
        raise Refused(_none_good(str(path)), *faults)
    return _records_file(table, shape, folded, faults)


def _shape_for(
    table: Table, mapping: Mapping[str, str] | None, file: str, skip_bad: bool
) -> tuple[Shape | None, list[Fault]]:
    readable = any(row.value is not None for row in table.rows)
    shape = mapped_shape(mapping) if mapping else None
    if not readable:
        return None, [] if table.fatal or (table.rows and not skip_bad) else [_none_good(file)]
    if shape is not None:
        return shape, missing_columns(shape, table.rows, file)
    return recognise(table.rows, file)


def _none_good(file: str) -> Fault:
    return Fault("no good record", file)


def _unreadable(table: Table, file: str) -> list[Fault]:
    return [Fault(row.reason, file, row.line) for row in table.rows if row.value is None]


def _in_order(faults: list[Fault]) -> list[Fault]:
    return sorted(faults, key=lambda fault: fault.line or 0)


def _fold(table: Table, shape: Shape, path: Path) -> tuple[Folded, list[Fault]]:
    file = str(path)
    folder = Folder(file, path.name, kind_of(path).stem)
    faults, drafts = _unreadable(table, file), list[Draft]()
    for row in table.rows:
        if row.value is None:
            continue
        draft, problems = shape.draft(row.value)
        faults.extend(Fault(reason, file, row.line, column) for column, reason in problems)
        if draft is not None:
            drafts.append(draft)
            folder.add(row, draft)
    folded = folder.done(drafts)
    return folded, _in_order(faults + folded.faults)


def _records_file(table: Table, shape: Shape, folded: Folded, faults: list[Fault]) -> RecordsFile:
    raw = [row.raw for row in folded.rows if row.raw is not None]
    return RecordsFile(
        frame=folded.frame,
        rows=[_value(row) for row in folded.rows],
        raw=raw or None,
        faults=faults,
        read=len(table.rows),
        folded=folded.folded,
        shape=shape.name,
        derived=folded.derived,
        schema=table.schema,
    )


def _value(row: Row) -> dict[str, Any]:
    return row.value if row.value is not None else {}
