"""wICI against its definition: perplexities by single forward passes, and plain loops."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import sparse
from sklearn.cluster import KMeans

from delift_pipeline.core.errors import DeliftError
from delift_pipeline.core.home import Home
from delift_pipeline.kernel.block import Block
from delift_pipeline.kernel.columns import as_columns
from delift_pipeline.scoring.model import load_model
from delift_pipeline.scoring.neighbours import embed, prompt_texts
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.selection.embedding import record_texts
from delift_pipeline.selection.language_model import LanguageModel
from delift_pipeline.selection.registry import needs_of
from delift_pipeline.selection.result import Selection
from delift_pipeline.selection.run import select
from delift_pipeline.selection.selector import Needs, SelectionInputs
from delift_pipeline.selection.selectors.wici import WiciOptions, find_distinct, hardest_of_clusters
from tests.selection.test_selectors_model import mean_logprob

MODEL = ModelOptions(model="demo", device="cpu")
NEAR = np.random.default_rng(2).random((12, 12)) < 0.7
np.fill_diagonal(NEAR, False)


def perplexities(pool: pl.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ppl(y_b), ppl(y_b | x_b), and ppl(y_b | j, x_b) as [b, j], each by a pass of its own."""
    loaded = load_model(MODEL)
    encoded = loaded.encoder.encode(pool)
    begin: list[Any] = [loaded.encoder.tokenizer.bos_token_id]
    alone, told, shown = np.zeros(12), np.zeros(12), np.zeros((12, 12))
    for b in range(12):
        prompt, answer = encoded.prompt(b).tolist(), encoded.answer(b).tolist()
        alone[b] = mean_logprob(loaded, begin, answer)
        told[b] = mean_logprob(loaded, [*encoded.head.tolist(), *prompt], answer)
        for j in range(12):
            before = [*encoded.prefix(j).tolist(), *prompt]
            shown[b, j] = mean_logprob(loaded, before, answer)
    return np.exp(-alone), np.exp(-told), np.exp(-shown)


@pytest.fixture(scope="module")
def pool() -> pl.DataFrame:
    from tests.conftest import make_records

    words = ["", " red hat", "", " red cat", " blue hat", " red sea"]
    rows = make_records().sort("record_id")
    more = pl.Series([words[i % 6] for i in range(12)])
    return rows.with_columns(instruction=pl.col("instruction") + more)


