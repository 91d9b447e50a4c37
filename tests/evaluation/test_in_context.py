import numpy as np
import polars as pl
import pytest
import torch

from delift_pipeline.core.errors import InputError
from delift_pipeline.evaluation.options import EvaluationOptions
from delift_pipeline.evaluation.run import evaluate_in_context, nearest_records
from delift_pipeline.scoring.model import LoadedModel, load_model
from delift_pipeline.scoring.options import ModelOptions


@pytest.fixture(scope="module")
def loaded(tiny: ModelOptions) -> LoadedModel:
    return load_model(tiny)


@pytest.fixture
def options() -> EvaluationOptions:
    return EvaluationOptions(
        metrics=("answer_loss", "exact_match"), in_context=2, embedder="tfidf", max_new_tokens=4
    )


def by_hand(loaded: LoadedModel, shown: list[dict], record: dict) -> float:
    """Mean loss of a record's answer after demonstrations joined token by token."""
    encoder = loaded.encoder
    frame = pl.DataFrame([*shown, record])
    encoded = encoder.encode(frame)
    last = len(shown)
    ids = list(encoder.start) if shown else list(encoder.head)
    for place in range(last):
        ids += encoded.demonstration(place).tolist()
    ids += encoded.prompt(last).tolist()
    answer = encoded.answer(last).tolist()
    sequence = torch.tensor([ids + answer])
    with torch.no_grad():
        found = torch.log_softmax(loaded.model(input_ids=sequence).logits[0].double(), dim=-1)
    places = range(len(ids) - 1, len(ids) + len(answer) - 1)
    return -float(np.mean([float(found[p, t]) for p, t in zip(places, answer, strict=True)]))


def test_losses_equal_a_plain_pass_behind_the_nearest_demonstrations(
    loaded: LoadedModel, records: pl.DataFrame, options: EvaluationOptions
) -> None:
    chosen, heldout = records.head(8), records.tail(4)
    near = nearest_records(chosen, heldout, 2, "tfidf")
    found = evaluate_in_context(loaded, chosen, heldout, options)
    rows = {
        row["record_id"]: row
        for row in records.select("record_id", "instruction", "input", "output").to_dicts()
    }
    for sample in found.samples.iter_rows(named=True):
        shown = [rows[other] for other in near[sample["record_id"]]]
        expected = by_hand(loaded, shown, rows[sample["record_id"]])
        assert sample["answer_loss"] == pytest.approx(expected, abs=1e-5)
    assert found.details["demonstrations"] == {"asked": 2, "shown_mean": 2.0}


def test_the_nearest_prompt_comes_first(records: pl.DataFrame) -> None:
    twin = records.tail(1).with_columns(record_id=pl.lit("f" * 32), output=pl.lit("six"))
    chosen = pl.concat([records.head(8), twin])
    near = nearest_records(chosen, records.tail(1), 3, "tfidf")
    assert near[records["record_id"][-1]][0] == "f" * 32


def test_as_many_demonstrations_as_the_window_holds_are_shown(
    loaded: LoadedModel, records: pl.DataFrame, options: EvaluationOptions
) -> None:
    many = options.model_copy(update={"in_context": 60})
    long = records.head(8).with_columns(instruction=pl.lit("say the code of " * 6))
    found = evaluate_in_context(loaded, long, records.tail(4), many)
    assert 0 < found.details["demonstrations"]["shown_mean"] < 8
    assert found.details["max_new_tokens"] == 4


def test_a_question_among_the_chosen_is_refused(
    loaded: LoadedModel, records: pl.DataFrame, options: EvaluationOptions
) -> None:
    with pytest.raises(InputError, match="its own answer"):
        evaluate_in_context(loaded, records, records.tail(1), options)
    with pytest.raises(InputError, match="at least one demonstration"):
        none = options.model_copy(update={"in_context": 0})
        evaluate_in_context(loaded, records.head(8), records.tail(1), none)
    with pytest.raises(InputError, match="the subset is empty"):
        evaluate_in_context(loaded, records.head(0), records.tail(1), options)
