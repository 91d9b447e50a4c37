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


class Folder:
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
