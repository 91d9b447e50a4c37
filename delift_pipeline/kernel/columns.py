"""Matrices read column by column: dense or compressed sparse, in memory or mapped from a file.

Greedy maximisation needs the effect of one demonstration on every target, which is one column of a
kernel. All selection code reads kernels through this interface.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from delift_pipeline.core.errors import InputError

FLOATS = (np.float16, np.float32, np.float64)
# Dense kernels up to this size are copied once into memory, column after column. Larger ones are
# computed from their file each time they are read.
MATERIALISE_BYTES = 1 << 30

# The sorted row numbers of the stored values, or None for all rows; and the values.
Column = tuple[np.ndarray | None, np.ndarray]


class Columns(Protocol):
    """A matrix that is read column by column.

    Attributes:
        shape: (rows, columns).
        stored: How many entries are stored; all others are 0.
    """

    shape: tuple[int, int]
    stored: int

    def column(self, j: int) -> Column:
        """Return column j: sorted row numbers, or None for all rows, and values. Only read them."""
        ...


class DenseColumns:
    """An array or memory map [rows, columns] of any memory order."""

    def __init__(self, matrix: np.ndarray) -> None:
        self.matrix, self.stored = matrix, matrix.size
        self.shape = (matrix.shape[0], matrix.shape[1])

    def column(self, j: int) -> Column:
        """Return column j with all rows."""
        return None, np.asarray(self.matrix[:, j])


class SparseColumns:
    """Compressed sparse columns; absent entries are 0.

    Args:
        indptr: int64 [columns + 1].
        indices: int32 [stored], row numbers, sorted within a column.
        data: float [stored].
        rows: Number of rows.
    """

    def __init__(
        self, indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, rows: int
    ) -> None:
        self.indptr, self.indices, self.data = indptr, indices, data
        self.shape, self.stored = (rows, len(indptr) - 1), len(data)

    def column(self, j: int) -> Column:
        """Return the stored rows of column j."""
        part = slice(int(self.indptr[j]), int(self.indptr[j + 1]))
        return np.asarray(self.indices[part]), np.asarray(self.data[part])


class DerivedColumns(ABC):
    """A matrix that is computed from another one when its columns are read."""

    source: Columns

    @abstractmethod
    def transform_sparse(self, source: SparseColumns) -> SparseColumns:
        """Return the whole matrix from the source's columns, which stay unchanged."""


class RestrictedColumns(DerivedColumns):
    """Some rows and columns of a matrix, in a given order, without a copy of it.

    Args:
        source: The matrix.
        rows: int [r], distinct row numbers of the source, or None for all.
        columns: int [c], column numbers of the source, or None for all.
    """

    def __init__(
        self, source: Columns, rows: np.ndarray | None = None, columns: np.ndarray | None = None
    ) -> None:
        self.source = source
        n_rows, n_columns = source.shape
        row_numbers = np.arange(n_rows) if rows is None else np.asarray(rows)
        self.rows = None if np.array_equal(row_numbers, np.arange(n_rows)) else row_numbers
        self.columns = np.arange(n_columns) if columns is None else np.asarray(columns)
        self._place_of = np.full(n_rows, -1, dtype=np.int64)
        self._place_of[row_numbers] = np.arange(len(row_numbers))
        self.shape = (len(row_numbers), len(self.columns))
        # All entries of a dense source, at most those of a sparse one.
        self.stored = min(source.stored, len(row_numbers) * len(self.columns))

    def column(self, j: int) -> Column:
        """Return column j of the chosen rows."""
        rows, values = self.source.column(int(self.columns[j]))
        if self.rows is None:
            return rows, values
        if rows is None:
            return None, values[self.rows]
        places = self._place_of[rows]
        order = np.argsort(places, kind="stable")
        order = order[places[order] >= 0]
        return places[order], values[order]

    def transform_sparse(self, source: SparseColumns) -> SparseColumns:
        """Return the chosen rows and columns of compressed columns."""
        from scipy import sparse

        parts: Any = (source.data, source.indices, source.indptr)
        whole = sparse.csc_matrix(parts, shape=source.shape, copy=False)[:, self.columns]
        if self.rows is not None:
            whole = whole[self.rows]
        whole.sort_indices()
        return SparseColumns(whole.indptr, whole.indices, whole.data, self.shape[0])


