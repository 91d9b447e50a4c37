"""Greedy optimizers: the same ranking from all of them, near the best subset there is."""

import functools
import itertools
import math

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
)
from delift_pipeline.selection.optimizers import (
    lazy_greedy,
    naive_greedy,
    stochastic_greedy,
    tie_order_of,
)

BOUND = 1 - 1 / math.e
# Few distinct values, summed exactly: ties everywhere.
GRID = st.integers(0, 4).map(lambda k: k / 4)


@st.composite
def kernels(draw: st.DrawFn) -> np.ndarray:
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 9)))
    return draw(hnp.arrays(np.float64, shape, elements=GRID))


def random_objective(rng: np.random.Generator, n: int) -> Coverage:
    kernel, target = rng.random((n, n)), rng.random((4, n))
    match int(rng.integers(5)):
        case 0:
            return FacilityLocation(kernel[: int(rng.integers(1, n + 1))])
        case 1:
            return FLMI(kernel, target, float(rng.random() * 3))
        case 2:
            return FL1MI(kernel, target, float(rng.random() * 2))
        case 3:
            return FL2MI(target, float(rng.random() * 3))
        case _:
            return FLCG(kernel, rng.random((n, 3)), float(rng.random()))


def names(n: int) -> list[str]:
    return [f"{(j * 7919) % 10007:05d}" for j in range(n)]


@settings(max_examples=150, deadline=None)
@given(kernels(), st.data())
def test_lazy_equals_naive_ties_included(kernel: np.ndarray, data: st.DataObject) -> None:
    n = kernel.shape[1]
    budget = data.draw(st.integers(0, n))
    order = np.array(data.draw(st.permutations(range(n))))
    naive = naive_greedy(FacilityLocation(kernel), budget, order)
    lazy = lazy_greedy(FacilityLocation(kernel), budget, order)
    assert lazy.picks.tolist() == naive.picks.tolist()
    assert lazy.gains.tolist() == naive.gains.tolist()


@settings(max_examples=60, deadline=None)
@given(kernels(), st.data())
def test_rankings_do_not_depend_on_the_order_of_the_file(kernel, data: st.DataObject) -> None:
    rows, n = kernel.shape
    ids = names(n)
    moved = data.draw(st.permutations(range(n)))
    rows_moved = data.draw(st.permutations(range(rows)))
    plain = lazy_greedy(FacilityLocation(kernel), n, tie_order_of(ids))
    moved_ids = [ids[j] for j in moved]
    other = lazy_greedy(FacilityLocation(kernel[rows_moved][:, moved]), n, tie_order_of(moved_ids))
    assert [moved_ids[j] for j in other.picks] == [ids[j] for j in plain.picks]
    assert other.gains.tolist() == plain.gains.tolist()


@settings(max_examples=60, deadline=None)
@given(kernels(), st.integers(1, 4))
def test_added_all_zero_columns_change_nothing(kernel: np.ndarray, zeros: int) -> None:
    n = kernel.shape[1]
    wider = np.hstack([kernel, np.zeros((kernel.shape[0], zeros))])
    plain = lazy_greedy(FacilityLocation(kernel), n, np.arange(n))
    padded = lazy_greedy(FacilityLocation(wider), n, np.arange(n + zeros))
    useful = plain.gains > 0
    assert padded.picks[: useful.sum()].tolist() == plain.picks[useful].tolist()
    assert padded.gains.tolist() == plain.gains.tolist()


@pytest.mark.parametrize("seed", range(30))
def test_every_objective_dense_and_sparse_ranks_alike(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 40))
    objective = random_objective(rng, n)
    naive = naive_greedy(objective, n, np.arange(n))
    lazy = lazy_greedy(objective, n, np.arange(n))
    assert lazy.picks.tolist() == naive.picks.tolist()
    assert (np.diff(lazy.gains) <= 0).all()
    assert len(set(lazy.picks.tolist())) == n
    assert evaluate(objective, lazy.picks) == pytest.approx(lazy.gains.sum(), rel=1e-12)
    kernel = rng.random((n, n)) * (rng.random((n, n)) < 0.3)
    dense, thin = FacilityLocation(kernel), FacilityLocation(sparse.csc_matrix(kernel))
    rankings = [lazy_greedy(o, n, np.arange(n)) for o in (dense, thin)]
    assert rankings[0].gains == pytest.approx(rankings[1].gains, rel=1e-12, abs=1e-12)
    paying = rankings[0].gains > 1e-9
    assert (rankings[0].picks[paying] == rankings[1].picks[paying]).all()