@pytest.fixture(scope="module")
def measured(pool: pl.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return perplexities(pool)


def inputs(
    pool: pl.DataFrame, measured: tuple[np.ndarray, np.ndarray, np.ndarray], home: Home
) -> SelectionInputs:
    _, told, shown = measured
    utilities = np.log(told)[:, None] - np.log(shown)
    ids = tuple(pool["record_id"])
    matrix = sparse.csc_matrix(np.where(NEAR, utilities, 0).astype(np.float32))
    near = Block("neighbours", ids, ids, as_columns(matrix), "near-hash")

    def block(name: str, form: str) -> Block:
        assert (name, form) == ("neighbours", "kl_mean")
        return near

    return SelectionInputs("instruction_tuning", pool, block, model=LanguageModel(MODEL, home))


def scores_by_hand(
    pool: pl.DataFrame,
    measured: tuple[np.ndarray, np.ndarray, np.ndarray],
    neighbours: int,
    probes: int,
) -> tuple[np.ndarray, np.ndarray]:
    """IFD and score of each record, from the formulas."""
    alone, told, shown = measured
    vectors = embed(prompt_texts(pool)).toarray()
    difficulty = told / alone
    scores = np.zeros(12)
    for j in range(12):
        near = [b for b in range(12) if NEAR[b, j] and difficulty[b] <= 1]
        near.sort(key=lambda b: (-round(float(vectors[b] @ vectors[j]), 6), b))
        near = near[:neighbours]
        chosen = near
        if len(near) > probes:
            means = KMeans(probes, n_init=1, max_iter=15, random_state=0)  # pyright: ignore
            labels = means.fit_predict(embed(prompt_texts(pool))[near])
            chosen = [
                max((b for b, at in zip(near, labels, strict=True) if at == label),
                    key=lambda b: difficulty[b])
                for label in set(labels)
            ]  # fmt: skip
        terms = [
            (difficulty[b] - shown[b, j] / alone[b]) * (1 - float(vectors[b] @ vectors[j]))
            for b in chosen
            if difficulty[b] > shown[b, j] / alone[b]
        ]
        scores[j] = np.mean(terms) if terms else 0
    return difficulty, scores


def run(given: SelectionInputs, budget: float | int | str, **options: object) -> Selection:
    return select(given, "wici", budget, 0, {"embedder": "tfidf", **options})


@pytest.mark.parametrize(("neighbours", "probes"), [(32, 5), (4, 2), (6, 32)])
def test_gains_are_the_scores_of_the_definition(
    pool: pl.DataFrame, measured: Any, home: Home, neighbours: int, probes: int
) -> None:
    difficulty, scores = scores_by_hand(pool, measured, neighbours, probes)
    options = {"neighbours": neighbours, "probes": probes, "alike": 2.0}
    found = run(inputs(pool, measured, home), "full", **options)
    wanted = dict(zip(pool["record_id"], np.where(difficulty <= 1, scores, 0), strict=True))
    assert found.gains is not None
    expected = [wanted[record] for record in found.ranking]
    np.testing.assert_allclose(found.gains, expected, atol=1e-4)
    assert 0 < (difficulty > 1).sum() < 6 and (scores[difficulty <= 1] > 0).sum() > 3
    assert found.blocks == {"neighbours": "near-hash"}


def test_hard_and_alike_records_come_last_or_are_left_out(
    pool: pl.DataFrame, measured: Any, home: Home
) -> None:
    difficulty, scores = scores_by_hand(pool, measured, 32, 5)
    ids, vectors = pool["record_id"].to_list(), embed(record_texts(pool)).toarray()
    kept: list[int] = []
    alike: list[int] = []
    for j in sorted(range(12), key=lambda j: (-scores[j].round(6), j)):
        if difficulty[j] <= 1:
            same = any(float(vectors[j] @ vectors[k]) >= 0.3 for k in kept)
            (alike if same else kept).append(j)
    hurt = [j for j in range(12) if difficulty[j] > 1]
    assert kept and alike and hurt
    found = run(inputs(pool, measured, home), "full", alike=0.3)
    assert found.ranking[: len(kept)] == tuple(ids[j] for j in kept)
    assert found.ranking[len(kept) : len(kept) + len(alike)] == tuple(ids[j] for j in alike)
    assert set(found.ranking[-len(hurt) :]) == {ids[j] for j in hurt}
    assert found.gains is not None and (found.gains[len(kept) :] == 0).all()
    assert f"{len(hurt)} records have an IFD above 1, and {len(alike)} resemble" in found.notes[0]
    dropped = run(inputs(pool, measured, home), "full", alike=0.3, left_out="drop")
    assert dropped.ranking == found.ranking[: len(kept)]
    assert not any("no scores" in note for note in dropped.notes)


def test_prefixes_and_the_order_of_the_file_do_not_matter(
    pool: pl.DataFrame, measured: Any, home: Home
) -> None:
    whole = run(inputs(pool, measured, home), "full")
    given = inputs(pool, measured, home)
    backwards = SelectionInputs(given.stage, pool.reverse(), given.block, model=given.model)
    for budget in (1, 5, 12):
        assert run(backwards, budget).ranking == whole.ranking[:budget]


def test_copies_of_a_record_are_no_probes_of_it(
    pool: pl.DataFrame, measured: Any, home: Home
) -> None:
    copies = pool.with_columns(instruction=pl.lit("say"), input=pl.lit("it"), output=pl.lit("one"))
    found = run(inputs(copies, measured, home), "full")
    assert found.gains is not None and not found.gains.any()


def test_where_no_instruction_helps_nothing_is_left_to_rank(
    pool: pl.DataFrame, measured: Any, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_hard(model: object, frame: pl.DataFrame) -> tuple[tuple[str, ...], np.ndarray]:
        return tuple(sorted(frame["record_id"])), np.full(frame.height, 1.5)

    monkeypatch.setattr("delift_pipeline.selection.selectors.wici.difficulties", too_hard)
    with pytest.raises(DeliftError, match="no record has an IFD of at most 1"):
        run(inputs(pool, measured, home), "full", left_out="drop")
    assert len(run(inputs(pool, measured, home), "full").ranking) == 12


def test_the_hardest_of_each_cluster_is_a_probe() -> None:
    prompts = np.eye(3)[[0, 0, 1, 1, 2, 2]]
    hard = np.array([0.2, 0.3, 0.9, 0.1, 0.5, 0.5])
    assert hardest_of_clusters(prompts, hard, WiciOptions(probes=3), 0).tolist() == [1, 2, 4]
    assert hardest_of_clusters(prompts, hard, WiciOptions(probes=4), 0).tolist() == [1, 2, 4]
    assert hardest_of_clusters(prompts, hard, WiciOptions(probes=6), 0).tolist() == list(range(6))


@pytest.mark.parametrize("limit", [0.3, 0.6, 0.9, 2.0])
def test_only_what_resembles_no_earlier_record_is_kept(limit: float) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(700, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    order = rng.permutation(700)[:600]
    wanted: list[int] = []
    for record in order.tolist():
        if all(np.round(vectors[record] @ vectors[k], 6) < limit for k in wanted):
            wanted.append(record)
    for embeddings in (vectors, sparse.csr_matrix(vectors)):
        found = find_distinct(embeddings, order, limit)
        assert np.flatnonzero(found).tolist() == sorted(wanted)


def test_it_reads_near_pairs_and_the_model() -> None:
    assert needs_of("wici", "continual", {}) == Needs("neighbours", model=True)
