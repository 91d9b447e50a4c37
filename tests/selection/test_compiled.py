"""The compiled loops against NumPy: the same gains, rankings and refusals from every kernel."""

from collections.abc import Iterator

import numpy as np
import pytest
from scipy import sparse

from delift_pipeline.core.errors import InputError
from delift_pipeline.kernel.block import AffineMap, RowScaledColumns, Similarity, common_affine
from delift_pipeline.kernel.columns import (
    Columns,
    DenseColumns,
    RestrictedColumns,
    as_columns,
    materialise,
    to_dense,
    to_sparse,
)
from delift_pipeline.selection import objectives
from delift_pipeline.selection.objectives import (
    FL1MI,
    FL2MI,
    FLCG,
    FLMI,
    Coverage,
    FacilityLocation,
    evaluate,
)
from delift_pipeline.selection.optimizers import lazy_greedy, naive_greedy

KINDS = ("fl", "weighted", "flmi", "fl1mi", "fl2mi", "flcg")


@pytest.fixture(autouse=True)
def whatever_was_set() -> Iterator[None]:
    """Puts back from which size on kernels are read by compiled loops."""
    before = objectives.COMPILED_FROM
    yield
    objectives.COMPILED_FROM = before


def make(kind: str, kernel: Columns, rng: np.random.Generator, compiled: bool) -> Coverage:
    objectives.COMPILED_FROM = 0 if compiled else 1 << 60
    rows, n = kernel.shape
    target, existing, weights = rng.random((4, n)), rng.random((rows, 3)), rng.random(rows)
    built = {
        "fl": lambda: FacilityLocation(kernel),
        "weighted": lambda: FacilityLocation(kernel, weights),
        "flmi": lambda: FLMI(kernel, target, 0.7),
        "fl1mi": lambda: FL1MI(kernel, target, 0.7),
        "fl2mi": lambda: FL2MI(target, 0.5),
        "flcg": lambda: FLCG(kernel, existing, 0.8),
    }[kind]()
    assert (built.compiled is not None) == compiled
    return built


