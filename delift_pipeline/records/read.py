"""Read files of instruction data into a typed frame of records, and write chosen records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal

import polars as pl

from delift_pipeline.core.errors import DeliftError, Fault, InputError
from delift_pipeline.core.output import is_standard_output, write_output
from delift_pipeline.records import shapes
from delift_pipeline.records.formats import Row, Table
from delift_pipeline.records.json_rows import JSON_LINES
from delift_pipeline.records.schema import RECORD_SCHEMA, TEXT_FIELDS, record_id
from delift_pipeline.records.tables import FORMATS, compress, file_kind, input_files, read_table

Inputs = Path | Sequence[Path]
"""One or several files or folders."""
Ids = Literal["keep", "ignore"]


@dataclass(frozen=True)
class RecordsFile:
    """The records of one input, which may be several files.

    Attributes:
        frame: n records (`RECORD_SCHEMA`) in file order. Identical records are folded into one.
        rows: The n original row objects (of the first copies), in the order of the frame.
        raw: The n original lines without line endings, in the same order (JSON Lines only).
        faults: Why rows were left out (with `skip_bad` only). A row may have several faults.
        read: The number of rows in the files, with faulty ones.
        folded: The number of good rows that were folded into an identical one.
        shape: The name of the recognised shape, or `mapping`. Several files may have several.
        derived: Which of `source` and `source_ids` come only from the file's name, because no row
            gives them. Files that differ only in those hold the same version.
        schema: The column types (Parquet and Arrow only).
        mapped: The fields of the mapping whose columns are in the files.
        notes: What the user should know about how the files were read.
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
        """The number of faulty rows that were left out."""
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
    it. A row without a source id gets `<file stem>-<row number>`, counted from 1. A row without a
    source gets the file's name. A missing or null input is empty. If a source id occurs again with
    other text, it becomes `ID#2`.

    Args:
        inputs: Files and folders (see `records.tables`), which are read as one.
        mapping: Columns by field: instruction, input, output (or messages), source_id, source,
            task. A field that is not mapped is read from the column of its own name.
        skip_bad: Whether to leave faulty rows out instead of refusing the file.
        ids: `ignore` drops the source ids of the files.
        all_mapped: Whether every mapped column has to be in one of the files.

    Raises:
        InputError: A whole file is unusable, there is no good record, a mapped column is in no
            file, or there are faults and `skip_bad` is off. Every fault is listed, in file order.
    """
    parts, faults = read_parts(
        {"": inputs}, mapping=mapping, skip_bad=skip_bad, ids=ids, all_mapped=all_mapped
    )
    if faults:
        raise InputError(*faults)
    return parts[""]


def read_parts(
    parts: Mapping[str, Inputs | None],
    *,
    mapping: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    ids: Ids = "keep",
    all_mapped: bool = True,
) -> tuple[dict[str, RecordsFile], list[Fault]]:
    """Read several named inputs as `read_records` does, and return all faults of all of them.

    A mapping applies to each file as far as the file has the columns. With `all_mapped`, a column
    that is in no file is a fault. Inputs that are None are left out.
    """
    read = dict[str, RecordsFile]()
    fields = shapes.mapped_fields(mapping or {})
    if faults := shapes.mapping_faults(fields):
        return {}, faults
    paths_by_part = {part: _as_list(inputs) for part, inputs in parts.items() if inputs is not None}
    for part, paths in paths_by_part.items():
        try:
            read[part] = _read_files(paths, fields, skip_bad, ids)
        except InputError as refused:
            faults += refused.faults
    if all_mapped and not faults:
        used = frozenset[str]().union(*(file.mapped for file in read.values()))
        absent = {field: column for field, column in fields.items() if field not in used}
        present = {column for file in read.values() for row in file.rows for column in row}
        names = ", ".join(map(str, chain(*paths_by_part.values())))
        faults = shapes.missing_columns(absent, present, names)
    return read, list(dict.fromkeys(faults))  # two inputs may name the same file


def first_input(inputs: Inputs) -> Path:
    """Return the first file or folder of an input."""
    return _as_list(inputs)[0]


def _as_list(inputs: Inputs) -> list[Path]:
    return [inputs] if isinstance(inputs, Path) else list(inputs)


@dataclass(slots=True)
class _FoldedRecord:
    row: Row
    draft: shapes.Draft
    source: str
    copies: int = 0
    source_ids: dict[str, None] = field(default_factory=dict)


class _InputReader:
    """Reads the files of one input one after another and folds identical records."""

    def __init__(self, fields: Mapping[str, str], ids: Ids) -> None:
        self.fields, self.ids = fields, ids
        self.records: dict[str, _FoldedRecord] = {}
        self.tables: list[Table] = []
        self.shapes: dict[str, None] = {}
        self.mapped = frozenset[str]()
        self.derived = frozenset({"source", "source_ids"})
        self.file_faults, self.row_faults = list[Fault](), list[Fault]()
        self._names: list[tuple[str, str, bool]] = []

    def add(self, path: Path) -> None:
        """Add a file's rows, or the faults that make it unusable as a whole."""
        file = str(path)
        try:
            table = read_table(path, shapes.KNOWN_COLUMNS | set(self.fields.values()))
        except InputError as refused:
            self.file_faults += refused.faults
            return
        self.tables.append(table)
        faults = [Fault(row.reason, file, row.line) for row in table.rows if row.value is None]
        shape, problems, mapped = None, list[Fault](), frozenset[str]()
        if len(faults) < len(table.rows):
            shape, problems, mapped = shapes.shape_of_file(table.rows, file, self.fields)
        if problems or table.fatal:
            self.file_faults += [*problems, *_sort_by_line(faults + table.fatal)]
            return
        if shape is not None:
            self.shapes[shape.name] = None
            self.mapped |= mapped
            shape, stem = replace(shape, ids=self.ids == "keep"), file_kind(path).stem
            for row in (row for row in table.rows if row.value is not None):
                draft, wrong = shape.draft(row.value or {})
                faults += [Fault(reason, file, row.line, column) for column, reason in wrong]
                if draft is not None:
                    self._fold(row, draft, path.name, stem)
        self.row_faults += _sort_by_line(faults)

    def _fold(self, row: Row, draft: shapes.Draft, file_name: str, stem: str) -> None:
        identity = record_id(draft.instruction, draft.input, draft.output)
        new = _FoldedRecord(row, draft, draft.source or file_name)
        record = self.records.setdefault(identity, new)
        record.copies += 1
        stated = {"source": draft.source, "source_ids": draft.source_id}
        self.derived -= {name for name, value in stated.items() if value}
        name = draft.source_id or f"{stem}-{row.number}"
        self._names.append((name, identity, bool(draft.source_id)))

    def name_records(self) -> dict[str, str]:
        """Give every record its source ids. An id that another text already has becomes `ID#2`.

        Returns:
            The new id -> the id in the file, for each id that was changed.
        """
        known = {name for name, _, _ in self._names}
        names: dict[str, dict[str, str]] = {}  # id in the file -> record_id -> id given to it
        renamed: dict[str, str] = {}
        for name, identity, from_file in self._names:
            contents = names.setdefault(name, {})
            if identity not in contents:
                numbered = (f"{name}#{number}" for number in count(len(contents) + 1))
                free = next(one for one in numbered if one not in known) if contents else name
                contents[identity] = free
                known.add(free)
                if from_file and free != name:
                    renamed[free] = name
            self.records[identity].source_ids[contents[identity]] = None
        return renamed


