"""Files of instruction data as a typed frame of records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import polars as pl

from delift_pipeline.errors import DeliftError, Fault, Refused
from delift_pipeline.records.formats import Row, Table
from delift_pipeline.records.json_rows import JSON_LINES
from delift_pipeline.records.schema import RECORD_SCHEMA, record_id
from delift_pipeline.records.shapes import (
    KNOWN_COLUMNS,
    Draft,
    mapped_fields,
    mapping_faults,
    missing_columns,
    shape_of_file,
)
from delift_pipeline.records.tables import FORMATS, compress, input_files, kind_of, read_table
from delift_pipeline.storage.output import is_standard_output, write_output

Inputs = Path | Sequence[Path]
"""A file, a folder of them, or several of either."""
Ids = Literal["keep", "ignore"]


@dataclass(frozen=True)
class RecordsFile:
    """What was read from one file, or from several as one.

    Attributes:
        frame: n records (`RECORD_SCHEMA`), identical ones folded, in file order of first copies.
        rows: n row objects as the file holds them (first copies), aligned with the frame.
        raw: n lines of text without their endings, aligned with the frame; JSON Lines only.
        faults: Why rows were left out (`skip_bad` only; a row may have several).
        read: How many rows the file has, bad ones included.
        folded: How many good rows went into an identical one.
        shape: The recognised shape's name, or `mapping`; several files may have several.
        derived: Those of `source` and `source_ids` that come from the file's name because no row
            gives them; two files that differ only there hold the same version.
        schema: The file's column types; Parquet and Arrow only.
        mapped: The fields of the mapping whose columns were there.
        notes: What the user should know about how it was read.
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
    mapped: frozenset[str] = field(default_factory=frozenset)
    notes: tuple[str, ...] = ()

    @property
    def left_out(self) -> int:
        """How many bad rows were left out."""
        return self.read - self.folded - self.frame.height


def read_records(
    inputs: Inputs,
    *,
    mapping: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    ids: Ids = "keep",
    all_mapped: bool = True,
) -> RecordsFile:
    """Read JSON Lines, JSON, CSV, Parquet or Arrow, plain or compressed, from files or folders.

    The shape of each file is recognised (`records.shapes`) unless `mapping` (field -> column) gives
    it. A row without a source id gets `<file stem>-<row number>`, rows counted from 1; one without
    a source gets the file's name. A missing or null input is empty. A source id that occurs again
    on other contents becomes `ID#2`.

    Args:
        inputs: Files and folders (`records.sources`), read as one.
        mapping: Columns by field: instruction, input, output (or messages), source_id, source,
            task. A field that is not named is in the column of its own name.
        skip_bad: Leave faulty rows out instead of refusing the file.
        ids: `ignore` drops the files' own ids.
        all_mapped: Whether every mapped column has to be in one of the files.

    Raises:
        Refused: a file as a whole is unusable, there is no good record, a mapped column is in no
            file, or there are faults and `skip_bad` is off; every fault is given, in file order.
    """
    parts, faults = read_parts(
        {"": inputs}, mapping=mapping, skip_bad=skip_bad, ids=ids, all_mapped=all_mapped
    )
    if faults:
        raise Refused(*faults)
    return parts[""]


def read_parts(
    parts: Mapping[str, Inputs | None],
    *,
    mapping: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    ids: Ids = "keep",
    all_mapped: bool = True,
) -> tuple[dict[str, RecordsFile], list[Fault]]:
    """Read the inputs of one command by name, as `read_records`, with all faults of all of them.

    A mapping applies to each file as far as the file has its columns; with `all_mapped` a column
    that no file has is a fault. Inputs that are None are left out.
    """
    read: dict[str, RecordsFile] = {}
    fields = mapped_fields(mapping or {})
    if faults := mapping_faults(fields):
        return {}, faults
    for part, inputs in parts.items():
        if inputs is None:
            continue
        try:
            read[part] = _read(inputs, fields, skip_bad, ids)
        except Refused as refused:
            faults += refused.faults
    if all_mapped and not faults:
        faults = _unused(fields, read, parts)
    return read, list(dict.fromkeys(faults))  # two inputs may name the same file


