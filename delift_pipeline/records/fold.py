"""Identical records become one, which counts its copies and keeps all their ids."""

from dataclasses import dataclass, field

import polars as pl

from delift_pipeline.records.formats import Row
from delift_pipeline.records.identity import record_id
from delift_pipeline.records.schema import RECORD_SCHEMA
from delift_pipeline.records.shapes import Draft


@dataclass(slots=True)
class _Kept:
    row: Row
    draft: Draft
    source: str
    copies: int = 0
    source_ids: dict[str, None] = field(default_factory=dict)


@dataclass(frozen=True)
class Folded:
    """Records in file order of their first copies.

    Attributes:
        frame: `RECORD_SCHEMA`, n rows.
        rows: The first copy of each, aligned with the frame.
        folded: How many rows went into another.
        renamed: The ids of the files that stand on several contents, by the names they got.
        derived: The columns that no row gave, so that the file's name decides them.
    """

    frame: pl.DataFrame
    rows: list[Row]
    folded: int
    renamed: dict[str, str]
    derived: frozenset[str]


class Folder:
    """Takes drafts in file order and folds the identical ones."""

    def __init__(self) -> None:
        self.kept: dict[str, _Kept] = {}
        self.names: list[tuple[str, str, bool]] = []
        self.given: set[str] = set()

    def add(self, row: Row, draft: Draft, file_name: str, stem: str) -> None:
        """Take one row of a file; `stem` and its number make the id that it may lack."""
        identity = record_id(draft.instruction, draft.input, draft.output)
        kept = self.kept.setdefault(identity, _Kept(row, draft, draft.source or file_name))
        kept.copies += 1
        if draft.source:
            self.given.add("source")
        if draft.source_id:
            self.given.add("source_ids")
        name = draft.source_id or f"{stem}-{row.number}"
        self.names.append((name, identity, bool(draft.source_id)))

    def done(self) -> Folded:
        """The folded records, every id on one content only."""
        renamed = self._name_records()
        return Folded(
            frame=self._frame(),
            rows=[kept.row for kept in self.kept.values()],
            folded=len(self.names) - len(self.kept),
            renamed=renamed,
            derived=frozenset({"source", "source_ids"} - self.given),
        )

    def _name_records(self) -> dict[str, str]:
        """Give records their ids; one that is on other content already becomes `ID#2`."""
        known = {name for name, _, _ in self.names}
        owned: dict[str, dict[str, str]] = {}  # id -> content -> the id it has there
        renamed: dict[str, str] = {}
        for name, identity, given in self.names:
            contents = owned.setdefault(name, {})
            if identity not in contents:
                number = len(contents) + 1
                contents[identity] = name if number == 1 else _free_name(name, number, known)
                known.add(contents[identity])
                if given and number > 1:
                    renamed[contents[identity]] = name
            self.kept[identity].source_ids[contents[identity]] = None
        return renamed

    def _frame(self) -> pl.DataFrame:
        records = list(self.kept.values())
        columns = {
            "record_id": list(self.kept),
            "instruction": [kept.draft.instruction for kept in records],
            "input": [kept.draft.input for kept in records],
            "output": [kept.draft.output for kept in records],
            "source": [kept.source for kept in records],
            "task": [kept.draft.task or "" for kept in records],
            "copies": [kept.copies for kept in records],
            "source_ids": [list(kept.source_ids) for kept in records],
        }
        return pl.DataFrame(columns, schema=RECORD_SCHEMA)


def _free_name(name: str, number: int, known: set[str]) -> str:
    while f"{name}#{number}" in known:
        number += 1
    return f"{name}#{number}"
