"""Support: two passes a record, equal to a plain loop of forward passes, and never pairs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from delift_pipeline.core.errors import DeliftError
from delift_pipeline.prompts.encode import EncodedRecords
from delift_pipeline.scoring.engine import Engine, Job, TokenScores
from delift_pipeline.scoring.engines import NaiveEngine
from delift_pipeline.scoring.model import LoadedModel, load_model
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.scoring.packed_engine import PackedEngine
from delift_pipeline.scoring.plan import PairBlock, PairPlan
from delift_pipeline.scoring.report import stored_rate
from delift_pipeline.scoring.run import score_baseline, score_pairs
from delift_pipeline.scoring.shards import BASELINE, PROMPTED_ANSWER, UNPROMPTED_ANSWER, ShardDraft
from delift_pipeline.scoring.store import ScoreStore
from delift_pipeline.scoring.support import support_of
from delift_pipeline.scoring.transformers_engine import TransformersEngine
from tests.prompts.conftest import byte_level, chat_tokenizer

Made = Callable[..., pl.DataFrame]
MakeModel = Callable[..., Path]
BOUND = 1e-5
NOTHING = {"instruction": "", "input": ""}
BARE = """
name: bare
version: 1
prompt: ["{instruction}", "{input}"]
answer: ["{output}"]
"""


def without_texts(frame: pl.DataFrame) -> pl.DataFrame:
    """The same answers to a record without instruction and input."""
    return frame.with_columns(pl.lit(text).alias(name) for name, text in NOTHING.items())


def plain_loop(loaded: LoadedModel, frame: pl.DataFrame) -> np.ndarray:
    """Support by one Hugging Face forward pass of a whole sequence each, float64 [records]."""
    support = np.zeros(frame.height)
    for sign, texts in ((1, frame), (-1, without_texts(frame))):
        records = loaded.encoder.encode(texts)
        for row in range(frame.height):
            before, answer = [*records.head, *records.prompt(row)], records.answer(row)
            ids = torch.tensor([[*before, *answer]], dtype=torch.long)
            with torch.no_grad():
                logits = loaded.model(input_ids=ids).logits[0].double()
            for t in range(len(before), ids.shape[1] - 1):
                own = torch.log_softmax(logits[t - 1], -1)[ids[0, t]]
                support[row] += sign * own.item() / np.sqrt(len(answer))
    return support


@pytest.fixture(scope="session")
def chatty_model(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A tiny Llama that is scored with the chat template of its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "chat"
    make_model("llama", folder, tokenizer=chat_tokenizer("chatml"))
    return load_model(ModelOptions(model=str(folder), template="chat", threads=1))


def loaded_as(kind: str, request: pytest.FixtureRequest) -> LoadedModel:
    return request.getfixturevalue("chatty_model" if kind == "chat" else "llama")


ENGINES: dict[str, Callable[[Any], Engine]] = {
    "naive": NaiveEngine,
    "layers": TransformersEngine,
    "cache": lambda model: TransformersEngine(model, why_not_layers="compared"),
    "packed": PackedEngine,
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["plain", "chat"])
def test_support_equals_a_plain_loop_of_forward_passes(
    kind: str, engine: str, request: pytest.FixtureRequest, made_up: Made, tmp_path: Path
) -> None:
    loaded, frame = loaded_as(kind, request), made_up(9, longest=4)
    records, store = loaded.encoder.encode(frame), ScoreStore(tmp_path)
    assert len(records) == 9
    own = ENGINES[engine](loaded.model)
    report = score_baseline(loaded, store, records, support=True, engine=own)
    assert report.pairs_scored == 2 * 9
    support = support_of(store, records.ids)
    np.testing.assert_allclose(support, plain_loop(loaded, frame), atol=BOUND)
    assert support.dtype == np.float64 and support.std() > 0.1


@pytest.mark.parametrize("kind", ["plain", "chat"])
def test_an_empty_prompt_is_that_of_a_record_without_texts(
    kind: str, request: pytest.FixtureRequest, made_up: Made
) -> None:
    coder, frame = loaded_as(kind, request).encoder, made_up(9, longest=4)
    records = coder.encode(frame)
    found, expected = coder.without_prompts(records), coder.encode(without_texts(frame))
    for name in ("head", "target_tokens", "target_starts", "prompt_lengths"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    for row in range(9):
        np.testing.assert_array_equal(found.answer(row), records.answer(row))


def has_begin(tokenizer: PreTrainedTokenizerFast, begins: bool) -> PreTrainedTokenizerFast:
    if not begins:
        tokenizer.bos_token = None  # pyright: ignore
    return tokenizer


@pytest.mark.parametrize("begins", [True, False])
def test_a_template_without_words_of_its_own_leaves_one_token_before_the_answer(
    begins: bool, make_model: MakeModel, made_up: Made, tmp_path: Path
) -> None:
    (tmp_path / "bare.yaml").write_text(BARE)
    folder = make_model("llama", tmp_path / "m", tokenizer=has_begin(byte_level(), begins))
    options = ModelOptions(model=str(folder), template=str(tmp_path / "bare.yaml"), threads=1)
    loaded = load_model(options)
    records, store = loaded.encoder.encode(made_up(5, longest=3)), ScoreStore(tmp_path / "store")
    bare = loaded.encoder.without_prompts(records)
    first = loaded.encoder.bos[0] if begins else loaded.encoder.eos
    assert not len(bare.head) and all(bare.prompt(row).tolist() == [first] for row in range(5))
    score_baseline(loaded, store, records, support=True)
    assert np.isfinite(support_of(store, records.ids)).all()


def test_the_token_that_ends_an_answer_is_left_out(
    llama: LoadedModel, made_up: Made, tmp_path: Path
) -> None:
    records, store = llama.encoder.encode(made_up(9)), ScoreStore(tmp_path)
    score_baseline(llama, store, records, support=True)
    (scores,) = NaiveEngine(llama.model).score(records, [Job(records.prefix(), np.arange(9))])
    ends = scores.logprobs[np.cumsum(scores.lengths) - 1]
    prompted, _ = store.answer_sums(records.ids)
    baseline = store.baseline(records.ids)
    np.testing.assert_allclose(baseline.sum_logprob - prompted, ends, atol=1e-4)
    assert (ends < -0.1).all()
    np.testing.assert_array_equal(baseline.tokens, records.answer_lengths)


def test_support_counts_what_the_prompt_tells_about_the_answer(
    llama: LoadedModel, made_up: Made, tmp_path: Path
) -> None:
    records, store = llama.encoder.encode(made_up(6)), ScoreStore(tmp_path)

    class Copying:
        """log p of an answer token: high where the prompt has the token."""

        name, settings = "copying", {"engine": "copying"}

        def score(self, records: EncodedRecords, jobs: Any) -> list[TokenScores]:
            return [
                TokenScores(
                    np.concatenate(
                        [
                            np.where(np.isin(records.answer(row), records.prompt(row)), -0.1, -3.0)
                            for row in job.rows
                        ]
                    ).astype(np.float32),
                    records.answer_lengths[job.rows],
                )
                for job in jobs
            ]

    score_baseline(llama, store, records, support=True, engine=Copying())  # pyright: ignore
    known = [np.isin(records.answer(row)[:-1], records.prompt(row)).sum() * 2.9 for row in range(6)]
    expected = np.asarray(known) / np.sqrt(records.answer_lengths)
    np.testing.assert_allclose(support_of(store, records.ids), expected, atol=1e-5)


def test_support_is_not_known_where_a_score_is_missing(
    llama: LoadedModel, made_up: Made, tmp_path: Path
) -> None:
    records, store = llama.encoder.encode(made_up(6)), ScoreStore(tmp_path)
    assert np.isnan(support_of(store, records.ids)).all()
    score_baseline(llama, store, records, record_ids=records.ids[:4])
    assert np.isnan(support_of(store, records.ids)).all()
    score_baseline(llama, store, records, record_ids=records.ids[:2], support=True)
    support = support_of(store, [*records.ids, "f" * 32])
    assert np.isnan(support).tolist() == [False] * 2 + [True] * 5


def test_the_passes_are_no_pairs(llama: LoadedModel, made_up: Made, tmp_path: Path) -> None:
    records, store = llama.encoder.encode(made_up(6)), ScoreStore(tmp_path)
    score_baseline(llama, store, records, support=True)
    assert store.pair_count == 0 and stored_rate(store) is None
    plan = PairPlan((PairBlock("self", records.ids, records.ids),))
    assert score_pairs(llama, store, records, plan).pairs_scored == 36
    assert store.pair_count == 36 and stored_rate(store)


def test_baselines_of_an_older_store_are_kept_and_their_support_is_added(
    llama: LoadedModel, made_up: Made, tmp_path: Path
) -> None:
    records, store = llama.encoder.encode(made_up(8)), ScoreStore(tmp_path / "old")
    store.ensure_manifest(llama.fingerprint)
    numbers = store.ids.add(records.ids)
    old, draft = np.full(8, 0.5, dtype=np.float32), ShardDraft()
    draft.add(BASELINE, numbers, (old, old - 9), records.answer_lengths)  # pyright: ignore
    store.write(draft, {})
    assert score_baseline(llama, store, records).pairs_scored == 0
    assert score_baseline(llama, store, records, support=True).pairs_scored == 2 * 8
    assert score_baseline(llama, store, records, support=True).pairs_scored == 0
    np.testing.assert_array_equal(store.baseline(records.ids).sum_logprob, old - 9)
    fresh = ScoreStore(tmp_path / "fresh")
    score_baseline(llama, fresh, records, support=True)
    np.testing.assert_array_equal(support_of(store, records.ids), support_of(fresh, records.ids))


def test_a_run_that_dies_between_the_passes_goes_on_where_it_ended(
    llama: LoadedModel, made_up: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("delift_pipeline.scoring.run.BASELINE_ROWS", 4)
    records, store = llama.encoder.encode(made_up(10)), ScoreStore(tmp_path / "killed")

    class Dying(NaiveEngine):
        calls = 0

        def score(self, records: EncodedRecords, jobs: Any) -> list[TokenScores]:
            self.calls += 1
            if self.calls == 5:
                raise DeliftError("the power is gone")
            return super().score(records, jobs)

    with pytest.raises(DeliftError, match="power"):
        score_baseline(llama, store, records, support=True, engine=Dying(llama.model))
    # Three calls for the pass without prompts, one for the first four baselines.
    assert np.isfinite(support_of(store, records.ids)).sum() == 4
    rest = score_baseline(llama, store, records, support=True, engine=NaiveEngine(llama.model))
    assert rest.pairs_scored == 6
    whole = ScoreStore(tmp_path / "whole")
    score_baseline(llama, whole, records, support=True, engine=NaiveEngine(llama.model))
    np.testing.assert_array_equal(support_of(store, records.ids), support_of(whole, records.ids))
    for number in (BASELINE, PROMPTED_ANSWER, UNPROMPTED_ANSWER):
        assert len(store.index.present(number)) == 10
