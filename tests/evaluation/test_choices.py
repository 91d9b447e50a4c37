from pathlib import Path

import polars as pl
import pytest
import torch

from delift_pipeline.core.progress import SilentProgress
from delift_pipeline.evaluation.engines import TransformersEvaluation
from delift_pipeline.evaluation.options import EvaluationOptions
from delift_pipeline.evaluation.run import choice_accuracy, evaluate_model, listed_options
from delift_pipeline.records.read import read_records
from delift_pipeline.scoring.model import LoadedModel, load_model
from delift_pipeline.scoring.options import ModelOptions


@pytest.mark.parametrize(
    ("prompt", "letters"),
    [
        ("Which?\nA. one\nB. two\nC. three", "ABC"),
        ("Which?\n(A) one\n(B) two", "AB"),
        ("Which?\nB. two\nA. one", ""),
        ("A. one alone", ""),
        ("Vitamin C. Who knows", ""),
        ("A: x\nB: y\nD: z", "AB"),
    ],
)
def test_options_are_a_run_of_letters_at_line_starts(prompt: str, letters: str) -> None:
    assert listed_options(prompt) == list(letters)


def likeliest_letter(loaded: LoadedModel, row: dict[str, str], letters: str) -> str:
    """The letter with the largest summed log-probability, one plain pass an option."""
    scores = {}
    for letter in letters:
        frame = pl.DataFrame([{**row, "output": letter}])
        encoded = loaded.encoder.encode(frame)
        prompt = [*loaded.encoder.head, *encoded.prompt(0).tolist()]
        answer = encoded.answer(0).tolist()[:-1]
        ids = torch.tensor([prompt + answer])
        with torch.no_grad():
            found = torch.log_softmax(loaded.model(input_ids=ids).logits[0].double(), dim=-1)
        places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
        scores[letter] = sum(
            float(found[place, token]) for place, token in zip(places, answer, strict=True)
        )
    return max(scores, key=lambda letter: scores[letter])


@pytest.mark.data
def test_choices_equal_a_plain_pass_an_option_on_mmlu(stories: Path, shared_data: Path) -> None:
    loaded = load_model(ModelOptions(model=str(stories), device="cpu"))
    records = read_records(shared_data / "mmlu" / "test.jsonl").frame
    records = records.filter(pl.col("input").str.len_chars() < 250).head(12)
    engine = TransformersEvaluation(loaded.model, EvaluationOptions(batch_size=5))
    found = choice_accuracy(engine, loaded.encoder, records, SilentProgress())
    rows = list(records.select("record_id", "instruction", "input", "output").to_dicts())
    expected = [float(likeliest_letter(loaded, row, "ABCD") == row["output"]) for row in rows]
    assert found == expected
    assert 0 < sum(expected) < len(expected)


def test_records_without_options_are_left_out_of_the_mean(
    tiny: ModelOptions, records: pl.DataFrame
) -> None:
    asked = EvaluationOptions(metrics=("choice_accuracy", "answer_loss"))
    none = evaluate_model(load_model(tiny), records, asked)
    assert none.samples["choice_accuracy"].null_count() == records.height
    assert "choice_accuracy" not in none.metrics