def kernel_of(seed: int) -> Columns:
    """A kernel of some type, order, restriction, scaling and mask."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 300))
    raw = (rng.random((n, n)) - 0.3).astype([np.float32, np.float16, np.float64][seed % 3])
    source: Columns = DenseColumns(np.asfortranarray(raw) if seed % 2 else raw)
    if seed % 4 == 0:
        rows, columns = rng.permutation(n), rng.permutation(n)
        source = RestrictedColumns(RowScaledColumns(source, rng.random(n) + 0.5), rows, columns)
    if seed % 5 == 1:
        thin = np.where(rng.random((n, n)) < 0.1, raw.astype(np.float32), 0)
        source = as_columns(sparse.csc_matrix(thin))
    groups = rng.integers(0, n, n)
    affine = AffineMap(-0.3, 0.7) if seed % 7 == 0 else AffineMap(1, 1) if seed % 7 == 3 else None
    return materialise(Similarity(source, affine, (groups, groups) if seed % 3 else None))


@pytest.mark.parametrize("seed", range(15))
def test_numpy_and_compiled_loops_agree(seed: int) -> None:
    kernel = kernel_of(seed)
    n = kernel.shape[1]
    tie = np.random.default_rng(seed).permutation(n)
    for kind in KINDS:
        plain, quick = (make(kind, kernel, np.random.default_rng(seed), c) for c in (False, True))
        everything = np.arange(n)
        assert quick.gains(everything) == pytest.approx(plain.gains(everything), rel=1e-12)
        short = naive_greedy(quick, min(n, 20), tie)
        ours, theirs = (lazy_greedy(one, n // 2 + 1, tie) for one in (plain, quick))
        assert theirs.picks[: len(short.picks)].tolist() == short.picks[: n // 2 + 1].tolist()
        assert theirs.gains[: len(short.gains)].tolist() == short.gains[: n // 2 + 1].tolist()
        assert ours.gains == pytest.approx(theirs.gains, rel=1e-9, abs=1e-12)
        assert (np.diff(theirs.gains) <= 0).all()
        assert quick.value == pytest.approx(plain.value, rel=1e-12)
        assert evaluate(quick, theirs.picks) == pytest.approx(theirs.gains.sum(), rel=1e-12)


@pytest.mark.parametrize("seed", [1, 6, 11])
def test_sparse_wrappers_flatten_to_what_they_read(seed: int) -> None:
    kernel = kernel_of(seed)
    n = kernel.shape[1]
    part = RestrictedColumns(kernel, np.arange(n)[::-2], np.arange(n)[::3])
    for matrix in (kernel, part, RowScaledColumns(part, np.linspace(0, 1, part.shape[0]))):
        flat = to_sparse(matrix)
        assert (to_dense(flat) == to_dense(matrix)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("form", [np.asarray, np.asfortranarray, sparse.csc_matrix])
def test_bad_values_are_named_by_the_compiled_check(value: float, dtype: type, form) -> None:
    objectives.COMPILED_FROM = 0
    kernel = np.full((5, 6), 0.5, dtype)
    kernel[3, 4] = value
    if form is sparse.csc_matrix and dtype is np.float16:
        kernel = kernel.astype(np.float32)
    with pytest.raises(InputError, match="value in column 4"):
        FacilityLocation(form(kernel))


FORMS = {
    "row-ordered": np.ascontiguousarray,
    "fortran": np.asfortranarray,
    "strided": lambda k: np.repeat(np.repeat(k, 2, axis=0), 3, axis=1)[::2, ::3],
    "backwards": lambda k: np.ascontiguousarray(k[::-1, ::-1])[::-1, ::-1],
    "transposed view": lambda k: np.ascontiguousarray(k.T).T,
    "read only": lambda k: np.frombuffer(k.tobytes(), k.dtype).reshape(k.shape),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(40, 30), (7, 90), (1, 5), (300, 1)])
def test_every_memory_order_reads_the_same_through_the_compiled_loops(form: str, shape) -> None:
    kernel = np.random.default_rng(shape[0]).random(shape).astype(np.float32)
    n, tie = shape[1], np.random.default_rng(1).permutation(shape[1])
    objectives.COMPILED_FROM = 1 << 60
    plain = naive_greedy(FacilityLocation(kernel), n, tie)
    objectives.COMPILED_FROM = 0
    formed = lazy_greedy(FacilityLocation(FORMS[form](kernel)), n, tie)
    assert formed.gains == pytest.approx(plain.gains, rel=1e-12, abs=1e-12)
    paying = plain.gains > 1e-9
    assert formed.picks[paying].tolist() == plain.picks[paying].tolist()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda k: FacilityLocation(k[0]), "1 dimensions"),
        (lambda k: FacilityLocation(k > 0.5), "holds bool"),
        (lambda k: FacilityLocation(k.astype(np.complex64)), "holds complex64"),
        (lambda k: FLMI(k, k[:, :-1]), r"bonus has shape \(29,\)"),
        (lambda k: FLCG(k, k[:-1]), r"floor has shape \(39,\)"),
        (lambda k: FacilityLocation(k, np.ones(30)), r"weights has shape \(30,\)"),
        (lambda k: FacilityLocation(k, np.full(40, np.nan)), "weights has a missing"),
        (lambda k: lazy_greedy(FacilityLocation(k), 31, np.arange(30)), "31 picks"),
        (lambda k: lazy_greedy(FacilityLocation(k), -1, np.arange(30)), "-1 picks"),
        (lambda k: lazy_greedy(FacilityLocation(k), 3, np.arange(29)), "29 ids"),
    ],
)
def test_wrong_shapes_and_budgets_are_one_sentence(compiled: bool, build, sentence: str) -> None:
    objectives.COMPILED_FROM = 0 if compiled else 1 << 60
    with pytest.raises(InputError, match=sentence):
        build(np.asfortranarray(np.random.default_rng(0).random((40, 30), np.float32)))


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_kernels_of_one_value_are_ranked_by_the_order_of_ties(value: float) -> None:
    objectives.COMPILED_FROM = 0
    tie = np.random.default_rng(5).permutation(64)
    ranking = lazy_greedy(FacilityLocation(np.full((64, 64), value, np.float32)), 64, tie)
    assert ranking.picks.tolist() == np.argsort(tie).tolist()
    assert ranking.gains.tolist() == [64 * value] + [0.0] * 63


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_kernels_without_rows_or_columns_gain_nothing(shape) -> None:
    objectives.COMPILED_FROM = 0
    ranking = lazy_greedy(FacilityLocation(np.zeros(shape)), shape[1], np.arange(shape[1]))
    assert ranking.gains.tolist() == [0.0] * shape[1]
    assert ranking.picks.tolist() == list(range(shape[1]))


def test_one_record_and_equal_kernels_through_the_compiled_loops() -> None:
    objectives.COMPILED_FROM = 0
    alone = lazy_greedy(FacilityLocation(np.array([[0.5]])), 1, np.arange(1))
    assert (alone.picks.tolist(), alone.gains.tolist()) == ([0], [0.5])
    equal = lazy_greedy(FacilityLocation(np.full((4, 4), 0.5)), 4, np.array([3, 1, 2, 0]))
    assert (equal.picks.tolist(), equal.gains.tolist()) == ([3, 1, 2, 0], [2.0, 0, 0, 0])


def test_every_half_precision_number_is_read_exactly() -> None:
    objectives.COMPILED_FROM = 0
    every = np.arange(1 << 15, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)][None, :]
    read = FacilityLocation(np.asfortranarray(finite)).gains(np.arange(finite.shape[1]))
    assert (read == finite[0].astype(np.float64)).all()


def test_a_memory_map_is_not_copied_and_its_range_is_found(tmp_path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "k.npy", np.asfortranarray(rng.random((50, 40), np.float32) - 0.5))
    mapped = np.load(tmp_path / "k.npy", mmap_mode="r")
    blocks = [Similarity(as_columns(mapped), None, (np.arange(50), np.arange(40)))]
    plain = common_affine(blocks)
    objectives.COMPILED_FROM = 0
    assert plain == AffineMap(float(mapped.min()), float(mapped.max()))
    np.save(tmp_path / "s.npy", np.asfortranarray(mapped + 0.5))
    helpful = np.load(tmp_path / "s.npy", mmap_mode="r")
    objective = FacilityLocation(helpful)
    assert objective.compiled is not None
    assert np.shares_memory(objective.compiled.data, helpful)
