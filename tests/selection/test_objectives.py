"""Objectives: their formulas, what they accept, and what submodularity promises."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from delift_pipeline.core.errors import InputError
from delift_pipeline.selection.objectives import (
    FL1MI,
    FL2MI,
    FLCG,
    FLMI,
    Coverage,
    FacilityLocation,
    evaluate,
    mean_random_value,
)

ROWS, N, TARGETS, EXISTING = 5, 6, 3, 2
# Multiples of 1/64 are summed exactly, so that equality can be asked for.
GRID = st.integers(0, 64).map(lambda k: k / 64)


def grids(rows: int, columns: int) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(np.float64, (rows, columns), elements=GRID)


def written_out(name: str, s: np.ndarray, other: np.ndarray, factor: float, a: list[int]) -> float:
    """The formulas of the docstrings, one sum at a time."""
    best = [max((s[i, j] for j in a), default=0.0) for i in range(len(s))]
    relevance = [other[:, j].max() for j in range(other.shape[1])]
    match name:
        case "fl":
            return sum(best)
        case "flmi":
            return sum(best) + factor * sum(relevance[j] for j in a)
        case "fl1mi":
            return sum(min(b, factor * r) for b, r in zip(best, relevance, strict=True))
        case "fl2mi":
            reached = [max((other[t, j] for j in a), default=0.0) for t in range(len(other))]
            return sum(reached) + factor * sum(relevance[j] for j in a)
        case _:
            held = [factor * other[i].max() for i in range(len(s))]
            return sum(max(b - h, 0.0) for b, h in zip(best, held, strict=True))


def make(name: str, s, other, factor: float) -> Coverage:
    return {
        "fl": lambda: FacilityLocation(s),
        "flmi": lambda: FLMI(s, other, factor),
        "fl1mi": lambda: FL1MI(s, other, factor),
        "fl2mi": lambda: FL2MI(other, factor),
        "flcg": lambda: FLCG(s, other, factor),
    }[name]()


@st.composite
def instances(draw: st.DrawFn) -> tuple[str, np.ndarray, np.ndarray, float]:
    name = draw(st.sampled_from(["fl", "flmi", "fl1mi", "fl2mi", "flcg"]))
    s = draw(grids(N if name == "fl1mi" else ROWS, N))
    other = draw(grids(ROWS, EXISTING) if name == "flcg" else grids(TARGETS, N))
    return name, s, other, draw(st.sampled_from([0.0, 0.5, 1.0, 2.0]))


@settings(max_examples=120, deadline=None)
@given(instances(), st.lists(st.integers(0, N - 1), unique=True))
def test_values_are_those_of_the_formulas(instance, subset: list[int]) -> None:
    assert evaluate(make(*instance), subset) == written_out(*instance, a=subset)


@settings(max_examples=120, deadline=None)
@given(instances(), st.permutations(range(N)), st.integers(0, N - 1))
def test_monotone_with_diminishing_returns(instance, order: list[int], last: int) -> None:
    objective = make(*instance)
    order = [j for j in order if j != last]
    former = objective.gain(last)
    for j in order:
        value, gain = objective.value, objective.gain(j)
        assert gain >= 0
        objective.add(j)
        assert objective.value == value + gain
        assert objective.gain(j) == objective.bonus[j]
        assert objective.gain(last) <= former
        former = objective.gain(last)


FORMS = {
    "fortran": np.asfortranarray,
    "row-ordered": np.ascontiguousarray,
    "strided": lambda k: np.repeat(np.repeat(k, 2, axis=0), 2, axis=1)[::2, ::2],
    "float32": lambda k: k.astype(np.float32),
    "float16": lambda k: k.astype(np.float16),
    "csc": sparse.csc_matrix,
    "csr": sparse.csr_matrix,
    "coo with parts": lambda k: sparse.coo_matrix(
        (
            np.concatenate([k.ravel() / 2] * 2),
            (
                np.tile(np.repeat(np.arange(k.shape[0]), k.shape[1]), 2),
                np.tile(np.arange(k.shape[1]), 2 * k.shape[0]),
            ),
        ),
        shape=k.shape,
    ),
}


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=25, deadline=None)
@given(instances(), st.lists(st.integers(0, N - 1), unique=True))
def test_every_form_of_the_kernel_gives_the_same_gains(form: str, instance, subset) -> None:
    name, s, other, factor = instance
    plain, formed = make(*instance), make(name, FORMS[form](s), FORMS[form](other), factor)
    everything = np.arange(N)
    assert (plain.gains(everything) == formed.gains(everything)).all()
    assert evaluate(plain, subset) == evaluate(formed, subset)


def test_orientation_rows_are_helped_and_columns_help() -> None:
    # Column 0 helps every row a little; row 0 is helped by every column a lot.
    kernel = np.array([[0.2, 0.9, 0.9], [0.2, 0.0, 0.0], [0.2, 0.0, 0.0]])
    gains = FacilityLocation(kernel).gains(np.arange(3))
    assert gains == pytest.approx([0.6, 0.9, 0.9])


def test_memory_maps_are_read_where_they_lie(tmp_path) -> None:
    kernel = np.random.default_rng(0).random((40, 30)).astype(np.float32)
    for order in ("F", "C"):
        np.save(tmp_path / "k.npy", np.asarray(kernel, order=order))
        mapped = np.load(tmp_path / "k.npy", mmap_mode="r")
        objective = FacilityLocation(mapped)
        assert objective.kernel.matrix is mapped  # pyright: ignore[reportAttributeAccessIssue]
        assert (
            objective.gains(np.arange(30)) == FacilityLocation(kernel).gains(np.arange(30))
        ).all()


def test_weights_count_targets() -> None:
    kernel = np.eye(3)
    objective = FacilityLocation(kernel, weights=np.array([1.0, 2.0, 0.0]))
    assert objective.gains(np.arange(3)).tolist() == [1.0, 2.0, 0.0]
    assert evaluate(objective, [0, 1, 2]) == 3.0


GOOD = np.full((3, 3), 0.5)


def spoiled(value: float, form) -> object:
    kernel = GOOD.copy()
    kernel[1, 2] = value
    return form(kernel)


@pytest.mark.parametrize("form", [np.asarray, sparse.csc_matrix])
@pytest.mark.parametrize(
    ("value", "sentence"),
    [(np.nan, "missing or infinite"), (np.inf, "missing or infinite"), (-0.1, "negative")],
)
def test_bad_values_are_refused_with_the_column(form, value: float, sentence: str) -> None:
    with pytest.raises(InputError, match=f"{sentence} value in column 2"):
        FacilityLocation(spoiled(value, form))
    with pytest.raises(InputError, match=f"kernel of existing records has a.* {sentence}"):
        FLCG(GOOD, spoiled(value, form))


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: FacilityLocation(np.zeros(3)), "1 dimensions"),
        (lambda: FacilityLocation(np.zeros((3, 3), dtype=int)), "int64"),
        (lambda: FacilityLocation([[0.1]]), "is a list"),
        (lambda: FLMI(GOOD, np.zeros((2, 4))), r"bonus has shape \(4,\)"),
        (lambda: FL1MI(GOOD, np.zeros((2, 4))), r"cap has shape \(4,\)"),
        (lambda: FLCG(GOOD, np.zeros((2, 3))), r"floor has shape \(2,\)"),
        (lambda: FLMI(GOOD, GOOD, eta=-1.0), "eta is -1.0"),
        (lambda: FLCG(GOOD, GOOD, nu=float("nan")), "nu is nan"),
        (lambda: FacilityLocation(GOOD, weights=np.array([1, -1, 1])), "weights has"),
    ],
)
def test_wrong_shapes_and_factors_are_one_sentence(build, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        build()


def test_random_subsets_are_averaged_with_a_seed() -> None:
    kernel = np.random.default_rng(1).random((6, 6))
    objective = FacilityLocation(kernel)
    mean = mean_random_value(objective, 2, seed=3, draws=400)
    pairs = [evaluate(objective, pair) for pair in itertools.combinations(range(6), 2)]
    assert mean == pytest.approx(np.mean(pairs), rel=0.05)
    assert mean == mean_random_value(objective, 2, seed=3, draws=400)
    assert objective.value == 0
