"""Wrapped sparse matrices as plain ones, a whole matrix at a time instead of column by column."""

from typing import Any

import numpy as np

from delift_pipeline.utility.block import RowScaled
from delift_pipeline.utility.columns import Columns, RestrictedColumns, SparseColumns
from delift_pipeline.utility.similarity import Similarity


def sparse_of(matrix: Columns) -> SparseColumns | None:
    """The matrix as compressed columns, or None where it is not sparse or of an unknown kind.

    Each step holds one copy of the stored values; a matrix that is plain already is not copied.
    """
    if isinstance(matrix, SparseColumns):
        return matrix
    if not isinstance(matrix, Similarity | RowScaled | RestrictedColumns):
        return None
    source = sparse_of(matrix.source)
    if source is None:
        return None
    if isinstance(matrix, RestrictedColumns):
        return _restricted(source, matrix)
    if isinstance(matrix, RowScaled):
        data = np.asarray(source.data) * matrix.factors[source.indices]
        return SparseColumns(source.indptr, source.indices, data, source.rows)
    return _similarity(source, matrix)


def _restricted(source: SparseColumns, matrix: RestrictedColumns) -> SparseColumns:
    from scipy import sparse

    parts: Any = (source.data, source.indices, source.indptr)
    whole = sparse.csc_matrix(parts, shape=source.shape, copy=False)[:, matrix.columns]
    if matrix.rows is not None:
        whole = whole[matrix.rows]
    whole.sort_indices()
    return SparseColumns(whole.indptr, whole.indices, whole.data, matrix.shape[0])


def _similarity(source: SparseColumns, matrix: Similarity) -> SparseColumns:
    data = np.asarray(source.data)
    data = np.maximum(data if matrix.affine is None else matrix.affine(data), 0)
    if matrix.column_groups is not None:
        own = np.full(source.rows, -1, np.int64)
        number = {name: place for place, name in enumerate(matrix.members)}
        for name, rows in matrix.members.items():
            own[rows] = number[name]
        groups = np.array([number.get(int(g), -2) for g in matrix.column_groups], np.int64)
        data[np.repeat(groups, np.diff(source.indptr)) == own[source.indices]] = 0
    return SparseColumns(source.indptr, source.indices, data, source.rows)
