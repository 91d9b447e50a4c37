"""Our objectives and rankings against submodlib's."""

import numpy as np
import pytest

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
from delift_pipeline.selection.optimizers import lazy_greedy, tie_order_of
from delift_pipeline.selection.submodlib_optimizer import submodlib_greedy

KINDS = ("fl", "rectangular fl", "flmi", "fl1mi", "fl2mi", "flcg")
SEEDS = range(200)


def float32(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.random(shape).astype(np.float32)


def make(kind: str, seed: int) -> Coverage:
    rng = np.random.default_rng(seed)
    n, t, e = (int(k) for k in rng.integers(2, (40, 8, 8)))
    kernel, factor = float32(rng, n, n), float(rng.choice([0.5, 1.0, 1.5]))
    return {
        "fl": lambda: FacilityLocation(kernel),
        "rectangular fl": lambda: FacilityLocation(float32(rng, t, n)),
        "flmi": lambda: FLMI(kernel, float32(rng, t, n), factor),
        "fl1mi": lambda: FL1MI(kernel, float32(rng, t, n), factor),
        "fl2mi": lambda: FL2MI(float32(rng, t, n), factor),
        "flcg": lambda: FLCG(kernel, float32(rng, n, e), factor),
    }[kind]()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_same_values_and_the_same_ranking_where_gains_differ(kind: str, seed: int) -> None:
    objective = make(kind, seed)
    budget = max(1, objective.n // 2)
    theirs = submodlib_greedy(objective, budget, np.arange(objective.n))
    ours = lazy_greedy(objective, budget, np.arange(objective.n))
    assert ours.gains.sum() == pytest.approx(theirs.gains.sum(), rel=1e-6, abs=1e-7)
    for count in (1, budget):
        value = evaluate(objective, theirs.picks[:count])
        assert theirs.gains[:count].sum() == pytest.approx(value, rel=1e-6, abs=1e-7)
    apart = _distinct_picks(objective, ours.picks)
    assert theirs.picks[:apart].tolist() == ours.picks[:apart].tolist()


def _distinct_picks(objective: Coverage, picks: np.ndarray) -> int:
    """How many picks are made before two candidates come within float32 rounding."""
    objective.reset()
    left = set(range(objective.n))
    for count, pick in enumerate(picks.tolist()):
        best = sorted((objective.gain(j) for j in left), reverse=True)[:2]
        if len(best) == 2 and best[0] - best[1] < 1e-5:
            return count
        objective.add(pick)
        left.remove(pick)
    return len(picks)


def test_most_rankings_were_compared_to_their_end() -> None:
    whole = [_whole("fl", seed) for seed in SEEDS]
    assert np.mean(whole) > 0.9


def _whole(kind: str, seed: int) -> bool:
    objective = make(kind, seed)
    budget = max(1, objective.n // 2)
    ours = lazy_greedy(objective, budget, np.arange(objective.n))
    return _distinct_picks(objective, ours.picks) == budget


def test_an_asymmetric_kernel_in_any_memory_order_reads_the_same() -> None:
    kernel = float32(np.random.default_rng(7), 12, 12)
    for form in (np.asfortranarray(kernel), np.repeat(kernel, 2, axis=1)[:, ::2]):
        ranking = submodlib_greedy(FacilityLocation(form), 5, np.arange(12))
        plain = submodlib_greedy(FacilityLocation(kernel), 5, np.arange(12))
        assert ranking.picks.tolist() == plain.picks.tolist()


def test_a_budget_of_everything_is_completed() -> None:
    objective = make("fl", 3)
    ranking = submodlib_greedy(objective, objective.n, np.arange(objective.n))
    assert sorted(ranking.picks.tolist()) == list(range(objective.n))
    everything = evaluate(objective, range(objective.n))
    assert ranking.gains.sum() == pytest.approx(everything, rel=1e-6)
    alone = submodlib_greedy(FacilityLocation(np.array([[0.25]])), 1, tie_order_of(["a"]))
    assert (alone.picks.tolist(), alone.gains.tolist()) == ([0], [0.25])


def test_what_submodlib_cannot_do_is_refused() -> None:
    weighted = FacilityLocation(np.eye(3), weights=np.ones(3))
    with pytest.raises(InputError, match="no weights"):
        submodlib_greedy(weighted, 1, np.arange(3))
    with pytest.raises(InputError, match="4 picks"):
        submodlib_greedy(FacilityLocation(np.eye(3)), 4, np.arange(3))
    with pytest.raises(InputError, match="square"):
        submodlib_greedy(FLCG(np.ones((2, 3)), np.ones((2, 1))), 1, np.arange(3))
    with pytest.raises(InputError, match="no function coverage"):
        submodlib_greedy(Coverage(np.eye(3)), 1, np.arange(3))
