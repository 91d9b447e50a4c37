"""A real English chat model scores, learns and answers as it should, on real text."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from delift_pipeline.core.home import Home
from delift_pipeline.core.progress import SilentProgress
from delift_pipeline.evaluation.options import EvaluationOptions
from delift_pipeline.evaluation.run import evaluate
from delift_pipeline.records.read import read_records
from delift_pipeline.records.schema import RECORD_SCHEMA, record_id
from delift_pipeline.scoring.engine import reduce_scores
from delift_pipeline.scoring.model import load_model
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.stages.find_wrong import find_wrong
from delift_pipeline.training.options import TrainingOptions
from delift_pipeline.training.run import train
from tests.prompts.test_chat import message
from tests.scoring.test_oracle import (
    SUM_BOUND,
    assert_distances_close,
    assert_no_less_exact,
    every_job,
    score_three_ways,
)

pytestmark = pytest.mark.real
LONGEST = 240
"""The most characters of a record: two cores have to be quick."""


@pytest.fixture(scope="module")
def options(real_model: Path) -> ModelOptions:
    return ModelOptions(model=str(real_model), device="cpu")


def short_records(path: Path, count: int) -> pl.DataFrame:
    """The first short records of a file."""
    frame = read_records(path).frame
    length = pl.concat_str("instruction", "input", "output").str.len_chars()
    return frame.filter(length <= LONGEST)[:count]


@pytest.mark.data
def test_scores_equal_plain_passes_of_the_model(options: ModelOptions, shared_data: Path) -> None:
    files = ("gsm8k/test.jsonl", "dolly/train.jsonl", "query_rewriting_canard/test.jsonl")
    loaded = load_model(options)
    frame = pl.concat(short_records(shared_data / file, 4) for file in files)
    records = loaded.encoder.encode(frame)
    assert len(records) == 12
    turn = {"role": "user", "content": message(frame.row(0, named=True))}
    start: Any = loaded.tokenizer.apply_chat_template(
        [turn], add_generation_prompt=True, return_dict=False
    )
    assert [*records.prefix(), *records.prompt(0)][: len(start)] == start
    baseline, *after = every_job(records)
    own_errors, plain_errors = [], []
    for found, plain, exact in score_three_ways(loaded, records, [baseline, after[7]]):
        assert_distances_close(found, plain)
        own_errors.append(np.abs(found.logprobs - exact.logprobs))
        plain_errors.append(np.abs(plain.logprobs - exact.logprobs))
        starts = np.cumsum(found.lengths) - found.lengths
        sums = np.add.reduceat(exact.logprobs, starts)
        own, theirs = (np.abs(reduce_scores(s).sum_logprob - sums) for s in (found, plain))
        bound = np.maximum(SUM_BOUND, SUM_BOUND + 2e-6 * (found.lengths - 64))
        assert (own <= theirs.max() + bound).all()
    # Over 49,152 words float32 itself is 7e-6 off in the middle, and 2e-5 in one token of fifty.
    assert_no_less_exact(np.concatenate(own_errors), np.concatenate(plain_errors))


@pytest.mark.data
def test_lora_on_real_records_lowers_the_loss_on_others_of_the_dataset(
    options: ModelOptions, shared_data: Path, tmp_path: Path
) -> None:
    folder = shared_data / "query_rewriting_canard"
    records = short_records(folder / "train.jsonl", 24)
    heldout = short_records(folder / "test.jsonl", 12)
    assert not set(records["record_id"]) & set(heldout["record_id"])
    training = TrainingOptions(steps=4, batch_size=6, learning_rate=1e-3, warmup_steps=0)
    log = train(training, options, records, 0, tmp_path)
    assert log.records_used == 24
    measure = EvaluationOptions(metrics=("answer_loss",))
    before, after = (
        evaluate(options, adapter, heldout, measure).samples["answer_loss"].to_numpy()
        for adapter in (None, tmp_path)
    )
    drop = before - after
    assert drop.mean() >= 0.2
    assert drop.mean() >= 3 * drop.std(ddof=1) / np.sqrt(len(drop))


@pytest.mark.data
def test_support_finds_planted_swaps(
    options: ModelOptions, shared_data: Path, tmp_path: Path
) -> None:
    files = ("gsm8k/train.jsonl", "query_rewriting_canard/train.jsonl")
    frame = pl.concat(short_records(shared_data / file, 16) for file in files)
    rows = frame.to_dicts()
    for place in (0, 1, 16, 17):
        row = {**rows[place], "output": frame["output"][place + 8]}
        texts = {name: row[name] for name in ("instruction", "input", "output")}
        rows[place] = {**row, "record_id": record_id(**texts)}
    swapped = {rows[place]["record_id"] for place in (0, 1, 16, 17)}
    records = pl.DataFrame(rows, schema=frame.schema)
    found = find_wrong(Home.at(tmp_path), records, options, SilentProgress(), count=6)
    assert swapped <= {one["record_id"] for one in found["least_supported"]}
    assert found["estimated_wrong"] <= 8


@pytest.mark.parametrize(
    ("question", "word"),
    [("What is the capital of France?", "Paris"), ("Hello! How are you?", "help")],
)
def test_model_answers_a_plain_question(options: ModelOptions, question: str, word: str) -> None:
    text = {"instruction": question, "input": "", "output": word}
    facts = {"source": "test", "task": "question", "copies": 1, "source_ids": ["1"]}
    asked = pl.DataFrame([{"record_id": record_id(**text), **text, **facts}], schema=RECORD_SCHEMA)
    measure = EvaluationOptions(metrics=("exact_match",), max_new_tokens=24)
    answer = evaluate(options, None, asked, measure).samples["generated"][0]
    assert word in answer
