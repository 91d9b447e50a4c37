"""One name for what dense and sparse kernels each do in their own way; numba chooses by type."""

from collections.abc import Callable
from typing import Any

from numba.extending import overload

from delift_pipeline.selection.loops import dense, sparse


def lift(kernel, terms, j) -> Any:
    """Lift of column j."""


def checked_lift(kernel, terms, j) -> Any:
    """Lift of column j, and how many of its values are negative or not finite."""


def cover_all(kernel, terms, j) -> Any:
    """Cover with column j."""


def fault(kernel, start, end) -> Any:
    """The first of columns start to end with a value that is negative or not finite, or -1."""


def take(kernel, terms, memory, j) -> Any:
    """Cover with column j, by what is remembered of it."""


def look(kernel, terms, memory, j, now) -> Any:
    """Lift of column j, or an upper bound of it where that is quicker and not known yet."""


def size(kernel, memory, j, now) -> Any:
    """How many values a look at column j reads."""


def _chosen(kernel: Any, for_dense: Callable[..., Any], for_sparse: Callable[..., Any]) -> Any:
    return for_sparse if "indptr" in kernel.fields else for_dense


@overload(lift)
def _lift(kernel, terms, j):
    chosen = _chosen(kernel, dense.dense_lift, sparse.sparse_lift)
    return lambda kernel, terms, j: chosen(kernel, terms, j)


@overload(checked_lift)
def _checked_lift(kernel, terms, j):
    chosen = _chosen(kernel, dense.dense_checked_lift, sparse.sparse_checked_lift)
    return lambda kernel, terms, j: chosen(kernel, terms, j)


@overload(cover_all)
def _cover_all(kernel, terms, j):
    chosen = _chosen(kernel, dense.dense_cover, sparse.sparse_cover)
    return lambda kernel, terms, j: chosen(kernel, terms, j)


@overload(fault)
def _fault(kernel, start, end):
    chosen = _chosen(kernel, dense.dense_fault, sparse.sparse_fault)
    return lambda kernel, start, end: chosen(kernel, start, end)


@overload(take)
def _take(kernel, terms, memory, j):
    chosen = _chosen(kernel, dense.dense_take, sparse.sparse_take)
    return lambda kernel, terms, memory, j: chosen(kernel, terms, memory, j)


@overload(look)
def _look(kernel, terms, memory, j, now):
    chosen = _chosen(kernel, dense.dense_look, sparse.sparse_look)
    return lambda kernel, terms, memory, j, now: chosen(kernel, terms, memory, j, now)


@overload(size)
def _size(kernel, memory, j, now):
    chosen = _chosen(kernel, dense.dense_size, sparse.sparse_size)
    return lambda kernel, memory, j, now: chosen(kernel, memory, j, now)
