"""The selectors that read no model's weights: initial, full, length, deft_ucs."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from delift_pipeline.core.errors import DeliftError, InputError
from delift_pipeline.core.home import Home
from delift_pipeline.scoring.neighbours import embed
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.selection.embedding import record_texts
from delift_pipeline.selection.language_model import LanguageModel
from delift_pipeline.selection.options import NoOptions
from delift_pipeline.selection.ranking import rank_by_score, target_set
from delift_pipeline.selection.registry import SELECTORS
from delift_pipeline.selection.result import Selection
from delift_pipeline.selection.rules import Rules
from delift_pipeline.selection.run import select
from delift_pipeline.selection.selector import SelectionInputs, Selector, Traits
from delift_pipeline.selection.selectors.deft_ucs import (
    DeftUcsOptions,
    cluster_records,
    mix_in_base,
    rank_by_clusters,
)
from delift_pipeline.stages.arms import read_arms
from delift_pipeline.training.options import TrainingOptions

TFIDF = {"embedder": "tfidf"}


def of(pool: pl.DataFrame) -> SelectionInputs:
    return SelectionInputs("instruction_tuning", pool)


def test_all_thirteen_selectors_of_the_comparison_have_a_name() -> None:
    wanted = "initial full random length delift delift_trusted delift_se selectit less deft_ucs "
    assert set((wanted + "rds_plus ifd nuggets").split()) <= set(SELECTORS)


def test_initial_takes_nothing_and_says_so(records: pl.DataFrame) -> None:
    found = select(of(records), "initial", 0.5, 0, {})
    assert found.ranking == ()
    assert "base model" in found.notes[0]


def test_initial_refuses_pins_that_it_cannot_keep(records: pl.DataFrame) -> None:
    rules = Rules(pin=(records["record_id"][0],))
    with pytest.raises(InputError, match="initial takes no record"):
        select(of(records), "initial", 0.5, 0, {}, rules)


def test_full_trains_as_many_steps_as_a_subset_or_as_many_epochs() -> None:
    subset, whole = 30, 100
    given = TrainingOptions(epochs=3, batch_size=10)
    equal_steps = TrainingOptions(epochs=0.9, batch_size=10)
    assert equal_steps.total_steps(whole) == given.total_steps(subset) == 9
    assert given.total_steps(whole) == 30
    fixed = TrainingOptions(steps=9, batch_size=10)
    assert fixed.total_steps(whole) == fixed.total_steps(subset)


def test_length_ranks_by_the_tokens_of_the_whole_answer(
    tiny: ModelOptions, records: pl.DataFrame, home: Home
) -> None:
    # Far more words than half the window of 64 holds: nothing is scored, so it is ranked as well.
    long = records.with_columns(
        output=pl.when(pl.int_range(pl.len()) == 5)
        .then(pl.lit(" ".join(["one"] * 90)))
        .otherwise(pl.col("output"))
    )
    inputs = SelectionInputs("instruction_tuning", long, model=LanguageModel(tiny, home))
    found = select(inputs, "length", "full", 0, {})
    words = {i: len(text.split()) for i, text in long.select("record_id", "output").iter_rows()}
    assert found.ranking[0] == long["record_id"][5]
    assert found.ranking == tuple(sorted(words, key=lambda i: (-words[i], i)))
    assert found.gains is not None
    assert found.gains.tolist() == sorted(words.values(), reverse=True)


def test_length_in_characters_needs_no_model(records: pl.DataFrame) -> None:
    found = select(of(records), "length", 4, 0, {"unit": "characters"})
    sizes = dict(zip(records["record_id"], records["output"].str.len_chars(), strict=True))
    assert found.ranking == tuple(sorted(sizes, key=lambda i: (-sizes[i], i))[:4])


def test_a_selector_that_reads_a_model_says_that_none_was_given(records: pl.DataFrame) -> None:
    with pytest.raises(DeliftError, match="reads a language model"):
        select(of(records), "length", 4, 0, {})


def test_scores_that_are_not_finite_are_refused(records: pl.DataFrame) -> None:
    ids = tuple(records["record_id"])
    scores = np.full(len(ids), np.nan)
    with pytest.raises(DeliftError, match="not finite"):
        rank_by_score("less", of(records), ids, scores, 3)


def test_auto_stops_where_a_score_falls_below_its_share_of_the_first(
    records: pl.DataFrame,
) -> None:
    found = select(of(records), "length", "auto:0.5", 0, {"unit": "characters"})
    sizes = sorted(records["output"].str.len_chars(), reverse=True)
    assert len(found.ranking) == sum(size >= sizes[0] / 2 for size in sizes)
    with pytest.raises(InputError, match="no gains"):
        select(of(records), "deft_ucs", "auto:0.5", 0, TFIDF)


def test_targets_are_the_target_set_or_a_seeded_share_of_the_pool(records: pl.DataFrame) -> None:
    pool, target = records.head(8), records.tail(4)
    found = target_set(SelectionInputs("task_specific", pool, target=target), 0)
    assert not found.from_pool and set(found.ids) == set(target["record_id"])
    # A version's target set is not read in another stage.
    other = target_set(SelectionInputs("instruction_tuning", pool, target=target), 0, 0.5)
    assert other.from_pool and len(other.ids) == 4
    assert set(other.ids) <= set(pool["record_id"])
    again = target_set(SelectionInputs("instruction_tuning", pool.reverse()), 0, 0.5)
    assert again.ids == other.ids
    draws = {target_set(of(pool), seed, 0.5).ids for seed in range(8)}
    assert len(draws) > 1
    with pytest.raises(DeliftError, match="target set's records"):
        target_set(SelectionInputs("task_specific", pool), 0)


def test_deft_ucs_returns_asked_for_global_unique_records() -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdefghij"), 6)) for _ in range(300)]
    pool = pl.DataFrame(
        {
            "record_id": [f"{n:032x}" for n in range(300)],
            "instruction": texts,
            "input": [""] * 300,
            "output": texts[::-1],
        }
    )
    found = select(of(pool), "deft_ucs", 100, 0, TFIDF)
    assert len(set(found.ranking)) == 100
    # Positions within one of seven clusters would all be small.
    assert max(int(record, 16) for record in found.ranking) > 250
    assert select(of(pool.reverse()), "deft_ucs", 100, 0, TFIDF).ranking == found.ranking
    assert select(of(pool), "deft_ucs", 40, 0, TFIDF).ranking == found.ranking[:40]


def test_deft_ucs_distance_is_one_minus_the_cosine_to_the_centroid(records: pl.DataFrame) -> None:
    embeddings = embed(record_texts(records), "tfidf")
    labels, distances = cluster_records(embeddings, 3, 0)
    dense = embeddings.toarray().astype(np.float64)
    for cluster in range(3):
        members = np.flatnonzero(labels == cluster)
        centre = dense[members].mean(axis=0)
        cosines = dense[members] @ centre / np.linalg.norm(centre)
        np.testing.assert_allclose(distances[members], 1 - cosines, atol=2e-6)
    assert set(labels) == {0, 1, 2}


@settings(max_examples=40, deadline=None)
@given(
    clusters=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    easy=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    parts=st.sampled_from(["equal", "proportional"]),
    data=st.data(),
)
def test_deft_ucs_takes_the_nearest_and_farthest_of_each_cluster(
    clusters: list[int], easy: float, parts: str, data: st.DataObject
) -> None:
    labels = np.unique(clusters, return_inverse=True)[1]
    distances = np.array(data.draw(st.permutations(range(len(labels))))) / 100
    options = DeftUcsOptions.model_validate({"easy": easy, "parts": parts})
    order = rank_by_clusters(labels, distances, options)
    assert sorted(order.tolist()) == list(range(len(labels)))
    taken = order[: data.draw(st.integers(1, len(labels)))]
    sizes, counts = np.bincount(labels), np.bincount(labels[taken], minlength=labels.max() + 1)
    if parts == "equal":
        open_ = counts < sizes
        assert not open_.any() or counts.max() - counts[open_].min() <= 1
    else:
        assert (np.abs(counts - len(taken) * sizes / len(labels)) <= len(sizes)).all()
    for cluster in range(len(sizes)):
        near = np.flatnonzero(labels == cluster)
        near = near[np.argsort(distances[near])]
        count = int(counts[cluster])
        front = int(easy * count + 0.5)
        expected = set(near[:front]) | set(near[len(near) - (count - front) :])
        assert set(taken[labels[taken] == cluster]) == expected


def test_deft_ucs_mixes_the_asked_share_of_random_records_in() -> None:
    order = np.arange(100)
    mixed = mix_in_base(order, 0.3, 0)
    assert sorted(mixed.tolist()) == order.tolist()
    out_of_turn = sum(b < a for a, b in pairwise(mixed))
    assert out_of_turn > 10
    # The others come in their old order.
    rest = [r for r in mixed[:40] if r < 28]
    assert set(range(20)) <= set(mixed[:40]) and len(rest) >= 20
    np.testing.assert_array_equal(mix_in_base(order, 0.0, 0), order)


def test_the_arms_of_the_documentation_are_valid() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "selectors.md"
    blocks = [part.split("```")[0] for part in page.read_text("utf-8").split("```yaml\n")[1:]]
    assert blocks
    for block in blocks:
        arms = read_arms(block, "selectors.md")
        assert {arm.selector for arm in arms} <= set(SELECTORS)


def test_the_selector_that_the_documentation_adds_works(records: pl.DataFrame) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "selectors.md"
    (block,) = (part.split("```")[0] for part in page.read_text("utf-8").split("```python\n")[1:])
    names: dict[str, Any] = {
        "pl": pl,
        "BaseModel": BaseModel,
        "rank_by_score": rank_by_score,
        "NoOptions": NoOptions,
        "Selection": Selection,
        "SelectionInputs": SelectionInputs,
        "Selector": Selector,
        "Traits": Traits,
    }
    exec(block, names)
    found = names["ShortestSelector"]().select(of(records), 3, 0, NoOptions())
    sizes = dict(zip(records["record_id"], records["output"].str.len_chars(), strict=True))
    assert found.ranking == tuple(sorted(sizes, key=lambda i: (sizes[i], i))[:3])
