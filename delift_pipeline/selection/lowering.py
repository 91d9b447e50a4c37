"""Kernels as the compiled loops read them: wrappers become arguments, and nothing dense is copied.

Clipping, scaling, row factors, masks and restrictions are done on blocks of 256 rows in the
processor's cache, so that a memory-mapped kernel is only ever read.
"""

from typing import Any, TypeAlias

import numpy as np

from delift_pipeline.selection.loops.forms import CLIP, NOTHING, RAW, SCALE, Dense, Sparse
from delift_pipeline.utility.block import RowScaled
from delift_pipeline.utility.columns import (
    Columns,
    DenseColumns,
    RestrictedColumns,
    SparseColumns,
)
from delift_pipeline.utility.similarity import Affine, Similarity
from delift_pipeline.utility.sparse_forms import sparse_of

Lowered: TypeAlias = Dense | Sparse

ROWS_A_BLOCK = 256


def lowered(matrix: Columns) -> Lowered | None:
    """The kernel for the compiled loops, or None where it is of a kind that they do not know."""
    similarity = matrix if isinstance(matrix, Similarity) else None
    source = matrix if similarity is None else similarity.source
    dense = _dense(source)
    if dense is not None:
        return dense if similarity is None else _similarity(dense, similarity)
    sparse = sparse_of(matrix)
    return None if sparse is None else _sparse(sparse)


def _dense(source: Columns) -> Dense | None:
    """A dense array below restrictions and row factors, in any nesting."""
    if isinstance(source, DenseColumns):
        return _stored(source.matrix)
    if isinstance(source, RestrictedColumns):
        inner = _dense(source.source)
        return None if inner is None else _restricted(inner, source)
    if isinstance(source, RowScaled):
        inner = _dense(source.source)
        return None if inner is None else _row_scaled(inner, source.factors)
    return None


def _stored(matrix: np.ndarray) -> Dense:
    height, n = matrix.shape
    half = matrix.dtype == np.float16
    # One type of array, whatever was given: read only, columns first.
    turned = np.asarray(matrix).view(np.uint16).T if half else np.asarray(matrix).T
    turned = turned.view()
    turned.flags.writeable = False
    return Dense(
        matrix=turned,
        columns=np.arange(n),
        rows=np.zeros(0, np.int64),
        factors=np.zeros(0, np.float32),
        affine=np.array([0, 1], np.float32 if half else matrix.dtype),
        group=np.full(n, -1, np.int64),
        starts=np.zeros(1, np.int64),
        members=np.zeros(0, np.int64),
        mode=RAW,
        half=half,
        plain=not half,
        height=height,
        block=ROWS_A_BLOCK,
    )


def _restricted(inner: Dense, source: RestrictedColumns) -> Dense:
    columns = inner.columns[np.asarray(source.columns, dtype=np.int64)]
    group = np.full(len(columns), -1, np.int64)
    if source.rows is None:
        return inner._replace(columns=columns, group=group)
    kept = np.asarray(source.rows, dtype=np.int64)
    rows = inner.rows[kept] if len(inner.rows) else kept
    factors = inner.factors[kept] if len(inner.factors) else inner.factors
    return inner._replace(
        columns=columns,
        group=group,
        rows=rows,
        factors=factors,
        plain=False,
        height=len(kept),
    )


def _row_scaled(inner: Dense, factors: np.ndarray) -> Dense:
    both = factors * inner.factors if len(inner.factors) else factors
    return inner._replace(factors=np.asarray(both, np.float32), plain=False)


def _similarity(dense: Dense, similarity: Similarity) -> Dense:
    group, starts, members = _masks(similarity)
    affine: Affine | None = similarity.affine
    mode, numbers = CLIP, dense.affine
    if affine is not None:
        mode = SCALE if affine.high > affine.low else NOTHING
        numbers = np.array([affine.low, affine.high - affine.low], dense.affine.dtype)
    return dense._replace(
        affine=numbers, mode=mode, plain=False, group=group, starts=starts, members=members
    )


def _masks(similarity: Similarity) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Group of each column, and the rows of each group one after the other."""
    number = {name: place for place, name in enumerate(similarity.members)}
    named: Any = similarity.column_groups
    names = [-1] * similarity.shape[1] if named is None else [number.get(int(g), -1) for g in named]
    parts = list(similarity.members.values())
    starts = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([len(part) for part in parts], out=starts[1:])
    members = np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64)
    return np.array(names, np.int64), starts, members


def _sparse(kernel: SparseColumns) -> Sparse:
    data = kernel.data.astype(np.float32) if kernel.data.dtype == np.float16 else kernel.data
    indptr = _read_only(np.asarray(kernel.indptr, np.int64))
    return Sparse(indptr, _read_only(kernel.indices), _read_only(data), kernel.rows)


def _read_only(array: np.ndarray) -> np.ndarray:
    """One type of array for the compiled loops, whatever was given: contiguous and read only."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view
