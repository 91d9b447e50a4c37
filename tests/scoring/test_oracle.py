"""The engine agrees with a naive double loop of plain forward passes, full logits."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from delift_pipeline.prompts.encode import EncodedRecords
from delift_pipeline.scoring.engine import Job, TokenScores, reduce_scores
from delift_pipeline.scoring.engines import NaiveEngine, engine_for, reason_against_sharing
from delift_pipeline.scoring.layers import _attend_with_matmul, attend
from delift_pipeline.scoring.model import LoadedModel, load_model
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.scoring.transformers_engine import TransformersEngine

FAMILIES = (
    *(
        "llama",
        "llama-tied",
        "mistral",
        "mistral-sliding",
        "qwen2",
        "qwen3",
        "phi3",
        "phi3-partial",
    ),
    *("opt", "gpt2", "gemma", "gemma2", "granite"),
)
LAYERED = ("llama", "llama-tied", "mistral", "qwen2", "qwen3", "phi3", "phi3-partial")
TOKEN_BOUND, DISTANCE_BOUND, SUM_BOUND = 1e-5, 1e-5, 1e-4
ModelOf = Callable[[str], LoadedModel]
Made = Callable[..., pl.DataFrame]


def oracle(model: Any, records: EncodedRecords, prefix: np.ndarray, row: int) -> np.ndarray:
    """log p of each answer token by one forward pass over the whole sequence."""
    prompt, answer = records.prompt(row), records.answer(row)
    ids = torch.tensor(np.concatenate([prefix, prompt, answer]).astype(np.int64))
    with torch.no_grad():
        logits = model(input_ids=ids[None]).logits[0]
    first = len(prefix) + len(prompt)
    return torch.stack(
        [torch.log_softmax(logits[t - 1], -1)[ids[t]] for t in range(first, len(ids))]
    ).numpy()


def every_job(records: EncodedRecords) -> list[Job]:
    rows = np.arange(len(records))
    return [Job(records.prefix(), rows), *(Job(records.prefix(j), rows) for j in rows.tolist())]


def assert_distances_close(found: TokenScores, expected: TokenScores) -> None:
    mine, theirs = (np.sqrt(reduce_scores(one).squared_distance) for one in (found, expected))
    assert np.abs(mine - theirs).max() <= DISTANCE_BOUND


def score_three_ways(
    loaded: LoadedModel, records: EncodedRecords, jobs: list[Job]
) -> Iterator[tuple[TokenScores, TokenScores, TokenScores]]:
    """Each job's scores by the engine, by plain passes, and by plain passes in float64."""
    double = copy.deepcopy(loaded.model).double()
    for job, found in zip(jobs, engine_for(loaded).score(records, jobs), strict=True):
        plain, exact = (
            np.concatenate([oracle(model, records, job.prefix, row) for row in job.rows])
            for model in (loaded.model, double)
        )
        yield found, TokenScores(plain, found.lengths), TokenScores(exact, found.lengths)


def assert_no_less_exact(own: np.ndarray, plain: np.ndarray) -> None:
    """Compare errors of tokens against float64: the engine's are no larger than a plain pass's."""
    assert np.sqrt(np.mean(own**2)) <= 1.15 * np.sqrt(np.mean(plain**2))
    assert np.quantile(own, 0.99) <= 1.25 * np.quantile(plain, 0.99)
    assert own.max() <= 2 * plain.max()


def assert_close(found: TokenScores, expected: list[np.ndarray]) -> None:
    truth = TokenScores(np.concatenate(expected), np.asarray([len(e) for e in expected]))
    np.testing.assert_array_equal(found.lengths, truth.lengths)
    assert np.abs(found.logprobs - truth.logprobs).max() <= TOKEN_BOUND
    mine, theirs = reduce_scores(found), reduce_scores(truth)
    assert_distances_close(found, truth)
    assert np.abs(mine.sum_logprob - theirs.sum_logprob).max() <= SUM_BOUND


