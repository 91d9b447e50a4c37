"""QDIT against its definition: coverage of prompts plus quality, maximised by a plain loop."""

import numpy as np
import polars as pl
import pytest

from delift_pipeline.core.errors import DeliftError
from delift_pipeline.core.home import Home
from delift_pipeline.kernel.block import Block
from delift_pipeline.kernel.columns import as_columns
from delift_pipeline.scoring.neighbours import prompt_texts
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.selection.language_model import LanguageModel
from delift_pipeline.selection.registry import needs_of
from delift_pipeline.selection.run import select
from delift_pipeline.selection.selector import Needs, SelectionInputs
from delift_pipeline.selection.selectors.selectit import (
    RATING_PROMPTS,
    rating_probabilities,
    sentence_scores,
    token_scores,
)
from tests.selection.test_trusted import EXISTING, IDS, NEW, N, block, cosines, definition, frame
from tests.selection.test_trusted import inputs as inputs_of


def best_by_hand(
    similar: np.ndarray, quality: np.ndarray, alpha: float, count: int
) -> tuple[list[int], list[float]]:
    """Greedy picks and the value after each, every subset's value computed anew."""

    def value(chosen: list[int]) -> float:
        covered = sum(max(similar[i, j] for j in chosen) for i in range(len(similar)))
        return (1 - alpha) * covered + alpha * sum(quality[j] for j in chosen)

    chosen: list[int] = []
    values: list[float] = []
    for _ in range(count):
        left = [j for j in range(len(similar)) if j not in chosen]
        best = max(left, key=lambda j: (round(value([*chosen, j]), 9), -j))
        chosen.append(best)
        values.append(value(chosen))
    return chosen, values


def prompt_cosines(records: pl.DataFrame) -> np.ndarray:
    similar = cosines(prompt_texts(records.sort("record_id")))
    np.fill_diagonal(similar, 1)
    return similar


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 1.0])
def test_picks_are_those_of_a_loop_over_coverage_and_trust(alpha: float) -> None:
    quality = np.array([definition()[record] for record in IDS])
    wanted, values = best_by_hand(prompt_cosines(frame()), quality, alpha, 6)
    options = {"alpha": alpha, "embedder": "tfidf"}
    found = select(inputs_of("instruction_tuning"), "qdit", 6, 0, options)
    assert found.ranking == tuple(IDS[j] for j in wanted)
    assert found.gains is not None
    np.testing.assert_allclose(np.cumsum(found.gains), values, rtol=1e-5)
    assert (found.objective, found.blocks) == ("qdit", {"neighbours": "near-hash"})
    assert found.trust is not None


def test_a_sparse_kernel_of_all_prompts_gives_the_same_picks() -> None:
    dense = {"embedder": "tfidf"}
    sparse = dense | {"dense_limit": 0, "coverage_neighbours": N}
    first, second = (
        select(inputs_of("instruction_tuning"), "qdit", "full", 0, options)
        for options in (dense, sparse)
    )
    assert first.ranking == second.ranking
    assert first.gains is not None and second.gains is not None
    np.testing.assert_allclose(first.gains, second.gains, rtol=1e-5)


def test_the_weight_of_quality_decides_between_coverage_and_trust() -> None:
    def mean_trust(alpha: float) -> float:
        options = {"alpha": alpha, "embedder": "tfidf"}
        found = select(inputs_of("instruction_tuning"), "qdit", 5, 0, options)
        return float(np.mean([definition()[record] for record in found.ranking]))

    assert mean_trust(0.0) < mean_trust(1.0) == pytest.approx(1.0)


def test_a_continual_stage_ranks_new_records_with_the_trust_of_the_whole_pool() -> None:
    quality = np.array([definition()[record] for record in NEW])
    similar = cosines(prompt_texts(frame(NEW)))
    np.fill_diagonal(similar, 1)
    found = select(inputs_of("continual"), "qdit", "full", 0, {"embedder": "tfidf"})
    wanted, _ = best_by_hand(similar, quality, 0.5, N - EXISTING)
    assert found.ranking == tuple(NEW[j] for j in wanted)


def test_quality_by_rating_is_selectits_score_from_0_to_1(
    records: pl.DataFrame, home: Home
) -> None:
    model = LanguageModel(ModelOptions(model="demo", device="cpu"), home)
    given = SelectionInputs("instruction_tuning", records, model=model)
    pool = records.sort("record_id")
    scores = sentence_scores(token_scores(rating_probabilities(model, pool, RATING_PROMPTS)), 0.2)
    quality = (scores - scores.min()) / (scores.max() - scores.min())
    options = {"quality": "selectit", "embedder": "tfidf", "alpha": 0.8}
    found = select(given, "qdit", 7, 0, options)
    wanted, values = best_by_hand(prompt_cosines(records), quality, 0.8, 7)
    ids = pool["record_id"].to_list()
    assert found.ranking == tuple(ids[j] for j in wanted)
    assert found.value == pytest.approx(values[-1], rel=1e-5)
    assert found.trust is None


def test_prefixes_and_the_order_of_the_file_do_not_matter() -> None:
    options = {"embedder": "tfidf"}
    whole = select(inputs_of("instruction_tuning"), "qdit", "full", 0, options).ranking
    assert sorted(whole) == list(IDS)
    for budget in (1, 4, 9):
        shorter = select(inputs_of("instruction_tuning", IDS[::-1]), "qdit", budget, 0, options)
        assert shorter.ranking == whole[:budget]


def test_an_unscorable_record_is_left_out_with_a_note() -> None:
    given = SelectionInputs(
        "instruction_tuning", frame(), lambda name, form: block(name, form, IDS[3])
    )
    found = select(given, "qdit", "full", 0, {"embedder": "tfidf"})
    assert IDS[3] not in found.ranking and len(found.ranking) == N - 1
    assert any("1 records have no scores" in note for note in found.notes)


def test_without_any_score_it_stops() -> None:
    nothing = Block("neighbours", (), (), as_columns(np.zeros((0, 0))), "", frozenset(IDS))
    given = SelectionInputs("instruction_tuning", frame(), lambda name, form: nothing)
    with pytest.raises(DeliftError, match="no record of the pool has scores"):
        select(given, "qdit", 3, 0, {"embedder": "tfidf"})


def test_what_it_reads_follows_from_the_quality_and_the_embedder() -> None:
    def needs(**options: str) -> Needs:
        return needs_of("qdit", "task_specific", options)

    assert needs() == Needs("neighbours")
    assert needs(embedder="model") == Needs("neighbours", model=True)
    assert needs(quality="selectit") == Needs(model=True)
