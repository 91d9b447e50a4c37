"""One block of the utility kernel, with the record_ids of its rows and columns."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from delift_pipeline.errors import DeliftError
from delift_pipeline.utility.columns import (
    Column,
    Columns,
    Derived,
    RestrictedColumns,
    SparseColumns,
)


@dataclass(frozen=True)
class Block:
    """Signed utilities of demonstrations (columns) for targets (rows).

    Attributes:
        name: `self`, `neighbours`, `target`, `existing` or `replay`.
        rows: record_ids of the targets.
        columns: record_ids of the demonstrations.
        matrix: float32 [rows, columns]; pairs that were not scored are absent (sparse).
        hash: The block's content hash, part of the lineage of what is selected from it.
        left_out: record_ids that could not be scored and stand in no block.
    """

    name: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    matrix: Columns = field(repr=False)
    hash: str = ""
    left_out: frozenset[str] = frozenset()

    def restricted(self, rows: Sequence[str], columns: Sequence[str]) -> "Block":
        """The block of these targets and demonstrations, in this order, unscorable ones left out.

        Raises:
            DeliftError: a record is neither in the block nor known to be unscorable.
        """
        kept_rows, row_numbers = self._kept(rows, self.rows, "targets")
        kept_columns, column_numbers = self._kept(columns, self.columns, "demonstrations")
        matrix = RestrictedColumns(self.matrix, row_numbers, column_numbers)
        return Block(self.name, kept_rows, kept_columns, matrix, self.hash, self.left_out)

    def _kept(
        self, wanted: Sequence[str], present: Sequence[str], role: str
    ) -> tuple[tuple[str, ...], np.ndarray]:
        number_of = {record: number for number, record in enumerate(present)}
        absent = [r for r in wanted if r not in number_of and r not in self.left_out]
        if absent:
            raise DeliftError(
                f"the kernel block {self.name} lacks {len(absent):,} of {len(wanted):,} {role} "
                f"(the first is {absent[0]}); score them and build the kernel again"
            )
        kept = tuple(record for record in wanted if record in number_of)
        return kept, np.array([number_of[record] for record in kept], dtype=np.int64)


class RowScaled(Derived):
    """A matrix with each row multiplied by a factor, applied as columns are read."""

    def __init__(self, source: Columns, factors: np.ndarray) -> None:
        self.source, self.factors = source, factors.astype(np.float32)
        self.shape, self.stored = source.shape, source.stored

    def column(self, j: int) -> Column:
        """Column j, scaled."""
        rows, values = self.source.column(j)
        return rows, values * (self.factors if rows is None else self.factors[rows])

    def of_sparse(self, source: SparseColumns) -> SparseColumns:
        """Compressed columns, scaled."""
        data = np.asarray(source.data) * self.factors[source.indices]
        return SparseColumns(source.indptr, source.indices, data, source.rows)