@pytest.mark.parametrize("family", FAMILIES)
def test_every_pair_and_the_baseline_equal_the_double_loop(
    family: str, model_of: ModelOf, made_up: Made
) -> None:
    loaded = model_of(family)
    records = loaded.encoder.encode(made_up(7))
    engine = engine_for(loaded)
    assert engine.settings["path"] == ("layers" if family in LAYERED else "cache")
    assert ("why_not_layers" in engine.settings) == (family not in LAYERED)
    jobs = every_job(records)
    for job, found in zip(jobs, engine.score(records, jobs), strict=True):
        expected = [oracle(loaded.model, records, job.prefix, row) for row in job.rows]
        assert_close(found, expected)


@pytest.mark.parametrize("batch_tokens", [1, 20, 60, 100_000])
def test_the_batch_size_and_the_order_of_targets_do_not_matter(
    batch_tokens: int, llama: LoadedModel, made_up: Made
) -> None:
    records = llama.encoder.encode(made_up(20))
    engine = TransformersEngine(llama.model, batch_tokens)
    rows = np.random.default_rng(batch_tokens).permutation(len(records))
    found = engine.score(records, [Job(records.prefix(4), rows)])[0]
    assert_close(found, [oracle(llama.model, records, records.prefix(4), row) for row in rows])


def test_the_same_job_gives_the_same_bits_in_any_company(llama: LoadedModel, made_up: Made) -> None:
    records = llama.encoder.encode(made_up(20))
    job = Job(records.prefix(4), np.arange(20))
    other = Job(records.prefix(7), np.arange(3, 9))
    alone = TransformersEngine(llama.model).score(records, [job])[0]
    engine = TransformersEngine(llama.model)
    for company in ([job, other, job], [other, job]):
        for asked, found in zip(company, engine.score(records, company), strict=True):
            if asked is job:
                np.testing.assert_array_equal(found.logprobs, alone.logprobs)


@pytest.mark.parametrize("family", LAYERED)
def test_both_ways_of_sharing_a_prefix_agree(family: str, model_of: ModelOf, made_up: Made) -> None:
    loaded = model_of(family)
    records = loaded.encoder.encode(made_up(12))
    jobs = every_job(records)
    plain = TransformersEngine(loaded.model, why_not_layers="compared").score(records, jobs)
    for a, b in zip(plain, TransformersEngine(loaded.model).score(records, jobs), strict=True):
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=TOKEN_BOUND)


def test_several_demonstrations_stand_before_a_target(llama: LoadedModel, made_up: Made) -> None:
    records = llama.encoder.encode(made_up(8, longest=5))
    prefix = records.prefix(2, 5, 0)
    shown = [records.demonstration(row) for row in (2, 5, 0)]
    np.testing.assert_array_equal(prefix, np.concatenate([records.start, *shown]))
    found = engine_for(llama).score(records, [Job(prefix, np.arange(8))])[0]
    assert_close(found, [oracle(llama.model, records, prefix, row) for row in range(8)])


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3-partial"])
def test_two_demonstrations_in_flight_score_as_one_after_the_other(
    family: str, model_of: ModelOf, made_up: Made
) -> None:
    loaded = model_of(family)
    records = loaded.encoder.encode(made_up(14))
    # Targets of their own, some shared, one demonstration without any, one job without prefix.
    lists = ([0, 3, 5, 9, 12], [1, 2, 3], [], list(range(14)), [7])
    jobs = [Job(records.prefix(j), np.asarray(rows, np.int64)) for j, rows in enumerate(lists)]
    jobs[4] = Job(records.prefix()[:0], jobs[4].rows)
    jobs = [job for job in jobs if len(job.rows)]
    alone = TransformersEngine(loaded.model).score(records, jobs)
    for in_flight, batch_tokens in ((2, None), (4, 60), (8, None)):
        engine = TransformersEngine(loaded.model, batch_tokens, in_flight=in_flight)
        assert engine.settings["in_flight"] == in_flight
        for a, b in zip(alone, engine.score(records, jobs), strict=True):
            np.testing.assert_array_equal(a.lengths, b.lengths)
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=TOKEN_BOUND)


