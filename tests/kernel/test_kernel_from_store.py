"""The kernel built from the score store on disk."""

import numpy as np
import pytest

from delift_pipeline.core.home import Home
from delift_pipeline.kernel.columns import to_dense
from delift_pipeline.kernel.kernel import build_kernel, load_block
from delift_pipeline.scoring.engine import PairScores
from delift_pipeline.scoring.plan import PairBlock, PairPlan
from delift_pipeline.scoring.shards import BASELINE, ShardDraft
from delift_pipeline.scoring.store import ScoreStore

PRINT = "1" * 32
# Ids come to the store in another order than they stand in the plan.
PLANNED = tuple(f"{k:032x}" for k in (5, 2, 9, 4))
STORED = (2, 0, 3, 1)


@pytest.fixture
def store(home: Home) -> ScoreStore:
    store = ScoreStore(home.scores(PRINT))
    numbers = store.ids.add([PLANNED[place] for place in STORED])
    alone, shown = ShardDraft(), ShardDraft()
    alone.add(BASELINE, numbers, scores(0), np.array([3, 1, 4, 2], dtype=np.int32))
    for number in numbers.tolist():
        shown.add(number, numbers, scores(1 + number))
    store.write(alone, {})
    store.write(shown, {})
    return store


def scores(seed: int) -> PairScores:
    squared, logprob = np.random.default_rng(seed).random((2, 4)).astype(np.float32)
    return PairScores(squared, -logprob)


def wanted(demonstration: int, form: str) -> np.ndarray:
    """Column of a demonstration (its number in the store), targets in the plan's order."""
    before, after = scores(0), scores(1 + demonstration)
    gain = after.sum_logprob - before.sum_logprob
    column = {
        "distance": np.sqrt(before.squared_distance) - np.sqrt(after.squared_distance),
        "kl": gain,
        "kl_mean": gain / np.array([3, 1, 4, 2]),
    }[form]
    return column[[STORED.index(place) for place in range(4)]]


@pytest.mark.parametrize("form", ["distance", "kl", "kl_mean"])
def test_dense_and_near_pairs_read_the_scores_of_their_records(home, store, form) -> None:
    indptr, indices = np.array([0, 1, 1, 3, 4]), np.array([2, 0, 3, 2], dtype=np.int32)
    plans = {
        "self": PairBlock("self", PLANNED, PLANNED),
        "neighbours": PairBlock("self", PLANNED, PLANNED, indptr, indices),
    }
    for name, block in plans.items():
        build_kernel(home, f"v-{name}", PRINT, store, PairPlan((block,)))
        found = to_dense(load_block(home, f"v-{name}", PRINT, name, form).matrix)
        for j in range(4):
            column = wanted(STORED.index(j), form)
            rows = block.targets_of(j)
            assert found[rows, j] == pytest.approx(column[rows], rel=1e-5, abs=1e-6)
            assert not np.delete(found[:, j], rows).any()
