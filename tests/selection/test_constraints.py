"""Budgets, quotas, pins and caps: kept to by every optimizer, and refused where they cannot be."""

import functools
import itertools
import math
from collections.abc import Iterator

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delift_pipeline.core.errors import InputError
from delift_pipeline.selection import objectives
from delift_pipeline.selection.budget import Budget, parse_budget, token_costs
from delift_pipeline.selection.constraints import Constraints, Grouping
from delift_pipeline.selection.objectives import FLCG, FacilityLocation, evaluate
from delift_pipeline.selection.optimizers import (
    blocked_greedy,
    knee_of,
    lazier_than_lazy_greedy,
    lazy_greedy,
    naive_greedy,
    stochastic_greedy,
)
from delift_pipeline.selection.rules import Quota, Rules

OPTIMIZERS = {
    "naive": naive_greedy,
    "lazy": lazy_greedy,
    "blocked": functools.partial(blocked_greedy, block=5),
    "stochastic": stochastic_greedy,
    "lazier": lazier_than_lazy_greedy,
}
SAME = ("naive", "lazy", "blocked")


@pytest.fixture(autouse=True)
def whatever_was_set() -> Iterator[None]:
    """Puts back from which size on kernels are read by compiled loops."""
    before = objectives.COMPILED_FROM
    yield
    objectives.COMPILED_FROM = before