def test_a_batch_of_two_demonstrations_that_does_not_fit_is_halved(
    llama: LoadedModel, made_up: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = llama.encoder.encode(made_up(9))
    jobs = [Job(records.prefix(j), np.arange(9)) for j in range(2)]
    expected = TransformersEngine(llama.model).score(records, jobs)
    engine = TransformersEngine(llama.model, in_flight=2)
    logprobs = engine.path.logprobs

    def short_of_memory(ready: Any, prefixes: Any) -> torch.Tensor:
        if ready.targets.rows > 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return logprobs(ready, prefixes)

    monkeypatch.setattr(engine.path, "logprobs", short_of_memory)
    found = engine.score(records, jobs)
    assert [scores.halved for scores in found] == [3, 0]
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=TOKEN_BOUND)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_without_a_kernel_is_the_same(dtype: torch.dtype, causal: bool) -> None:
    query, key, value = (torch.randn(2, 3, 7, 16).to(dtype) for _ in range(3))
    fast = attend(query, key, value, scale=0.25, causal=causal)
    plain = _attend_with_matmul(query, key, value, 0.25, causal, None)
    bound = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(fast.out, plain.out, atol=bound, rtol=0)
    torch.testing.assert_close(fast.lse, plain.lse, atol=bound, rtol=0)


def test_the_naive_engine_is_the_double_loop(llama: LoadedModel, made_up: Made) -> None:
    records = llama.encoder.encode(made_up(5))
    jobs = every_job(records)
    for job, found in zip(jobs, NaiveEngine(llama.model).score(records, jobs), strict=True):
        assert_close(found, [oracle(llama.model, records, job.prefix, row) for row in job.rows])


def test_a_model_without_a_shareable_cache_is_scored_pair_by_pair_and_says_so(
    model_of: ModelOf, made_up: Made
) -> None:
    class Listening:
        def __init__(self) -> None:
            self.lines: list[str] = []

        def say(self, line: str) -> None:
            self.lines.append(line)

    loaded, progress = model_of("mamba"), Listening()
    engine = engine_for(loaded, progress)  # pyright: ignore[reportArgumentType]
    assert engine.name == "naive"
    assert "a forward pass of its own" in progress.lines[0]


def test_a_head_that_the_engine_does_not_know_is_found_before_it_is_scored_wrongly(
    model_of: ModelOf,
) -> None:
    loaded = model_of("gemma2")
    engine = TransformersEngine(loaded.model)
    assert reason_against_sharing(engine, loaded.model, 256) is None
    engine.decoder.logits = engine.decoder.head  # pyright: ignore
    assert "changes its log-probabilities" in str(reason_against_sharing(engine, loaded.model, 256))


def test_logits_in_several_chunks_give_the_same_scores(llama: LoadedModel, made_up: Made) -> None:
    records = llama.encoder.encode(made_up(9))
    job = Job(records.prefix(1), np.arange(9))
    whole = TransformersEngine(llama.model).score(records, [job])[0]
    engine = TransformersEngine(llama.model)
    engine.decoder.logit_rows = 3
    chunked = engine.score(records, [job])[0]
    np.testing.assert_allclose(chunked.logprobs, whole.logprobs, atol=TOKEN_BOUND)


def test_a_batch_that_does_not_fit_is_halved_and_counted(
    llama: LoadedModel, made_up: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = llama.encoder.encode(made_up(20))
    job = Job(records.prefix(4), np.arange(20))
    expected = TransformersEngine(llama.model).score(records, [job])[0]
    engine = TransformersEngine(llama.model)
    logprobs = engine.path.logprobs

    def short_of_memory(ready: Any, prefix: Any) -> torch.Tensor:
        if ready.targets.rows > 6:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return logprobs(ready, prefix)

    monkeypatch.setattr(engine.path, "logprobs", short_of_memory)
    found = engine.score(records, [job])[0]
    assert found.halved == 3
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=TOKEN_BOUND)


