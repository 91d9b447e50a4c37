"""From utilities to kernels: clipping, one common scale, and the masks."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from delift_pipeline.core.errors import DeliftError
from delift_pipeline.core.plots import heat_map_png
from delift_pipeline.kernel.block import (
    AffineMap,
    Block,
    RowScaledColumns,
    Similarity,
    common_affine,
    duplicate_groups,
)
from delift_pipeline.kernel.columns import (
    RestrictedColumns,
    as_columns,
    cell_means,
    column_maxima,
    materialise,
    row_maxima,
    to_dense,
)

UTILITY = np.array([[0.9, -0.5, 0.2], [0.1, 0.8, -0.3], [-0.1, 0.4, 0.7]], dtype=np.float32)
OWN = (np.arange(3), np.arange(3))


def dense(matrix) -> np.ndarray:
    return to_dense(matrix)


def test_clipping_keeps_what_helps() -> None:
    assert (dense(Similarity(as_columns(UTILITY))) == np.maximum(UTILITY, 0)).all()


def test_the_diagonal_is_masked_in_dense_and_sparse() -> None:
    wanted = np.maximum(UTILITY, 0)
    np.fill_diagonal(wanted, 0)
    for form in (UTILITY, sparse.csc_matrix(UTILITY)):
        assert (dense(Similarity(as_columns(form), None, OWN)) == wanted).all()


def test_exact_copies_are_masked_with_the_diagonal() -> None:
    groups = (np.array([4, 7, 4]), np.array([4, 7, 4]))
    masked = dense(Similarity(as_columns(UTILITY), None, groups))
    assert masked[0, 2] == masked[2, 0] == masked[0, 0] == masked[2, 2] == masked[1, 1] == 0
    assert masked[2, 1] == np.float32(0.4)


def test_rectangular_masks_follow_groups_and_not_places() -> None:
    masked = dense(
        Similarity(as_columns(UTILITY[:2]), None, (np.array([5, 9]), np.array([9, 1, 5])))
    )
    assert masked[1, 0] == masked[0, 2] == 0
    assert masked[0, 0] == np.float32(0.9)


def test_one_affine_map_scales_every_block() -> None:
    own, other = as_columns(UTILITY), as_columns(np.array([[-1.0, 0.6]], dtype=np.float32))
    affine = common_affine([Similarity(own, None, OWN), Similarity(other)])
    # The masked diagonal, 0.9 at its greatest, has no say.
    assert (affine.low, affine.high) == pytest.approx((-1.0, 0.6))
    scaled = dense(Similarity(other, affine))
    assert scaled == pytest.approx(np.array([[0.0, 1.0]]))
    own_scaled = dense(Similarity(own, affine, OWN))
    assert own_scaled[0, 1] == pytest.approx((-0.5 + 1) / 1.6)
    assert (np.diag(own_scaled) == 0).all()


def test_utilities_that_do_not_differ_scale_to_zero() -> None:
    same = Similarity(as_columns(np.full((2, 2), 0.3, np.float32)))
    assert not dense(Similarity(as_columns(UTILITY), common_affine([same]))).any()
    empty = Similarity(as_columns(np.zeros((0, 2), np.float32)))
    assert common_affine([empty]) == common_affine([]) == AffineMap(0.0, 0.0)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float32, (4, 5), elements=st.floats(-1, 1, width=32)),
    st.permutations(range(4)),
    st.permutations(range(5)),
    st.integers(0, 4),
    st.booleans(),
)
def test_restrictions_are_fancy_indexing(matrix, rows, columns, count, thin) -> None:
    rows, columns = np.array(rows[:count], dtype=int), np.array(columns[:count], dtype=int)
    source = as_columns(sparse.csc_matrix(matrix) if thin else matrix)
    part = RestrictedColumns(source, rows, columns)
    wanted = matrix[np.ix_(rows, columns)]
    assert part.shape == wanted.shape
    assert (dense(part) == wanted).all() and (dense(materialise(part)) == wanted).all()
    assert (dense(materialise(part, limit=0)) == wanted).all()


def test_maxima_count_absent_entries_as_zero() -> None:
    kernel = np.array([[0.5, 0.0], [0.0, 0.0], [0.25, 0.0]])
    for form in (kernel, sparse.csc_matrix(kernel)):
        assert column_maxima(as_columns(form)).tolist() == [0.5, 0.0]
        assert row_maxima(as_columns(form)).tolist() == [0.5, 0.0, 0.25]


def test_rows_are_scaled_as_they_are_read() -> None:
    factors = np.array([1.0, 0.5, 2.0])
    for form in (UTILITY, sparse.csc_matrix(UTILITY)):
        assert dense(RowScaledColumns(as_columns(form), factors)) == pytest.approx(
            UTILITY * factors[:, None]
        )


def records(**columns: list[str]) -> pl.DataFrame:
    return pl.DataFrame(columns)


def test_copies_are_the_same_prompt_text_and_answer() -> None:
    groups = duplicate_groups(
        records(
            record_id=["a", "b", "c", "d"],
            instruction=["add", "add\n1", "add", "add"],
            input=["1", "", "1", "2"],
            output=["x", "x ", "y", "x"],
        )
    )
    assert groups["a"] == groups["b"]
    assert len({groups["a"], groups["c"], groups["d"]}) == 3


BLOCK = Block("self", tuple("abc"), tuple("abc"), as_columns(UTILITY), "h", frozenset("z"))


def test_blocks_are_restricted_by_record_id() -> None:
    part = BLOCK.restrict(["c", "z", "a"], ["b"])
    assert (part.rows, part.columns, part.hash) == (("c", "a"), ("b",), "h")
    assert (dense(part.matrix) == UTILITY[[2, 0]][:, [1]]).all()


def test_records_that_nobody_knows_of_are_an_error() -> None:
    with pytest.raises(DeliftError, match=r"block self lacks 2 of 3 targets \(the first is q\)"):
        BLOCK.restrict(["a", "q", "r"], ["a"])


def test_heat_maps_are_means_of_cells() -> None:
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    block = Block("target", tuple("abcd"), tuple("uvwxyz"), as_columns(values))
    wanted = values.reshape(2, 2, 2, 3).mean(axis=(1, 3))
    assert cell_means(block.matrix, 2) == pytest.approx(wanted)
    thin = Block("x", block.rows, block.columns, as_columns(sparse.csc_matrix(values)))
    assert cell_means(thin.matrix, 2) == pytest.approx(wanted)
    assert (cell_means(block.matrix) == values).all()


@pytest.mark.parametrize("shape", [(4, 6), (0, 3), (1, 1)])
def test_heat_maps_are_pictures_of_the_same_bytes(shape) -> None:
    block = Block("b", ("r",) * shape[0], ("c",) * shape[1], as_columns(np.zeros(shape)))
    picture = heat_map_png(cell_means(block.matrix), block.name)
    assert picture.startswith(b"\x89PNG")
    assert picture == heat_map_png(cell_means(block.matrix), block.name)
