from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn import functional
from transformers import GenerationConfig

from delift_pipeline.core.errors import DeliftError, InputError
from delift_pipeline.evaluation.options import GENERAL, EvaluationOptions
from delift_pipeline.evaluation.result import SAMPLE_SCHEMA, mean_and_error
from delift_pipeline.evaluation.run import NEW_TOKENS_MARGIN, evaluate, evaluate_model
from delift_pipeline.records.read import read_records
from delift_pipeline.records.schema import RECORD_SCHEMA
from delift_pipeline.scoring.model import LoadedModel, load_model
from delift_pipeline.scoring.options import ModelOptions

WITHOUT_EMBEDDINGS = ("answer_loss", "exact_match", "rouge1", "rougeL")


@pytest.fixture(scope="module")
def loaded(tiny: ModelOptions) -> LoadedModel:
    return load_model(tiny)


@pytest.fixture
def options() -> EvaluationOptions:
    return EvaluationOptions(metrics=WITHOUT_EMBEDDINGS, batch_size=5)


def loss_by_hand(loaded: LoadedModel, prompt: np.ndarray, answer: np.ndarray) -> float:
    ids = torch.from_numpy(np.concatenate([prompt, answer])).long()
    with torch.no_grad():
        logits = loaded.model(input_ids=ids[None]).logits[0].double()
    found = functional.log_softmax(logits, dim=-1)
    terms = [-float(found[t - 1, ids[t]]) for t in range(len(prompt), len(ids))]
    return sum(terms) / len(terms)


def answer_by_hand(loaded: LoadedModel, prompt: np.ndarray, longest: int) -> str:
    config = GenerationConfig(
        do_sample=False, max_new_tokens=longest, eos_token_id=loaded.encoder.eos, pad_token_id=0
    )
    ids = torch.from_numpy(prompt).long()[None]
    found = cast(Any, loaded.model).generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config
    )
    text = loaded.tokenizer.decode(found[0, len(prompt) :].tolist(), skip_special_tokens=True)
    return cast(str, text).strip()


