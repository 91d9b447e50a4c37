"""Blocks of the utility kernel, and the non-negative similarities that objectives need."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import polars as pl

from delift_pipeline.core.errors import DeliftError
from delift_pipeline.kernel.columns import (
    Column,
    Columns,
    DerivedColumns,
    RestrictedColumns,
    SparseColumns,
    each_column,
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
        unscorable: record_ids that cannot be scored. They have no row and no column.
    """

    name: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    matrix: Columns = field(repr=False)
    hash: str = ""
    unscorable: frozenset[str] = frozenset()

    def restrict(self, rows: Sequence[str], columns: Sequence[str]) -> "Block":
        """Return the block of these targets and demonstrations, in this order.

        Unscorable records are left out.

        Raises:
            DeliftError: A record is neither in the block nor known to be unscorable.
        """
        row_ids, row_numbers = self._find_ids(rows, self.rows, "targets")
        column_ids, column_numbers = self._find_ids(columns, self.columns, "demonstrations")
        matrix = RestrictedColumns(self.matrix, row_numbers, column_numbers)
        return Block(self.name, row_ids, column_ids, matrix, self.hash, self.unscorable)

    def _find_ids(
        self, requested: Sequence[str], present: Sequence[str], role: str
    ) -> tuple[tuple[str, ...], np.ndarray]:
        """Return the requested ids that are present, and their row or column numbers, int64."""
        number_of = {record: number for number, record in enumerate(present)}
        absent = [r for r in requested if r not in number_of and r not in self.unscorable]
        if absent:
            raise DeliftError(
                f"the kernel block {self.name} lacks {len(absent):,} of {len(requested):,} {role} "
                f"(the first is {absent[0]}). Score them and build the kernel again"
            )
        ids = tuple(record for record in requested if record in number_of)
        return ids, np.array([number_of[record] for record in ids], dtype=np.int64)


class RowScaledColumns(DerivedColumns):
    """A matrix whose rows are multiplied by factors, float [rows], when a column is read."""

    def __init__(self, source: Columns, factors: np.ndarray) -> None:
        self.source, self.factors = source, factors.astype(np.float32)
        self.shape, self.stored = source.shape, source.stored

    def column(self, j: int) -> Column:
        """Return column j, scaled."""
        rows, values = self.source.column(j)
        return rows, values * (self.factors if rows is None else self.factors[rows])

    def transform_sparse(self, source: SparseColumns) -> SparseColumns:
        """Scale compressed columns."""
        data = np.asarray(source.data) * self.factors[source.indices]
        return SparseColumns(source.indptr, source.indices, data, source.shape[0])


@dataclass(frozen=True)
class AffineMap:
    """similarity = (utility - low) / (high - low), one map for all blocks of a selection.

    If each block had its own map, utilities of two blocks could not be compared. FLCG, for example,
    subtracts values of one block from those of another.
    """

    low: float
    high: float

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Return the scaled values, float32 at least. All are 0 if no utility differs."""
        values = values.astype(np.result_type(values.dtype, np.float32), copy=False)
        if self.high <= self.low:
            return np.zeros_like(values)
        return (values - values.dtype.type(self.low)) / values.dtype.type(self.high - self.low)


class Similarity(DerivedColumns):
    """max(U, 0), or max(affine(U), 0) with a map, and 0 for masked pairs.

    A column is computed when it is read.

    Args:
        source: Signed utilities [rows, columns]; absent pairs stay absent (similarity 0).
        affine: The min-max map, or None if utilities are only clipped at 0.
        groups: (row groups, column groups), int arrays. A pair whose row and column are in the same
            group is masked, so neither a record nor an exact copy of it demonstrates itself. None
            masks nothing.
    """

    def __init__(
        self,
        source: Columns,
        affine: AffineMap | None = None,
        groups: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        self.source, self.affine, self._groups = source, affine, groups
        self._rows_of_group: dict[int | None, list[int]] = {}
        for row, group in enumerate([] if groups is None else groups[0].tolist()):
            self._rows_of_group.setdefault(group, []).append(row)
        self.shape, self.stored = source.shape, source.stored

    def column(self, j: int) -> Column:
        """Return column j of the similarity."""
        rows, values = self.source.column(j)
        scaled = np.maximum(values if self.affine is None else self.affine(values), 0)
        scaled[self._masked_positions(j, rows)] = 0
        return rows, scaled

    def _masked_positions(self, j: int, rows: np.ndarray | None) -> np.ndarray:
        """Return which positions of column j are masked, int64."""
        group = None if self._groups is None else int(self._groups[1][j])
        members = np.array(self._rows_of_group.get(group, []), dtype=np.int64)
        return members if rows is None else np.flatnonzero(np.isin(rows, members))

    def transform_sparse(self, source: SparseColumns) -> SparseColumns:
        """Return the similarity of compressed columns."""
        data = np.asarray(source.data)
        data = np.maximum(data if self.affine is None else self.affine(data), 0)
        if self._groups is not None:
            rows, columns = self._groups
            data[np.repeat(columns, np.diff(source.indptr)) == rows[source.indices]] = 0
        return SparseColumns(source.indptr, source.indices, data, source.shape[0])

    def range(self) -> tuple[float, float]:
        """Return the least and the greatest utility of unmasked pairs; (inf, -inf) without any."""
        low, high = np.inf, -np.inf
        for j, (rows, values) in enumerate(each_column(self.source)):
            masked = self._masked_positions(j, rows)
            usable = np.delete(values, masked) if len(masked) else values
            if len(usable):
                low, high = min(low, float(usable.min())), max(high, float(usable.max()))
        return low, high


def common_affine(blocks: Iterable[Similarity]) -> AffineMap:
    """Return the min-max map that several blocks share, from their unmasked utilities."""
    ranges = [block.range() for block in blocks]
    low = min((low for low, _ in ranges), default=np.inf)
    high = max((high for _, high in ranges), default=-np.inf)
    return AffineMap(low, high) if np.isfinite(low) else AffineMap(0.0, 0.0)


def duplicate_groups(frame: pl.DataFrame) -> dict[str, int]:
    """Return record_id -> group. Records with the same prompt and answer share a group.

    Identical records fold into one when they are read. So two records share a group only if they
    differ in the split between instruction and input, or in white space at the ends.
    """
    prompt = pl.concat_str("instruction", "input", separator="\n", ignore_nulls=True)
    text = pl.struct(prompt.str.strip_chars(), pl.col("output").str.strip_chars())
    return dict(frame.select("record_id", text.rank("dense").cast(pl.Int64)).iter_rows())


UtilityForm = Literal["distance", "kl", "kl_mean"]