def _unused(
    fields: Mapping[str, str], read: Mapping[str, RecordsFile], parts: Mapping[str, Inputs | None]
) -> list[Fault]:
    """Faults for mapped columns that no file has."""
    used = frozenset[str]().union(*(file.mapped for file in read.values()))
    present = {column for file in read.values() for row in file.rows for column in row}
    lost = {field: column for field, column in fields.items() if field not in used}
    files = [path for inputs in parts.values() if inputs is not None for path in _several(inputs)]
    return missing_columns(lost, present, ", ".join(map(str, files))) if lost else []


def first_input(inputs: Inputs) -> Path:
    """The first file or folder."""
    return _several(inputs)[0]


def _several(inputs: Inputs) -> list[Path]:
    return [inputs] if isinstance(inputs, Path) else list(inputs)


@dataclass(slots=True)
class _Kept:
    row: Row
    draft: Draft
    source: str
    copies: int = 0
    source_ids: dict[str, None] = field(default_factory=dict)


class _Folder:
    """Takes drafts in file order and folds the identical ones."""

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}
        self._names: list[tuple[str, str, bool]] = []
        self._given: set[str] = set()

    def add(self, row: Row, draft: Draft, file_name: str, stem: str) -> None:
        """Take one row of a file; `stem` and its number make the id that it may lack."""
        identity = record_id(draft.instruction, draft.input, draft.output)
        kept = self._kept.setdefault(identity, _Kept(row, draft, draft.source or file_name))
        kept.copies += 1
        if draft.source:
            self._given.add("source")
        if draft.source_id:
            self._given.add("source_ids")
        name = draft.source_id or f"{stem}-{row.number}"
        self._names.append((name, identity, bool(draft.source_id)))

    @property
    def rows(self) -> list[Row]:
        """The first copy of each record, in file order."""
        return [kept.row for kept in self._kept.values()]

    @property
    def folded(self) -> int:
        """How many rows went into another."""
        return len(self._names) - len(self._kept)

    @property
    def derived(self) -> frozenset[str]:
        """The columns that no row gave, so that the file's name decides them."""
        return frozenset({"source", "source_ids"} - self._given)

    def frame(self) -> tuple[pl.DataFrame, dict[str, str]]:
        """The records (`RECORD_SCHEMA`) in the order of `rows`, every id on one content only.

        Returns:
            The records, and the files' ids that stand on several contents by their new names.
        """
        renamed = self._name_records()
        records = list(self._kept.values())
        columns = {
            "record_id": list(self._kept),
            "instruction": [kept.draft.instruction for kept in records],
            "input": [kept.draft.input for kept in records],
            "output": [kept.draft.output for kept in records],
            "source": [kept.source for kept in records],
            "task": [kept.draft.task or "" for kept in records],
            "copies": [kept.copies for kept in records],
            "source_ids": [list(kept.source_ids) for kept in records],
        }
        return pl.DataFrame(columns, schema=RECORD_SCHEMA), renamed

    def _name_records(self) -> dict[str, str]:
        """Give records their ids; one that is on other content already becomes `ID#2`."""
        known = {name for name, _, _ in self._names}
        owned: dict[str, dict[str, str]] = {}  # id -> content -> the id it has there
        renamed: dict[str, str] = {}
        for name, identity, given in self._names:
            contents = owned.setdefault(name, {})
            if identity not in contents:
                new, number = name, len(contents) + 1
                while number > 1 and (new := f"{name}#{number}") in known:
                    number += 1
                contents[identity] = new
                known.add(new)
                if given and new != name:
                    renamed[new] = name
            self._kept[identity].source_ids[contents[identity]] = None
        return renamed


