"""The selectors that read a model: selectit, rds_plus, ifd, nuggets, each against an oracle."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from delift_pipeline.core.errors import InputError
from delift_pipeline.core.home import Home
from delift_pipeline.scoring.model import LoadedModel, load_model
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.selection.embedding import hidden_states, record_texts
from delift_pipeline.selection.language_model import LanguageModel
from delift_pipeline.selection.ranking import DECIMALS, take_turns, target_set
from delift_pipeline.selection.run import select
from delift_pipeline.selection.selector import SelectionInputs
from delift_pipeline.selection.selectors.ifd import difficulties
from delift_pipeline.selection.selectors.nuggets import golden_scores, one_shot_gains
from delift_pipeline.selection.selectors.selectit import (
    QUESTION,
    RATING_PROMPTS,
    SelectItOptions,
    model_scores,
    rating_probabilities,
    rating_tokens,
    sentence_scores,
    token_scores,
)

DEMO = ModelOptions(model="demo", device="cpu")


def of(options: ModelOptions, home: Home, pool: pl.DataFrame, **more: Any) -> SelectionInputs:
    stage = "task_specific" if "target" in more else "instruction_tuning"
    return SelectionInputs(stage, pool, model=LanguageModel(options, home), **more)


@torch.no_grad()
def logits_of(loaded: LoadedModel, ids: Sequence[Any]) -> torch.Tensor:
    """Logits of one sequence, alone and unpadded, float64 [tokens, vocabulary]."""
    return loaded.model(input_ids=torch.tensor([list(ids)])).logits[0].double()


def mean_logprob(loaded: LoadedModel, before: Sequence[Any], answer: list[int]) -> float:
    logprobs = logits_of(loaded, [*before, *answer]).log_softmax(-1)
    return float(np.mean([logprobs[len(before) + t - 1, token] for t, token in enumerate(answer)]))


def test_token_score_is_the_base_rating_times_its_distance_from_the_others() -> None:
    likely = np.array([[0.1, 0.1, 0.1, 0.1, 0.6], [0.6, 0.1, 0.1, 0.1, 0.1], [0.2] * 5])
    np.testing.assert_allclose(token_scores(likely), [5 * 0.5, 1 * 0.5, 0.0], atol=1e-12)


def test_sentence_score_falls_with_disagreement() -> None:
    scores = np.array([[2.0, 1.0], [2.0, 3.0]])
    np.testing.assert_allclose(sentence_scores(scores, 0.2), [2.0, 2.0 / 1.2])


def test_model_weights_sum_to_one() -> None:
    found = model_scores([np.array([1.0]), np.array([4.0]), np.array([2.0])], [7, 13, 70])
    np.testing.assert_allclose(found, [(7 * 1 + 13 * 4 + 70 * 2) / 90])


def test_ratings_are_read_where_one_forward_pass_predicts_them(
    records: pl.DataFrame, home: Home
) -> None:
    loaded = load_model(DEMO)
    encoder = loaded.encoder
    ratings = rating_tokens(encoder)
    found = rating_probabilities(LanguageModel(DEMO, home), records, RATING_PROMPTS)
    assert found.shape == (5, records.height, 5)
    for number, prompt in enumerate(RATING_PROMPTS):
        for row, record in enumerate(records.iter_rows(named=True)):
            text = f"{record['instruction']}\n{record['input']}\n{record['output']}"
            pieces = (prompt, text, QUESTION)
            ids = [t for piece in pieces for t in encoder.plain.ids(piece).tolist()]
            begin = encoder.tokenizer.bos_token_id
            last = logits_of(loaded, [begin, *ids, *ratings.before.tolist()])[-1]
            expected = last[torch.from_numpy(ratings.ids)].softmax(-1)
            np.testing.assert_allclose(found[number, row], expected, atol=1e-5)


def test_selectit_takes_the_highest_scores_of_whole_records(
    records: pl.DataFrame, home: Home
) -> None:
    inputs = of(DEMO, home, records)
    found = select(inputs, "selectit", 5, 0, {})
    by_hand = sentence_scores(
        token_scores(
            rating_probabilities(inputs.language_model, records.sort("record_id"), RATING_PROMPTS)
        ),
        0.2,
    )
    best = sorted(zip(-by_hand.round(DECIMALS), sorted(records["record_id"]), strict=True))[:5]
    assert found.ranking == tuple(record for _, record in best)
    assert by_hand.std() > 0


@pytest.mark.data
def test_selectit_reads_several_models_by_their_sizes(
    records: pl.DataFrame, home: Home, stories: Path
) -> None:
    pool = records.sort("record_id")
    options = {"level": "model", "models": [str(stories)]}
    found = select(of(DEMO, home, records), "selectit", "full", 0, options)
    scores, sizes = [], []
    for model in (DEMO, DEMO.model_copy(update={"model": str(stories)})):
        likely = rating_probabilities(LanguageModel(model, home), pool, RATING_PROMPTS)
        scores.append(sentence_scores(token_scores(likely), 0.2))
        sizes.append(load_model(model).model.num_parameters())
    expected = model_scores(scores, sizes)
    assert found.gains is not None
    np.testing.assert_allclose(found.gains, np.sort(expected)[::-1], atol=1e-6)
    assert not np.allclose(scores[0], scores[1], atol=1e-3)


def test_selectit_refuses_a_model_without_ratings_in_its_vocabulary(
    tiny: ModelOptions, records: pl.DataFrame, home: Home
) -> None:
    with pytest.raises(InputError, match="no single token for each of the ratings"):
        select(of(tiny, home, records), "selectit", 3, 0, {})


def test_selectit_refuses_models_at_another_level() -> None:
    for wrong in ({"level": "model"}, {"models": ["another"]}):
        with pytest.raises(ValueError, match="level model"):
            SelectItOptions.model_validate(wrong)


@pytest.mark.data
def test_ratings_after_a_token_for_the_blank_are_found(stories: Path) -> None:
    encoder = load_model(ModelOptions(model=str(stories), device="cpu")).encoder
    found = rating_tokens(encoder)
    written = [encoder.tokenizer.convert_ids_to_tokens(int(token)) for token in found.ids]
    assert written == list("12345")
    blank = encoder.tokenizer.convert_ids_to_tokens(found.before.tolist())
    assert blank == ["▁"]


def test_hidden_states_are_weighted_by_position(records: pl.DataFrame, home: Home) -> None:
    loaded = load_model(DEMO)
    model = of(DEMO, home, records).language_model
    found = hidden_states(record_texts(records), model, "records")
    for row, record in enumerate(records.iter_rows(named=True)):
        text = f"{record['instruction']}\n{record['input']}\n{record['output']}"
        ids = [loaded.encoder.tokenizer.bos_token_id, *loaded.encoder.plain.ids(text).tolist()]
        with torch.no_grad():
            out = loaded.model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        states = out.hidden_states[-1][0].double().numpy()
        mean = np.arange(1, len(ids) + 1) @ states / (len(ids) * (len(ids) + 1) / 2)
        np.testing.assert_allclose(found[row], mean / np.linalg.norm(mean), atol=1e-5)


def test_rds_plus_ranks_by_the_nearest_target(records: pl.DataFrame, home: Home) -> None:
    pool, target = records.head(9), records.tail(3)
    inputs = of(DEMO, home, pool, target=target)
    found = select(inputs, "rds_plus", "full", 0, {})
    own, wanted = (
        hidden_states(record_texts(frame), inputs.language_model, "records")
        for frame in (pool, target)
    )
    best = dict(zip(pool["record_id"], (own @ wanted.T).max(axis=1).round(6), strict=True))
    assert found.ranking == tuple(sorted(best, key=lambda i: (-best[i], i)))


def test_a_drawn_target_does_not_find_itself(
    tiny: ModelOptions, records: pl.DataFrame, home: Home
) -> None:
    inputs = of(tiny, home, records)
    found = select(inputs, "rds_plus", "full", 0, {"target_share": 0.25})
    assert found.gains is not None
    # Its own cosine is 1; that of no other record is.
    assert found.gains.max() < 1 - 1e-5
    assert "3 records of the pool serve as one" in found.notes[0]
    alone = select(inputs, "rds_plus", "full", 0, {"target_share": 0.01})
    target = target_set(inputs, 0, 0.01).ids[0]
    assert alone.ranking[-1] == target


def test_columns_take_turns() -> None:
    scores = np.array([[0.9, 0.9], [0.8, 0.1], [0.1, 0.8], [0.7, 0.2]])
    assert take_turns(scores).tolist() == [0, 2, 1, 3]


def turns_by_hand(scores: np.ndarray, groups: list[list[int]]) -> list[int]:
    """The whole order: each turn looks at all records that are left."""
    waiting = [list(group) for group in groups]
    order: list[int] = []
    while len(order) < len(scores):
        group = waiting.pop(0)
        waiting.append(group)
        column = group.pop(0)
        group.append(column)
        left = [record for record in range(len(scores)) if record not in order]
        order.append(max(left, key=lambda j: (scores[j, column], -j)))
    return order


@pytest.mark.parametrize("groups", [[[0], [1], [2], [3]], [[0, 2, 3], [1]], [[3, 1], [0, 2]]])
def test_groups_take_turns_and_within_each_its_columns(groups: list[list[int]]) -> None:
    # Rounded, so that some scores are equal.
    scores = np.random.default_rng(3).random((30, 4)).round(1)
    found = take_turns(scores, [np.array(group) for group in groups])
    assert found.tolist() == turns_by_hand(scores, groups)


@pytest.mark.parametrize("tasks", ["round_robin", "max"])
def test_rds_plus_lets_the_targets_take_turns(
    records: pl.DataFrame, home: Home, tasks: str
) -> None:
    pool = records.head(9)
    target = records.tail(3).with_columns(task=pl.Series(["a", "b", "b"]))
    inputs = of(DEMO, home, pool, target=target)
    found = select(inputs, "rds_plus", "full", 0, {"queries": "round_robin", "tasks": tasks})
    pool, target = pool.sort("record_id"), target.sort("record_id")
    own, wanted = (
        hidden_states(record_texts(frame), inputs.language_model, "records")
        for frame in (pool, target)
    )
    names = target["task"].to_list()
    groups = [[i for i in range(3) if names[i] == task] for task in "ab"]
    order = turns_by_hand((own @ wanted.T).round(6), groups if tasks != "max" else [[0, 1, 2]])
    assert found.ranking == tuple(pool["record_id"][j] for j in order)
    assert found.gains is None
    with pytest.raises(InputError, match="no gains"):
        select(inputs, "rds_plus", "auto", 0, {"queries": "round_robin"})


def test_a_drawn_target_is_not_its_own_first_choice(
    tiny: ModelOptions, records: pl.DataFrame, home: Home
) -> None:
    inputs = of(tiny, home, records)
    options = {"queries": "round_robin", "target_share": 0.01}
    found = select(inputs, "rds_plus", "full", 0, options)
    # The only target is ranked after all others.
    assert found.ranking[-1] == target_set(inputs, 0, 0.01).ids[0]


def test_tasks_take_turns_unless_the_best_target_decides(records: pl.DataFrame, home: Home) -> None:
    pool = records.head(8)
    target = records.tail(4).with_columns(task=pl.Series(["a", "b", "b", "a"]))
    inputs = of(DEMO, home, pool, target=target)
    turns = select(inputs, "rds_plus", "full", 0, {})
    best = select(inputs, "rds_plus", "full", 0, {"tasks": "max"})
    assert turns.gains is None and best.gains is not None
    assert sorted(turns.ranking) == sorted(best.ranking)
    with pytest.raises(InputError, match="no gains"):
        select(inputs, "rds_plus", "auto", 0, {})


def test_ifd_is_a_ratio_of_perplexities(records: pl.DataFrame, home: Home) -> None:
    loaded = load_model(DEMO)
    ids, ratios = difficulties(LanguageModel(DEMO, home), records)
    encoded = loaded.encoder.encode(records)
    begin: list[Any] = [loaded.encoder.tokenizer.bos_token_id]
    assert ids == tuple(sorted(records["record_id"]))
    for record, ratio in zip(ids, ratios, strict=True):
        row = encoded.rows[record]
        answer = encoded.answer(row).tolist()
        before = [*encoded.head.tolist(), *encoded.prompt(row).tolist()]
        told = mean_logprob(loaded, before, answer)
        untold = mean_logprob(loaded, begin, answer)
        assert ratio == pytest.approx(np.exp(untold - told), rel=1e-4)


def test_ifd_ranks_the_greatest_below_one_first(records: pl.DataFrame, home: Home) -> None:
    inputs = of(DEMO, home, records)
    found = dict(zip(*difficulties(inputs.language_model, records), strict=True))
    ratios = {record: round(ratio, DECIMALS) for record, ratio in found.items()}
    helped = sorted((i for i in ratios if ratios[i] < 1), key=lambda i: (-ratios[i], i))
    hurt = sorted((i for i in ratios if ratios[i] >= 1), key=lambda i: (ratios[i], i))
    assert helped and hurt
    found = select(inputs, "ifd", "full", 0, {})
    assert list(found.ranking) == helped + hurt
    assert f"{len(hurt)} records have a ratio of 1 or more and are ranked last" in found.notes
    dropped = select(inputs, "ifd", "full", 0, {"above_one": "drop"})
    assert list(dropped.ranking) == helped
    assert any("fewer than" in note for note in dropped.notes)
    assert not any("no scores" in note for note in dropped.notes)


def test_golden_score_is_the_share_of_anchors_that_one_showing_helps(
    tiny: ModelOptions, records: pl.DataFrame, home: Home
) -> None:
    loaded, model = load_model(tiny), LanguageModel(tiny, home)
    pool, anchors = records.head(9), records.slice(7, 4)
    ids, gains = one_shot_gains(model, pool, anchors)
    encoded = loaded.encoder.encode(records)
    rows = sorted(anchors["record_id"])
    for i, anchor in enumerate(rows):
        row = encoded.rows[anchor]
        prompt, answer = encoded.prompt(row).tolist(), encoded.answer(row).tolist()
        alone = mean_logprob(loaded, [*encoded.head.tolist(), *prompt], answer)
        for j, record in enumerate(ids):
            if record == anchor:
                assert np.isnan(gains[i, j])
                continue
            before = [*encoded.prefix(encoded.rows[record]).tolist(), *prompt]
            shown = mean_logprob(loaded, before, answer)
            assert gains[i, j] == pytest.approx(shown - alone, abs=1e-5)
    golden, mean = golden_scores(gains)
    np.testing.assert_allclose(golden, np.nanmean(np.where(np.isnan(gains), np.nan, gains > 0), 0))
    np.testing.assert_allclose(mean, np.nanmean(gains, 0))


def test_nuggets_ranks_by_golden_score_and_finds_its_pairs_again(
    tiny: ModelOptions, records: pl.DataFrame, home: Home
) -> None:
    pool, target = records.head(8), records.tail(4)
    inputs = of(tiny, home, pool, target=target)
    found = select(inputs, "nuggets", "full", 0, {})
    golden, mean = golden_scores(one_shot_gains(inputs.language_model, pool, target)[1])
    ids = sorted(pool["record_id"])
    keys = zip(-golden.round(DECIMALS), -mean.round(DECIMALS), ids, strict=True)
    assert found.ranking == tuple(record for *_, record in sorted(keys))
    stored = inputs.language_model.scores.pair_count
    assert stored == 8 * 4
    again = select(of(tiny, home, pool, target=target), "nuggets", 3, 0, {})
    assert again.ranking == found.ranking[:3]
    assert inputs.language_model.scores.pair_count == stored
