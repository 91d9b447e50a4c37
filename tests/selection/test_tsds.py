"""TSDS against its definition: mass walked from record to record with a heap, as published.

The published code takes the first record of every target as full, and fails where it is not.
"""

import heapq
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import sparse

from delift_pipeline.core.errors import InputError
from delift_pipeline.scoring.neighbours import embed
from delift_pipeline.selection.embedding import record_texts
from delift_pipeline.selection.ranking import target_set
from delift_pipeline.selection.registry import needs_of
from delift_pipeline.selection.run import select
from delift_pipeline.selection.selector import Needs, SelectionInputs
from delift_pipeline.selection.selectors.tsds import (
    TsdsOptions,
    densities,
    draw_without_replacement,
    nearest_records,
    probabilities,
)

WORDS = "red green blue round flat sharp tall small".split()
TFIDF = {"embedder": "tfidf"}


def by_hand(pool: np.ndarray, targets: np.ndarray, options: TsdsOptions) -> np.ndarray:
    """p of each record of the pool, for targets that are not in the pool."""
    m, n = len(targets), len(pool)
    k = min(options.neighbours, n)
    cosines = np.round(targets @ pool.T, 6)
    near = [sorted(range(n), key=lambda i: (-cosines[q, i], i))[:k] for q in range(m)]
    distance = [[float(np.sqrt(max(2 - 2 * cosines[q, i], 0))) for i in near[q]] for q in range(m)]
    members = sorted({i for one in near for i in one})
    rho = dict.fromkeys(members, 1.0)
    if options.sigma:
        for i in members:
            squares = [2 - 2 * float(np.round(pool[i] @ pool[o], 6)) for o in members]
            terms = sorted((max(0, 1 - d2 / options.sigma**2) for d2 in squares), reverse=True)
            rho[i] = max(sum(terms[: options.density_neighbours]), 1)
    heap = [(1 / rho[near[q][0]], 0, q) for q in range(m)]
    heapq.heapify(heap)
    cost, full, s = [0.0] * m, [-1] * m, 1.0
    while heap and k > 1:
        s, place, q = heapq.heappop(heap)
        moved = sum(distance[q][at] / rho[near[q][at]] for at in range(place + 1))
        cost[q] = distance[q][place + 1] * s - moved
        if options.alpha / options.scale * sum(cost) >= (1 - options.alpha) * m:
            break
        full[q] = place
        if place < k - 2:
            heapq.heappush(heap, (s + 1 / rho[near[q][place + 1]], place + 1, q))
    chances = np.zeros(n)
    for q in range(m):
        left = s
        for i in near[q][: full[q] + 1]:
            chances[i] += 1 / rho[i] / (m * s)
            left -= 1 / rho[i]
        chances[near[q][full[q] + 1]] += left / (m * s)
    return chances


def vectors(seed: int, rows: int) -> np.ndarray:
    """Unit rows, some of them near duplicates of others."""
    rng = np.random.default_rng(seed)
    drawn = rng.normal(size=(rows, 5))
    drawn[rows // 2 :: 2] = drawn[0] + 0.2 * rng.normal(size=drawn[rows // 2 :: 2].shape)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def chances_of(pool: Any, targets: Any, options: TsdsOptions) -> np.ndarray:
    near = nearest_records(pool, targets, np.full(targets.shape[0], -1), options.neighbours)
    return probabilities(near, densities(pool, np.unique(near.records), options), options)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.6, 0.9, 0.97, 1.0])
@pytest.mark.parametrize(
    ("neighbours", "sigma", "most"), [(9, 0.75, 4), (5000, 1.2, 1000), (7, 0, 5)]
)
def test_probabilities_are_those_of_a_walk_with_a_heap(
    alpha: float, neighbours: int, sigma: float, most: int
) -> None:
    options = TsdsOptions(alpha=alpha, neighbours=neighbours, sigma=sigma, density_neighbours=most)
    pool, targets = vectors(1, 40), vectors(2, 6)
    found = chances_of(pool, targets, options)
    np.testing.assert_allclose(found, by_hand(pool, targets, options), atol=1e-12)
    assert found.sum() == pytest.approx(1) and (found >= 0).all()
    words = chances_of(sparse.csr_matrix(pool), sparse.csr_matrix(targets), options)
    np.testing.assert_allclose(words, found, atol=1e-12)


def test_a_small_alpha_spreads_and_a_large_one_keeps_to_the_nearest() -> None:
    pool, targets = vectors(1, 40), vectors(2, 6)
    counts = [
        int((chances_of(pool, targets, TsdsOptions(alpha=alpha)) > 0).sum())
        for alpha in (0.0, 0.9, 0.97, 1.0)
    ]
    assert counts[0] == 40 and counts[0] > counts[1] > counts[2] > counts[3]