def check_by_hand(
    loaded: LoadedModel, records: pl.DataFrame, options: EvaluationOptions, longest: int
) -> None:
    found = evaluate_model(loaded, records, options)
    encoded = loaded.encoder.encode(records)
    head = np.asarray(loaded.encoder.head, dtype=np.int32)
    assert found.samples["record_id"].to_list() == list(encoded.ids)
    assert found.details["max_new_tokens"] == longest
    losses = []
    for i, row in enumerate(found.samples.iter_rows(named=True)):
        prompt = np.concatenate([head, encoded.prompt(i)])
        losses.append(loss_by_hand(loaded, prompt, encoded.answer(i)))
        assert row["answer_loss"] == pytest.approx(losses[-1], abs=1e-5)
        assert row["generated"] == answer_by_hand(loaded, prompt, longest)
    assert found.metrics["answer_loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    error = np.std(losses, ddof=1) / np.sqrt(len(losses))
    assert found.metrics["answer_loss_se"] == pytest.approx(error, abs=1e-5)


def test_losses_and_answers_equal_those_made_one_by_one(
    loaded: LoadedModel, records: pl.DataFrame, options: EvaluationOptions
) -> None:
    check_by_hand(loaded, records, options, longest=4 + NEW_TOKENS_MARGIN)


@pytest.mark.data
def test_losses_and_answers_of_a_real_model(
    stories: Path, shared_data: Path, options: EvaluationOptions
) -> None:
    records = read_records(shared_data / "gsm8k" / "test.jsonl").frame.head(8)
    short = records.with_columns(
        instruction=pl.col("instruction").str.slice(0, 80),
        output=pl.col("output").str.slice(0, 10 + 5 * pl.int_range(pl.len())),
    )
    model = load_model(ModelOptions(model=str(stories), device="cpu"))
    asked = options.model_copy(update={"max_new_tokens": 24})
    check_by_hand(model, short, asked, longest=24)


def test_batch_size_changes_nothing(
    loaded: LoadedModel, records: pl.DataFrame, options: EvaluationOptions
) -> None:
    together = evaluate_model(loaded, records, options)
    for size in (1, 7):
        other = evaluate_model(loaded, records, options.model_copy(update={"batch_size": size}))
        assert other.samples["generated"].equals(together.samples["generated"])
        assert other.metrics == pytest.approx(together.metrics, abs=1e-5)


def test_rows_are_joined_by_record_whatever_order_they_come_in(
    loaded: LoadedModel, records: pl.DataFrame, options: EvaluationOptions
) -> None:
    first = evaluate_model(loaded, records, options).samples
    again = evaluate_model(loaded, records.sample(fraction=1, shuffle=True, seed=3), options)
    assert again.samples["record_id"].to_list() != first["record_id"].to_list()
    kept = [name for name in first.columns if name not in ("answer_loss", "embedding_similarity")]
    ours, theirs = (frame.sort("record_id") for frame in (again.samples, first))
    assert ours.select(kept).equals(theirs.select(kept))
    np.testing.assert_allclose(ours["answer_loss"], theirs["answer_loss"], atol=1e-5)


def test_means_do_not_depend_on_how_a_series_lies_in_memory() -> None:
    values = np.random.default_rng(0).uniform(1, 5, 301)
    whole = pl.Series(values)
    for cut in range(1, 300, 7):
        parts = pl.concat([pl.Series(values[:cut]), pl.Series(values[cut:])], rechunk=False)
        assert parts.n_chunks() == 2
        assert mean_and_error(parts) == mean_and_error(whole)


def test_a_models_own_generation_settings_are_set_aside(
    loaded: LoadedModel, records: pl.DataFrame, options: EvaluationOptions
) -> None:
    """Hub models ship repetition penalties, which would make greedy answers something else."""
    expected = evaluate_model(loaded, records, options).samples
    model = cast(Any, loaded.model)
    before = model.generation_config
    model.generation_config = GenerationConfig(repetition_penalty=5.0, no_repeat_ngram_size=1)
    try:
        assert evaluate_model(loaded, records, options).samples.equals(expected)
        assert model.generation_config.repetition_penalty == 5.0
    finally:
        model.generation_config = before


def test_every_metric_is_there_with_its_error(tiny: ModelOptions, records: pl.DataFrame) -> None:
    found = evaluate(tiny, None, records, EvaluationOptions())
    assert set(found.metrics) == {*GENERAL, *(f"{name}_se" for name in GENERAL)}
    assert found.samples.schema == SAMPLE_SCHEMA
    assert found.counts["heldout"] == found.counts["records"] == 12
    for name in GENERAL:
        values = found.samples[name].to_numpy()
        assert found.metrics[name] == pytest.approx(values.mean())


def test_unscorable_and_left_out_records_are_counted(
    loaded: LoadedModel, records: pl.DataFrame, options: EvaluationOptions
) -> None:
    long = records.head(1).with_columns(
        record_id=pl.lit("0" * 32), output=pl.lit(" ".join(["one"] * 100))
    )
    asked = options.model_copy(update={"limit": 8})
    found = evaluate_model(loaded, pl.concat([long, records]), asked)
    counts = {k: v for k, v in found.counts.items() if k != "unfinished"}
    assert counts == {"heldout": 13, "records": 7, "unscorable": 1, "past_limit": 5}
    assert list(found.details["unscorable"]) == ["0" * 32]
    with pytest.raises(DeliftError, match="no held-out record can be measured"):
        evaluate_model(loaded, long, options)


def test_loss_alone_generates_nothing(loaded: LoadedModel, records: pl.DataFrame) -> None:
    found = evaluate_model(loaded, records, EvaluationOptions(metrics=("answer_loss",)))
    assert set(found.metrics) == {"answer_loss", "answer_loss_se"}
    assert found.samples["generated"].null_count() == 12
    assert found.samples.schema == SAMPLE_SCHEMA


def test_an_empty_heldout_set_is_refused(loaded: LoadedModel, options: EvaluationOptions) -> None:
    with pytest.raises(InputError, match="the held-out set is empty"):
        evaluate_model(loaded, pl.DataFrame(schema=RECORD_SCHEMA), options)


def test_a_folder_without_a_model_is_refused(
    tiny: ModelOptions, records: pl.DataFrame, options: EvaluationOptions, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="neither an adapter nor a model"):
        evaluate(tiny, tmp_path, records, options)


def test_a_loss_that_is_not_finite_is_an_error(
    tiny: ModelOptions, records: pl.DataFrame, options: EvaluationOptions
) -> None:
    damaged = load_model(tiny)
    with torch.no_grad():
        next(damaged.model.parameters()).fill_(float("nan"))
    with pytest.raises(DeliftError, match="the answer loss of held-out record"):
        evaluate_model(replace(damaged), records, options)


def test_sampled_answers_are_a_function_of_the_seed(
    loaded: LoadedModel, records: pl.DataFrame, options: EvaluationOptions
) -> None:
    asked = options.model_copy(update={"generation": "paper", "metrics": ("rouge1",)})
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = evaluate_model(loaded, records, asked)
    assert torch.equal(torch.random.get_rng_state(), before)
    again = evaluate_model(loaded, records, asked)
    other = evaluate_model(loaded, records, asked.model_copy(update={"seed": 1}))
    assert first.samples.equals(again.samples)
    assert not first.samples.equals(other.samples)


def test_sampled_answers_depend_on_what_greedy_ones_do_not(options: EvaluationOptions) -> None:
    sampled = options.model_copy(update={"generation": "paper"})
    other = {"seed": 1, "batch_size": 6}
    assert options.request == options.model_copy(update=other).request
    assert sampled.request != sampled.model_copy(update=other).request