@pytest.mark.parametrize("seed", range(500))
def test_greedy_keeps_its_bound_against_brute_force(seed: int) -> None:
    rng = np.random.default_rng(1000 + seed)
    n = int(rng.integers(2, 13))
    budget = int(rng.integers(1, min(n, 4) + 1))
    objective = random_objective(rng, n)
    ranking = lazy_greedy(objective, budget, np.arange(n))
    best = max(evaluate(objective, some) for some in itertools.combinations(range(n), budget))
    assert BOUND * best - 1e-12 <= ranking.gains.sum() <= best + 1e-9


@pytest.mark.parametrize(
    "optimizer", [naive_greedy, lazy_greedy, functools.partial(stochastic_greedy, seed=5)]
)
class TestEveryOptimizer:
    def test_smaller_budgets_are_prefixes(self, optimizer) -> None:
        kernel = np.random.default_rng(2).random((30, 30))
        longest = optimizer(FacilityLocation(kernel), 30, np.arange(30))
        assert sorted(longest.picks.tolist()) == list(range(30))
        for budget in (0, 1, 7, 29):
            some = optimizer(FacilityLocation(kernel), budget, np.arange(30))
            assert some.picks.tolist() == longest.picks[:budget].tolist()
            assert some.gains.tolist() == longest.gains[:budget].tolist()

    def test_one_candidate_and_equal_candidates(self, optimizer) -> None:
        alone = optimizer(FacilityLocation(np.array([[0.5]])), 1, np.arange(1))
        assert (alone.picks.tolist(), alone.gains.tolist()) == ([0], [0.5])
        equal = optimizer(FacilityLocation(np.full((4, 4), 0.5)), 4, tie_order_of(list("dbca")))
        assert equal.gains.tolist() == [2.0, 0.0, 0.0, 0.0]
        if optimizer in (naive_greedy, lazy_greedy):
            assert equal.picks.tolist() == [3, 1, 2, 0]

    def test_budgets_and_ids_that_do_not_fit_are_refused(self, optimizer) -> None:
        objective = FacilityLocation(np.eye(3))
        with pytest.raises(InputError, match=r"4 picks.* 0 to 3"):
            optimizer(objective, 4, np.arange(3))
        with pytest.raises(InputError, match="-1 picks"):
            optimizer(objective, -1, np.arange(3))
        with pytest.raises(InputError, match="2 ids"):
            optimizer(objective, 1, np.arange(2))


def test_stochastic_greedy_is_seeded_and_near_lazy() -> None:
    rng = np.random.default_rng(3)
    points = rng.random((300, 2))
    kernel = np.exp(-40 * ((points[:, None] - points[None]) ** 2).sum(-1))
    lazy, one, same, other = (
        run(FacilityLocation(kernel), 30, np.arange(300))
        for run in (
            lazy_greedy,
            functools.partial(stochastic_greedy, seed=1),
            functools.partial(stochastic_greedy, seed=1),
            functools.partial(stochastic_greedy, seed=2),
        )
    )
    assert one.picks.tolist() == same.picks.tolist() != other.picks.tolist()
    assert one.gains.sum() > 0.9 * lazy.gains.sum()


def test_lazy_looks_at_few_candidates() -> None:
    rng = np.random.default_rng(4)
    points = rng.random((400, 2))
    objective = FacilityLocation(np.exp(-40 * ((points[:, None] - points[None]) ** 2).sum(-1)))
    assert lazy_greedy(objective, 100, np.arange(400)).computed < 0.2 * 400 * 100
