"""Pairs that are scored in one flat sequence score as one after the other."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from delift_pipeline.core.progress import SilentProgress
from delift_pipeline.prompts.encode import EncodedRecords
from delift_pipeline.scoring import engines
from delift_pipeline.scoring.engine import Job
from delift_pipeline.scoring.engines import NaiveEngine, reason_against_sharing
from delift_pipeline.scoring.model import LoadedModel
from delift_pipeline.scoring.packed_engine import PackedEngine, reason_against_packing
from delift_pipeline.scoring.packing import pack_pairs, split_jobs
from delift_pipeline.scoring.transformers_engine import TransformersEngine

ModelOf = Callable[[str], LoadedModel]
Made = Callable[..., pl.DataFrame]
PACKABLE = ("llama", "llama-tied", "mistral", "qwen2", "qwen3", "phi3", "phi3-partial")
PACKABLE += ("opt", "gpt2", "gemma", "granite")
TOKEN_BOUND = 1e-5


def jobs_of(records: EncodedRecords) -> list[Job]:
    """Targets of their own, some shared; one job without prefix, one without targets."""
    lists = ([0, 3, 5, 9, 12], [1, 2, 3], [], list(range(14)), [7])
    jobs = [Job(records.prefix(j), np.asarray(rows, np.int64)) for j, rows in enumerate(lists)]
    return [*jobs, Job(records.prefix()[:0], np.asarray([4, 1]))]


@pytest.mark.parametrize("family", PACKABLE)
@pytest.mark.parametrize("batch_tokens", [None, 90, 1])
def test_packed_pairs_score_as_one_after_the_other(
    family: str, batch_tokens: int | None, model_of: ModelOf, made_up: Made
) -> None:
    loaded = model_of(family)
    records = loaded.encoder.encode(made_up(14))
    jobs = jobs_of(records)
    alone = NaiveEngine(loaded.model).score(records, jobs)
    packed = PackedEngine(loaded.model, batch_tokens=batch_tokens).score(records, jobs)
    for expected, scores in zip(alone, packed, strict=True):
        np.testing.assert_array_equal(expected.lengths, scores.lengths)
        np.testing.assert_allclose(expected.logprobs, scores.logprobs, atol=TOKEN_BOUND)
    # The model is left as it was.
    again = NaiveEngine(loaded.model).score(records, jobs[:1])[0]
    np.testing.assert_array_equal(again.logprobs, alone[0].logprobs)


def test_batches_stay_within_their_tokens_and_hold_every_target_once(
    llama: LoadedModel, made_up: Made
) -> None:
    records = llama.encoder.encode(made_up(14))
    jobs = jobs_of(records)
    rows: list[list[int]] = [[] for _ in jobs]
    for batch in split_jobs(records, jobs, 120):
        parts = [Job(jobs[place].prefix, jobs[place].rows[cut]) for place, cut in batch]
        pairs = pack_pairs(records, parts, torch.device("cpu"))
        assert len(pairs.ids) <= 120 or sum(len(part.rows) for part in parts) == 1
        assert pairs.prefix_tokens == sum(len(part.prefix) for part in parts)
        for (place, _), part in zip(batch, parts, strict=True):
            rows[place] += part.rows.tolist()
    assert rows == [job.rows.tolist() for job in jobs]


@pytest.mark.parametrize("family", ["mistral-sliding", "gemma2"])
def test_the_trial_refuses_a_model_whose_attention_is_not_plain(
    family: str, model_of: ModelOf
) -> None:
    model = model_of(family).model
    assert reason_against_sharing(PackedEngine(model), model, 256)


def test_packing_is_for_half_precision_on_one_gpu_and_for_attention_that_does_not_slide(
    llama: LoadedModel, model_of: ModelOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "half precision" in str(reason_against_packing(llama.model, 256))
    assert "slides" in str(reason_against_packing(model_of("mistral-sliding").model, 256))
    monkeypatch.setattr(llama.model, "hf_device_map", {"a": 0, "b": 1}, raising=False)
    assert "several devices" in str(reason_against_packing(llama.model, 256))


class Lines(SilentProgress):
    """The lines that were said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def test_a_run_takes_the_packed_engine_or_says_why_not(
    model_of: ModelOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A CPU stands in for a GPU; its layers are not compiled, which would take minutes.
    monkeypatch.setattr(engines, "reason_against_packing", lambda *_: None)

    def without_compiling(model: Any, compiled: bool, **sizes: Any) -> PackedEngine:
        return PackedEngine(model, **sizes)

    monkeypatch.setattr(engines, "PackedEngine", without_compiling)
    progress = Lines()
    assert isinstance(engines.engine_for(model_of("llama"), progress), PackedEngine)
    assert not progress.lines
    assert isinstance(engines.engine_for(model_of("gemma2"), progress), TransformersEngine)
    assert len(progress.lines) == 2 and all("packed" in line for line in progress.lines)


def test_a_batch_that_does_not_fit_is_halved_until_one_pair_is_left(
    llama: LoadedModel, made_up: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = llama.encoder.encode(made_up(9))
    jobs = [Job(records.prefix(j), np.arange(9)) for j in range(2)]
    expected = PackedEngine(llama.model).score(records, jobs)
    engine = PackedEngine(llama.model)
    forward = engine._forward

    def short_of_memory(records: EncodedRecords, jobs: Sequence[Job]) -> Any:
        if sum(len(job.rows) for job in jobs) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(records, jobs)

    monkeypatch.setattr(engine, "_forward", short_of_memory)
    halved = engine.score(records, jobs)
    # Two jobs, then each job.
    assert [scores.halved for scores in halved] == [3, 0]
    for whole, parts in zip(expected, halved, strict=True):
        np.testing.assert_allclose(whole.logprobs, parts.logprobs, atol=TOKEN_BOUND)


@pytest.mark.slow
def test_compiled_layers_score_as_plain_ones_for_any_number_of_tokens(
    llama: LoadedModel, made_up: Made
) -> None:
    records = llama.encoder.encode(made_up(14))
    jobs = jobs_of(records)
    engine = PackedEngine(llama.model, compiled=True)
    for some in (jobs, jobs[:2], jobs[3:4]):
        expected = PackedEngine(llama.model).score(records, some)
        for plain, compiled in zip(expected, engine.score(records, some), strict=True):
            np.testing.assert_allclose(plain.logprobs, compiled.logprobs, atol=TOKEN_BOUND)
    # Other users of the model get its layers as they were.
    layers: Any = engine.decoder.body.layers
    assert all(layer._compiled_call_impl is None for layer in layers)