def test_another_failure_is_not_taken_for_lack_of_memory(
    llama: LoadedModel, made_up: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = llama.encoder.encode(made_up(4))
    engine = TransformersEngine(llama.model)

    def broken(ready: Any, prefix: Any) -> torch.Tensor:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(engine.path, "logprobs", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        engine.score(records, [Job(records.prefix(), np.arange(4))])


def test_bfloat16_stays_near_float32(llama: LoadedModel, made_up: Made) -> None:
    half = load_model(ModelOptions(model=str(llama.folder), dtype="bfloat16"))
    records = llama.encoder.encode(made_up(10))
    jobs = [Job(records.prefix(j), np.arange(10)) for j in range(3)]
    full = TransformersEngine(llama.model).score(records, jobs)
    for a, b in zip(full, engine_for(half).score(records, jobs), strict=True):
        gap = np.sqrt(reduce_scores(a).squared_distance) - np.sqrt(
            reduce_scores(b).squared_distance
        )
        assert np.abs(gap).max() <= 0.03


@pytest.mark.data
@pytest.mark.parametrize("name", ["gsm8k/train.jsonl", "alpaca/v1_original.jsonl"])
def test_a_real_model_agrees_on_real_records(name: str, stories: Path, shared_data: Path) -> None:
    torch.set_num_threads(1)
    loaded = load_model(ModelOptions(model=str(stories)))
    frame = pl.read_ndjson(shared_data / name, n_rows=12)
    numbered = pl.int_range(frame.height).cast(pl.String).str.zfill(32).alias("record_id")
    records = loaded.encoder.encode(frame.with_columns(numbered))
    engine = engine_for(loaded)
    assert engine.settings["path"] == "layers"
    own_errors, plain_errors = [], []
    for found, plain, exact in score_three_ways(loaded, records, every_job(records)[:5]):
        own_errors.append(np.abs(found.logprobs - exact.logprobs))
        plain_errors.append(np.abs(plain.logprobs - exact.logprobs))
        assert_distances_close(found, plain)
        sums = np.add.reduceat(exact.logprobs, np.cumsum(found.lengths) - found.lengths)
        bound = np.maximum(SUM_BOUND, SUM_BOUND + 2e-6 * (found.lengths - 64))
        assert (np.abs(reduce_scores(found).sum_logprob - sums) <= bound).all()
    # Float32 itself is coarser than the bound in one token of a hundred here, in the plain pass as
    # in ours: what can be asked is that ours is no farther from a pass in float64.
    own = np.concatenate(own_errors)
    assert_no_less_exact(own, np.concatenate(plain_errors))
    assert np.quantile(own, 0.98) <= TOKEN_BOUND


def test_the_distance_is_the_papers_root_mean_square_of_one_minus_p() -> None:
    p = np.asarray([0.9, 0.5, 0.25, 1.0], dtype=np.float32)
    scores = reduce_scores(TokenScores(np.log(p), np.asarray([3, 1])))
    expected = [np.mean((1 - p[:3].astype(np.float64)) ** 2), 0.0]
    np.testing.assert_allclose(scores.squared_distance, expected, rtol=1e-6)
    np.testing.assert_allclose(scores.sum_logprob, [np.log(p[:3]).sum(), 0.0], rtol=1e-6)


def test_rotary_positions_that_change_with_the_length_are_not_shared(
    model_of: ModelOf,
) -> None:
    loaded = model_of("phi3")
    engine = TransformersEngine(loaded.model)
    factors = [1.0] * 6
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 128,
        "short_factor": factors,
        "long_factor": factors,
    }
    before = loaded.model.config.rope_parameters
    loaded.model.config.rope_parameters = rope
    try:
        assert "length" in str(reason_against_sharing(engine, loaded.model, 256))
        assert reason_against_sharing(engine, loaded.model, 128) is None
    finally:
        loaded.model.config.rope_parameters = before