def as_columns(kernel: Any) -> Columns:
    """Return an array, memory map, SciPy sparse matrix or `Columns` as `Columns`.

    A row-ordered array in memory is copied once into column order. A memory map is not copied.

    Raises:
        InputError: The kernel is not a matrix of floats.
    """
    if hasattr(kernel, "column"):
        return kernel
    if not isinstance(kernel, np.ndarray) and not hasattr(kernel, "tocsc"):
        kind = type(kernel).__name__
        raise InputError(f"the kernel is a {kind}. Pass a NumPy array or a sparse matrix")
    if kernel.ndim != 2:
        raise InputError(f"the kernel has {kernel.ndim} dimensions. Pass targets x demonstrations")
    if kernel.dtype not in FLOATS:
        raise InputError(f"the kernel holds {kernel.dtype}. Convert it to floats")
    if isinstance(kernel, np.ndarray):
        mapped = isinstance(kernel, np.memmap)
        return DenseColumns(kernel if mapped else np.asfortranarray(kernel))
    sparse = kernel.tocsc()
    if not sparse.has_canonical_format:
        sparse = sparse.copy()
        sparse.sum_duplicates()
    return SparseColumns(sparse.indptr, sparse.indices, sparse.data, sparse.shape[0])


def each_column(matrix: Columns) -> Iterator[Column]:
    """Yield all columns in order."""
    return (matrix.column(j) for j in range(matrix.shape[1]))


def column_maxima(matrix: Columns) -> np.ndarray:
    """Return the greatest value of each column, float64 [columns]; absent entries count as 0."""
    n_rows = matrix.shape[0]
    if isinstance(matrix, DenseColumns) and n_rows:
        return matrix.matrix.max(axis=0).astype(np.float64)
    best = np.zeros(matrix.shape[1])
    for j, (rows, values) in enumerate(each_column(matrix)):
        if len(values):
            best[j] = values.max() if rows is None or len(rows) == n_rows else max(values.max(), 0)
    return best


def row_maxima(matrix: Columns) -> np.ndarray:
    """Return the greatest value of each row, at least 0, float64 [rows]."""
    if isinstance(matrix, DenseColumns):
        return matrix.matrix.max(axis=1, initial=0).astype(np.float64)
    best = np.zeros(matrix.shape[0])
    for rows, values in each_column(matrix):
        where = slice(None) if rows is None else rows
        best[where] = np.maximum(best[where], values)
    return best


def cell_means(matrix: Columns, max_side: int = 200) -> np.ndarray:
    """Average a matrix over cells, at most `max_side` a side, float64 [down, across].

    Absent entries count as 0. The result is small enough to plot.
    """
    rows, columns = matrix.shape
    if not rows or not columns:
        return np.zeros((1, 1))
    down, across = min(rows, max_side), min(columns, max_side)
    cell_of_row = np.arange(rows) * down // rows
    cell_of_column = np.arange(columns) * across // columns
    sums = np.zeros((across, down))
    for j, (where, values) in enumerate(each_column(matrix)):
        cells = cell_of_row if where is None else cell_of_row[where]
        sums[cell_of_column[j]] += np.bincount(cells, weights=values, minlength=down)
    pairs = np.outer(np.bincount(cell_of_column), np.bincount(cell_of_row))
    return (sums / pairs).T


def to_dense(matrix: Columns) -> np.ndarray:
    """Return the matrix as a column-ordered float32 array; absent entries are 0."""
    dense = np.zeros(matrix.shape, dtype=np.float32, order="F")
    for j, (rows, values) in enumerate(each_column(matrix)):
        dense[slice(None) if rows is None else rows, j] = values
    return dense


def to_sparse(matrix: Columns) -> SparseColumns:
    """Return the stored entries as compressed columns. Compressed columns are not copied."""
    if isinstance(matrix, SparseColumns):
        return matrix
    if isinstance(matrix, DerivedColumns):
        return matrix.transform_sparse(to_sparse(matrix.source))
    rows, n = matrix.shape
    indices = np.tile(np.arange(rows, dtype=np.int32), n)
    return SparseColumns(np.arange(n + 1) * rows, indices, to_dense(matrix).ravel("F"), rows)


def materialise(matrix: Columns, limit: int = MATERIALISE_BYTES) -> Columns:
    """Compute a matrix once and keep it in memory, unless it is dense and above `limit` bytes."""
    cells = matrix.shape[0] * matrix.shape[1]
    if matrix.stored < cells:
        return to_sparse(matrix)
    return DenseColumns(to_dense(matrix)) if cells * 4 <= limit else matrix
