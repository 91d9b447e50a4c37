"""Identical records become one, which counts its copies and keeps all their ids."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl

from delift_pipeline.errors import Fault
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
        faults: Rows whose source id stands on other content already.
        derived: The columns that no row gave, so that the file's name decides them.
    """

    frame: pl.DataFrame
    rows: list[Row]
    folded: int
    faults: list[Fault]
    derived: frozenset[str]


class Folder:
    """Takes drafts in file order and folds the identical ones."""

    def __init__(self, file: str, name: str, stem: str) -> None:
        self.file, self.name, self.stem = file, name, stem
        self.kept: dict[str, _Kept] = {}
        self.owners: dict[str, tuple[str, int]] = {}
        self.faults: list[Fault] = []
        self.taken = 0

    def add(self, row: Row, draft: Draft) -> None:
        """Take one row, or note why its source id forbids it."""
        identity = record_id(draft.instruction, draft.input, draft.output)
        name = draft.source_id or f"{self.stem}-{row.number}"
        owner, line = self.owners.setdefault(name, (identity, row.line))
        if owner != identity:
            reason = f"source id {name!r} stands on other content at line {line}"
            self.faults.append(Fault(reason, self.file, row.line, "source_id"))
            return
        kept = self.kept.setdefault(identity, _Kept(row, draft, draft.source or self.name))
        kept.copies += 1
        kept.source_ids[name] = None
        self.taken += 1

    def done(self, drafts: Sequence[Draft]) -> Folded:
        """The folded frame; `drafts` are all that were offered."""
        given = {
            "source_ids": any(draft.source_id for draft in drafts),
            "source": any(draft.source for draft in drafts),
        }
        return Folded(
            frame=self._frame(),
            rows=[kept.row for kept in self.kept.values()],
            folded=self.taken - len(self.kept),
            faults=self.faults,
            derived=frozenset(column for column, found in given.items() if not found),
        )

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