@st.composite
def constrained(draw: st.DrawFn) -> tuple[np.ndarray, int, Constraints]:
    """A kernel, a budget, and constraints that some subset keeps to."""
    n = draw(st.integers(2, 20))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    groups = int(rng.integers(1, 4))
    witness = rng.permutation(n)[: int(rng.integers(1, n + 1))]
    of = rng.integers(0, groups, n)
    there = np.bincount(of[witness], minlength=groups)
    low = np.maximum(there - rng.integers(0, 3, groups), 0)
    grouping = Grouping("task", tuple("abc"[:groups]), of, low, there + rng.integers(0, 2, groups))
    banned = np.setdiff1d(rng.permutation(n)[: n // 4], witness)
    pinned = witness[: int(rng.integers(0, 2))]
    kernel = rng.integers(0, 5, (n, n)) / 4
    limits = Constraints(tuple(pinned.tolist()), tuple(banned.tolist()), (grouping,))
    return kernel, len(witness), limits


@settings(max_examples=80, deadline=None)
@given(constrained(), st.booleans())
def test_every_optimizer_keeps_quotas_and_pins(instance, compiled: bool) -> None:
    kernel, budget, constraints = instance
    objectives.COMPILED_FROM = 0 if compiled else 1 << 60
    grouping, found = constraints.groupings[0], {}
    for name, optimizer in OPTIMIZERS.items():
        objective = FacilityLocation(kernel)
        ranking = optimizer(objective, budget, np.arange(len(kernel)), constraints)
        picks = ranking.picks.tolist()
        assert len(set(picks)) == budget
        assert set(constraints.pinned) <= set(picks) and not set(constraints.excluded) & set(picks)
        counts = np.bincount(grouping.of[picks], minlength=len(grouping.groups))
        assert (grouping.low <= counts).all() and (counts <= grouping.high).all()
        assert objective.value == pytest.approx(ranking.gains.sum())
        found[name] = picks
    assert found["naive"] == found["lazy"] == found["blocked"]
    assert found["stochastic"] == found["lazier"]


@pytest.mark.parametrize("seed", range(60))
def test_one_partition_of_quotas_keeps_half_of_the_best(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, budget = int(rng.integers(4, 10)), 3
    of = np.arange(n) % 2
    low, high = np.array([1, 0]), np.array([2, 2])
    objective = FacilityLocation(rng.random((n, n)))
    limits = Constraints(groupings=(Grouping("task", ("a", "b"), of, low, high),))
    got = lazy_greedy(objective, budget, np.arange(n), limits).gains.sum()
    kept = (s for s in itertools.combinations(range(n), budget) if 1 <= sum(of[list(s)] == 0) <= 2)
    assert got >= max(evaluate(objective, s) for s in kept) / 2


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("seed", range(12))
def test_costs_are_kept_and_the_bound_holds(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    objectives.COMPILED_FROM = 0 if seed % 2 else 1 << 60
    n = 9
    costs, capacity = rng.integers(1, 9, n).astype(float), 12.0
    objective = FacilityLocation(rng.random((n, n)))
    sample = {"sample": 1.0} if name in ("stochastic", "lazier") else {}
    limits = Constraints(costs=costs, capacity=capacity)
    ranking = OPTIMIZERS[name](objective, n, np.arange(n), limits, **sample)
    assert costs[ranking.picks].sum() <= capacity
    subsets = itertools.chain(*(itertools.combinations(range(n), k) for k in range(n + 1)))
    best = max(evaluate(objective, s) for s in subsets if costs[list(s)].sum() <= capacity)
    assert ranking.gains.sum() >= (1 - 1 / math.e) / 2 * best
    reference = naive_greedy(objective, n, np.arange(n), limits)
    assert ranking.picks.tolist() == reference.picks.tolist()


def test_one_dear_record_does_not_lose_to_a_cheap_one() -> None:
    # By gain a unit of cost alone, record 0 would be taken and nothing else would fit.
    objective = FacilityLocation(np.diag([0.2, 1.0]))
    limits = Constraints(costs=np.array([1.0, 10.0]), capacity=10.0)
    assert lazy_greedy(objective, 2, np.arange(2), limits).picks.tolist() == [1]
    assert objective.value == 1.0


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("compiled", [False, True])
def test_auto_stops_where_gains_no_longer_pay(name: str, compiled: bool) -> None:
    objectives.COMPILED_FROM = 0 if compiled else 1 << 60
    objective = FacilityLocation(np.diag([8.0, 4.0, 2.0, 1.0, 0.5]))
    ranking = OPTIMIZERS[name](objective, 5, np.arange(5), Constraints(stop=0.25))
    assert ranking.gains.tolist() == [8.0, 4.0, 2.0]
    assert objective.value == 14.0


@pytest.mark.parametrize(
    ("gains", "knee"), [([], 0), ([0.0, 0.0], 1), ([3.0], 1), ([8, 4, 1, 1, 1], 2), ([1, 1, 1], 1)]
)
def test_the_knee_of_a_gain_curve(gains: list[float], knee: int) -> None:
    assert knee_of(gains) == knee


def quota(low: list[int], high: list[int]) -> Grouping:
    return Grouping("task", ("a", "b"), np.array([0, 0, 1]), np.array(low), np.array(high))


@pytest.mark.parametrize(
    ("constraints", "sentence"),
    [
        (Constraints(pinned=(0,), excluded=(0,)), "both pinned and excluded"),
        (Constraints(pinned=(0, 1, 2)), "3 pinned records are above the budget"),
        (Constraints(pinned=(7,)), "3 candidates"),
        (Constraints(excluded=(0, 1)), "exclude: 2 of 3 records are excluded"),
        (Constraints(groupings=(quota([0, 0], [1, 0]),)), "at most 1 records of 2"),
        (Constraints(groupings=(quota([2, 1], [3, 3]),)), "at least 3 records of 2"),
        (Constraints(groupings=(quota([0, 2], [3, 3]),)), "b needs 2 to 3"),
        (Constraints(pinned=(2,), groupings=(quota([0, 0], [3, 0]),)), "1 are pinned"),
        (Constraints(costs=np.ones(2), capacity=1), "costs must be 3"),
        (Constraints(pinned=(0,), costs=np.full(3, 5.0), capacity=4), "cost 5, above 4"),
        (
            Constraints(groupings=(quota([0, 0], [1, 1]), quota([0, 1], [1, 1]))),
            None,
        ),
    ],
)
def test_what_no_subset_can_keep_is_one_sentence(constraints, sentence: str | None) -> None:
    if sentence is None:
        assert (
            len(lazy_greedy(FacilityLocation(np.eye(3)), 2, np.arange(3), constraints).picks) == 2
        )
        return
    with pytest.raises(InputError, match=sentence):
        lazy_greedy(FacilityLocation(np.eye(3)), 2, np.arange(3), constraints)


def test_quotas_that_exclude_each_other_are_refused_when_found() -> None:
    one = Grouping("task", ("a", "b"), np.array([0, 0, 1]), np.zeros(2, int), np.array([1, 1]))
    two = Grouping("source", ("x", "y"), np.array([0, 1, 0]), np.zeros(2, int), np.array([1, 1]))
    kernel = np.diag([3.0, 1.0, 1.0])
    with pytest.raises(InputError, match="conflict: after 1 picks"):
        lazy_greedy(FacilityLocation(kernel), 2, np.arange(3), Constraints(groupings=(one, two)))


@pytest.mark.parametrize("weights", [None, np.linspace(0, 1, 60)])
def test_tensors_rank_as_arrays_do(weights) -> None:
    kernel = np.random.default_rng(5).random((60, 60)).astype(np.float32)
    make = functools.partial(FacilityLocation, weights=weights)
    plain = lazy_greedy(make(kernel), 20, np.arange(60))
    moved = blocked_greedy(make(kernel), 20, np.arange(60), block=7, device="cpu")
    assert moved.picks.tolist() == plain.picks.tolist()
    assert moved.gains == pytest.approx(plain.gains)
    with pytest.raises(InputError, match="cannot be used"):
        blocked_greedy(make(kernel), 2, np.arange(60), device="nowhere")


def test_conditional_gains_rank_alike_on_tensors() -> None:
    rng = np.random.default_rng(6)
    objective = FLCG(rng.random((30, 30)), rng.random((30, 4)), 0.5)
    plain = lazy_greedy(objective, 10, np.arange(30))
    moved = blocked_greedy(objective, 10, np.arange(30), device="cpu")
    assert moved.picks.tolist() == plain.picks.tolist()


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        (0.3, Budget(3)),
        ("full", Budget(10)),
        ("20000tokens", Budget(10, tokens=20_000)),
        ("20_000 tokens", Budget(10, tokens=20_000)),
        ("auto", Budget(10, stop=0.01)),
        ("auto:0.05", Budget(10, stop=0.05)),
    ],
)
def test_budgets_of_every_kind(text: float | str, budget: Budget) -> None:
    assert parse_budget(text, 10) == budget


@pytest.mark.parametrize("text", ["0tokens", "tokens", "auto:0", "auto:2", "autos", "1.5tokens"])
def test_budgets_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="not a budget"):
        parse_budget(text, 10)


def pool() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "record_id": list("abcdef"),
            "instruction": ["x" * 8] * 6,
            "input": [None] * 6,
            "output": ["y", "y" * 8, "", "é", "y", "y"],
            "task": ["m", "m", "m", "t", "t", ""],
        },
        schema_overrides={"input": pl.String},
    )