def test_near_duplicates_share_the_mass_of_one_record() -> None:
    target, far = np.array([[1, 1]]) / 2**0.5, np.array([[-1, 0]])
    pool = np.concatenate([np.eye(2)[[0, 1, 1, 1, 1]], far])
    # With alpha 0 the mass reaches all but the farthest record.
    found = chances_of(pool, target, TsdsOptions(alpha=0.0, sigma=0.5))
    np.testing.assert_allclose(found, [0.5, 0.125, 0.125, 0.125, 0.125, 0])
    plain = chances_of(pool, target, TsdsOptions(alpha=0.0, sigma=0))
    np.testing.assert_allclose(plain, [0.2, 0.2, 0.2, 0.2, 0.2, 0])


def test_a_pool_of_one_record_gives_it_everything() -> None:
    pool, targets = vectors(1, 3)[:1], vectors(2, 6)
    np.testing.assert_allclose(chances_of(pool, targets, TsdsOptions()), [1])


def test_draws_are_by_chance_and_without_replacement() -> None:
    chances, best = np.array([0.5, 0.3, 0.2, 0, 0]), np.array([0, 0, 0, 0.1, 0.4])
    orders = [draw_without_replacement(chances, best, seed) for seed in range(4000)]
    assert all(sorted(order.tolist()) == list(range(5)) for order in orders)
    assert all(order[3:].tolist() == [4, 3] for order in orders)
    first = np.bincount([order[0] for order in orders], minlength=5) / 4000
    # Five standard errors.
    np.testing.assert_allclose(first, chances, atol=0.04)
    second = np.mean([order[1] == 0 for order in orders])
    assert second == pytest.approx(0.3 * 0.5 / 0.7 + 0.2 * 0.5 / 0.8, abs=0.04)


def frame(rows: int, seed: int, task: str = "a") -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, 4)) for _ in range(rows)]
    return pl.DataFrame(
        {
            "record_id": [f"{seed}-{number:02d}" for number in range(rows)],
            "instruction": texts,
            "input": [""] * rows,
            "output": [" ".join(rng.choice(WORDS, 2)) for _ in range(rows)],
            "source_ids": [[f"s{number}"] for number in range(rows)],
            "task": [task] * rows,
        }
    )


POOL, TARGET = frame(30, 1), frame(4, 2)
GIVEN = SelectionInputs("task_specific", POOL, target=TARGET)


def test_the_greatest_probabilities_rank_first_with_their_shares_as_gains() -> None:
    found = select(GIVEN, "tsds", "full", 0, {**TFIDF, "draw": "greatest", "alpha": 0.8})
    embeddings = embed([*record_texts(POOL), *record_texts(TARGET)]).toarray()
    chances = by_hand(embeddings[:30], embeddings[30:], TsdsOptions(alpha=0.8))
    best = np.round(embeddings[:30] @ embeddings[30:].T, 6).max(axis=1)
    order = sorted(range(30), key=lambda i: (-round(chances[i] * 30, 6), -best[i], i))
    assert found.ranking == tuple(POOL["record_id"][i] for i in order)
    assert found.gains is not None
    np.testing.assert_allclose(found.gains, chances[order] * 30, atol=1e-5)
    support = int((chances > 0).sum())
    assert support < 30 and found.notes[0].startswith(f"{support} records are near a target")


def test_a_draw_has_prefixes_and_depends_on_the_seed_and_not_on_the_file() -> None:
    whole = select(GIVEN, "tsds", "full", 0, TFIDF).ranking
    backwards = SelectionInputs("task_specific", POOL.reverse(), target=TARGET.reverse())
    assert select(backwards, "tsds", 7, 0, TFIDF).ranking == whole[:7]
    assert select(GIVEN, "tsds", "full", 1, TFIDF).ranking != whole
    assert sorted(whole) == sorted(POOL["record_id"])
    with pytest.raises(InputError, match="no gains"):
        select(GIVEN, "tsds", "auto", 0, TFIDF)


def test_a_drawn_target_takes_no_mass_of_itself() -> None:
    given = SelectionInputs("instruction_tuning", POOL)
    options = {**TFIDF, "draw": "greatest", "target_share": 0.01, "alpha": 1.0}
    found = select(given, "tsds", "full", 0, options)
    target = target_set(given, 0, 0.01).ids[0]
    assert found.ranking[-1] == target and found.gains is not None and found.gains[-1] == 0
    assert "1 records of the pool serve as one" in found.notes[0]
    only = SelectionInputs("instruction_tuning", POOL.head(1))
    assert select(only, "tsds", "full", 0, TFIDF).ranking == (POOL["record_id"][0],)


def test_it_reads_the_model_only_to_embed() -> None:
    assert needs_of("tsds", "task_specific", {}) == Needs()
    assert needs_of("tsds", "task_specific", {"embedder": "model"}) == Needs(model=True)