def _read_files(
    paths: Sequence[Path], fields: Mapping[str, str], skip_bad: bool, ids: Ids
) -> RecordsFile:
    files, notes = input_files(paths)
    reader = _InputReader(fields, ids)
    for path in files:
        reader.add(path)
    if faults := reader.file_faults + ([] if skip_bad else reader.row_faults):
        raise InputError(*faults)
    records, tables = list(reader.records.values()), reader.tables
    if not records:
        names = ", ".join(map(str, paths))
        raise InputError(Fault("The input has no good record.", names), *reader.row_faults)
    notes += [note for table in tables for note in table.notes]
    if renamed := reader.name_records():
        new, old = next(iter(renamed.items()))
        notes.append(
            f"{len(renamed):,} ids already belong to other records and got a number. The first: "
            f"{old!r} is now {new!r}. Pass --ids ignore to leave the ids of the file out."
        )
    columns = {
        "record_id": list(reader.records),
        **{name: [getattr(one.draft, name) for one in records] for name in TEXT_FIELDS},
        "source": [one.source for one in records],
        "task": [one.draft.task or "" for one in records],
        "copies": [one.copies for one in records],
        "source_ids": [list(one.source_ids) for one in records],
    }
    raw = [one.row.raw for one in records if one.row.raw is not None]
    return RecordsFile(
        frame=pl.DataFrame(columns, schema=RECORD_SCHEMA),
        rows=[one.row.value or {} for one in records],
        raw=raw if len(raw) == len(records) else None,
        faults=reader.row_faults,
        read=sum(len(table.rows) for table in tables),
        folded=sum(one.copies for one in records) - len(records),
        shape=", ".join(reader.shapes),
        derived=reader.derived,
        schema=tables[0].schema if all(t.schema == tables[0].schema for t in tables) else None,
        mapped=reader.mapped,
        notes=tuple(notes),
    )