def test_tokens_are_counted_or_believed() -> None:
    assert token_costs(pool()).tolist() == [3, 4, 2, 3, 3, 3]
    said = pool().with_columns(tokens=pl.lit(9))
    assert token_costs(said).tolist() == [9] * 6


def test_rules_become_candidate_numbers() -> None:
    quotas = (Quota.parse("task:0.1..0.5"), Quota.parse("task=t:1.."))
    found = Rules(("c",), ("f", "a"), quotas).resolve(pool(), list("cbdef"), Budget(4))
    assert (found.pinned, found.excluded) == ((0,), (4,))
    grouping = found.groupings[0]
    assert grouping.groups == ("", "m", "t")
    assert grouping.of.tolist() == [1, 1, 2, 2, 0]
    assert (grouping.low.tolist(), grouping.high.tolist()) == ([1, 1, 1], [2, 2, 2])
    priced = Rules().resolve(pool(), list("ba"), Budget(6, tokens=5))
    assert priced.costs is not None
    assert (priced.costs.tolist(), priced.capacity) == ([4, 3], 5)


def test_a_least_count_of_records_without_scores_is_refused_and_named() -> None:
    frame = pl.DataFrame({"record_id": list("abcd"), "task": ["x", "x", "y", "z"]})
    with pytest.raises(InputError, match=r"at least 1 of task 'z'.* no scores"):
        Rules(quotas=(Quota("task", None, 0.25, 1.0),)).resolve(frame, list("abc"), Budget(3))
    kept = (Quota("task", "y", 1), Quota("task", None, 0, 2))
    (grouping,) = Rules(quotas=kept).resolve(frame, list("abc"), Budget(3)).groupings
    assert grouping.low.tolist() == [0, 1]


@pytest.mark.parametrize(
    "text", ["task", "task:", "task:..", "0.1..0.2", "task:a..b", "task:0.1..1.5", "task:1.2.3..4"]
)
def test_quotas_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="quota"):
        Quota.parse(text)


@pytest.mark.parametrize(
    ("rules", "budget", "sentence"),
    [
        (Rules(quotas=(Quota("colour"),)), Budget(2), "no column colour"),
        (Rules(quotas=(Quota("task", "z"),)), Budget(2), "no record has task 'z'"),
        (Rules(quotas=(Quota("task", None, 0, 0.5),)), Budget(6, tokens=9), "budget in records"),
        (Rules(quotas=(Quota("task", None, 1),)), Budget(6, stop=0.1), "budget in records"),
        (Rules(pin=("zz",)), Budget(2), "are not in the pool"),
    ],
)
def test_rules_that_do_not_fit_the_pool_are_refused(rules, budget, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        rules.resolve(pool(), list("abcdef"), budget)