@dataclass
class _Reading:
    """What has been read so far of the files of one input."""

    fields: Mapping[str, str]
    ids: Ids
    folder: _Folder = field(default_factory=_Folder)
    tables: list[Table] = field(default_factory=list)
    shapes: dict[str, None] = field(default_factory=dict)
    mapped: frozenset[str] = frozenset()
    whole: list[Fault] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def add(self, path: Path) -> None:
        """Add a file's rows, or the faults that make it unusable as a whole."""
        file = str(path)
        try:
            table = read_table(path, KNOWN_COLUMNS | set(self.fields.values()))
        except Refused as refused:
            self.whole += refused.faults
            return
        self.tables.append(table)
        faults = [Fault(row.reason, file, row.line) for row in table.rows if row.value is None]
        shape, problems, mapped = None, list[Fault](), frozenset[str]()
        if len(faults) < len(table.rows):
            shape, problems, mapped = shape_of_file(table.rows, file, self.fields)
        if problems or table.fatal:
            self.whole += [*problems, *_in_order(faults + table.fatal)]
            return
        if shape is not None:
            self.shapes[shape.name] = None
            self.mapped |= mapped
            shape = shape if self.ids == "keep" else replace(shape, ids=False)
            stem = kind_of(path).stem
            for row in (row for row in table.rows if row.value is not None):
                draft, wrong = shape.draft(row.value or {})
                faults += [Fault(reason, file, row.line, column) for column, reason in wrong]
                if draft is not None:
                    self.folder.add(row, draft, path.name, stem)
        self.faults += _in_order(faults)


def _read(inputs: Inputs, fields: Mapping[str, str], skip_bad: bool, ids: Ids) -> RecordsFile:
    files, notes = input_files(_several(inputs))
    reading = _Reading(fields, ids)
    for path in files:
        reading.add(path)
    if refusing := reading.whole + ([] if skip_bad else reading.faults):
        raise Refused(*refusing)
    folder, rows = reading.folder, reading.folder.rows
    if not rows:
        names = ", ".join(map(str, _several(inputs)))
        raise Refused(Fault("no good record", names), *reading.faults)
    frame, renamed = folder.frame()
    raw = [row.raw for row in rows if row.raw is not None]
    schemas = [table.schema for table in reading.tables]
    notes += [note for table in reading.tables for note in table.notes]
    if renamed:
        new, old = next(iter(renamed.items()))
        notes.append(
            f"{len(renamed):,} ids were already taken by other records and got a number; the "
            f"first: {old!r} is now {new!r}. With --ids ignore the ids of the file are not used."
        )
    return RecordsFile(
        frame=frame,
        rows=[row.value or {} for row in rows],
        raw=raw if len(raw) == len(rows) else None,
        faults=reading.faults,
        read=sum(len(table.rows) for table in reading.tables),
        folded=folder.folded,
        shape=", ".join(reading.shapes),
        derived=folder.derived,
        schema=schemas[0] if all(one == schemas[0] for one in schemas) else None,
        mapped=reading.mapped,
        notes=tuple(notes),
    )


def _in_order(faults: list[Fault]) -> list[Fault]:
    return sorted(faults, key=lambda fault: fault.line or 0)


def write_chosen(
    path: Path, file: RecordsFile, record_ids: Sequence[str], source: Path | None = None
) -> None:
    """Write the original rows of `record_ids`, unchanged, in that order.

    The format follows the suffix of `path`, JSON Lines where it says nothing; `.gz` and `.zst`
    compress. From JSON Lines to JSON Lines the lines' own text is kept. What Parquet holds and text
    formats do not is written as `json_text.plain` says; Parquet to Parquet keeps every type. Equal
    input gives equal bytes.

    Args:
        path: Where to write: a file, a pipe or device, or `-` for standard output.
        file: The records and their rows.
        record_ids: Which of them, in the order to write.
        source: The file they were read from. Standard output takes its format where that is text.

    Raises:
        DeliftError: an id is not in the file, or the rows do not fit the format.
    """
    places = {record: at for at, record in enumerate(file.frame["record_id"])}
    if lost := [record for record in record_ids if record not in places]:
        raise DeliftError(f"{len(lost)} chosen records are not in the file, the first {lost[0]}")
    chosen = [places[record] for record in record_ids]
    kind = kind_of(path)
    name = kind.format
    if name is None and source is not None and is_standard_output(path):
        name = kind_of(source).format
        name = None if name == "parquet" else name
    form = FORMATS[name or "jsonl"]
    if form is JSON_LINES and file.raw is not None:
        data = "".join(f"{file.raw[at]}\n" for at in chosen).encode("utf-8")
    else:
        data = form.write([file.rows[at] for at in chosen], file.schema)
    write_output(path, compress(data, kind.codec))