def _sort_by_line(faults: list[Fault]) -> list[Fault]:
    return sorted(faults, key=lambda fault: fault.line or 0)


def write_records(
    path: Path, file: RecordsFile, record_ids: Sequence[str], source: Path | None = None
) -> None:
    """Write the original rows of `record_ids`, unchanged, in that order.

    The suffix of `path` decides the format (JSON Lines if it has none); `.gz` and `.zst` compress.
    From JSON Lines to JSON Lines, the text of each line is copied. From Parquet to Parquet, column
    types are kept; `core.output.json_value` converts them for text formats. Equal input gives equal
    bytes.

    Args:
        path: Where to write: a file, a pipe or device, or `-` for standard output.
        file: The records and their rows.
        record_ids: The records to write, in order.
        source: The file they were read from. If it is a text file, standard output has its format.

    Raises:
        DeliftError: A record is not in the file, or the rows do not fit the format.
    """
    places = {record: at for at, record in enumerate(file.frame["record_id"])}
    if missing := [record for record in record_ids if record not in places]:
        count = len(missing)
        raise DeliftError(f"{count} chosen records are not in the file, the first {missing[0]}")
    chosen = [places[record] for record in record_ids]
    name = file_kind(path).format
    if name is None and source is not None and is_standard_output(path):
        name = file_kind(source).format
        name = None if name == "parquet" else name
    if FORMATS[name or "jsonl"] is JSON_LINES and file.raw is not None:
        data = "".join(f"{file.raw[at]}\n" for at in chosen).encode("utf-8")
        write_output(path, compress(data, file_kind(path).codec))
    else:
        write_rows(path, [file.rows[at] for at in chosen], file.schema, name)


def write_rows(
    path: Path, rows: list[dict[str, Any]], schema: pl.Schema | None = None, name: str | None = None
) -> None:
    """Write rows to a file, a pipe or device, or to `-` for standard output.

    The format is `name`, else what the suffix of `path` says, else JSON Lines; `.gz` and `.zst`
    compress. `schema` has the column types of a columnar format.

    Raises:
        DeliftError: The rows do not fit the format.
    """
    kind = file_kind(path)
    data = FORMATS[name or kind.format or "jsonl"].write(rows, schema)
    write_output(path, compress(data, kind.codec))
