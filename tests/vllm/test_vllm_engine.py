"""vLLM gives the transformers engine's numbers. Run by `make test-vllm` in its own environment."""

import gc
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from delift_pipeline.core.errors import DeliftError, InputError
from delift_pipeline.prompts.encode import EncodedRecords
from delift_pipeline.scoring import engines, vllm_engine
from delift_pipeline.scoring.engine import Engine, Job
from delift_pipeline.scoring.engines import NaiveEngine, engine_for
from delift_pipeline.scoring.model import LoadedModel, load_model, load_scorer
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.scoring.vllm_engine import VllmEngine
from tests.scoring.tables import score_table

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make test-vllm"),
]
BOUND = 1e-4
Made = Callable[..., pl.DataFrame]


@pytest.fixture(scope="module")
def engine(asked: ModelOptions, llama: LoadedModel) -> Iterator[VllmEngine]:
    started = VllmEngine(llama.folder, asked, llama.encoder.window)
    yield started
    started.close()


def jobs_of(records: EncodedRecords) -> list[Job]:
    """Without demonstration, with one, with two, and a few targets only."""
    rows = np.arange(len(records))
    return [
        Job(records.prefix(), rows),
        Job(records.prefix(1), rows),
        Job(records.prefix(5), rows),
        Job(records.prefix(2, 3), rows),
        Job(records.prefix(4), rows[::-3]),
    ]


def largest_gap(one: Engine, other: Engine, records: EncodedRecords, jobs: Sequence[Job]) -> float:
    gaps = []
    pairs = zip(one.score(records, jobs), other.score(records, jobs), strict=True)
    for mine, theirs in pairs:
        assert mine.logprobs.dtype == np.float32
        np.testing.assert_array_equal(mine.lengths, theirs.lengths)
        gaps.append(np.abs(mine.logprobs - theirs.logprobs).max())
    return float(max(gaps))


def test_a_random_model_is_scored_as_by_the_other_engines(
    engine: VllmEngine, llama: LoadedModel, made_up: Made
) -> None:
    records = llama.encoder.encode(made_up(12))
    jobs = jobs_of(records)
    assert largest_gap(engine, engine_for(llama), records, jobs) <= BOUND
    assert largest_gap(engine, NaiveEngine(llama.model), records, jobs) <= BOUND


def test_a_job_gives_the_same_bits_in_any_company(
    engine: VllmEngine, llama: LoadedModel, made_up: Made
) -> None:
    records = llama.encoder.encode(made_up(12))
    jobs = jobs_of(records)
    alone = engine.score(records, [jobs[1]])[0]
    in_company = engine.score(records, list(reversed(jobs)))[-2]
    np.testing.assert_array_equal(in_company.logprobs, alone.logprobs)


def test_calls_in_chunks_give_the_same_scores_in_order(
    engine: VllmEngine, llama: LoadedModel, made_up: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = llama.encoder.encode(made_up(12))
    job = Job(records.prefix(1), np.random.default_rng(0).permutation(12))
    whole = engine.score(records, [job])[0]
    monkeypatch.setattr(vllm_engine, "TARGETS_PER_CALL", 5)
    chunked = engine.score(records, [job])[0]
    np.testing.assert_allclose(chunked.logprobs, whole.logprobs, atol=BOUND)


def test_a_job_without_targets_is_empty(
    engine: VllmEngine, llama: LoadedModel, made_up: Made
) -> None:
    records = llama.encoder.encode(made_up(3))
    (found,) = engine.score(records, [Job(records.prefix(1), np.empty(0, dtype=np.int64))])
    assert len(found.logprobs) == len(found.lengths) == 0


def test_a_pair_may_fill_the_window_to_the_last_token_and_no_further(
    engine: VllmEngine, llama: LoadedModel, made_up: Made
) -> None:
    records = llama.encoder.encode(made_up(12))
    row = np.asarray([3])
    room = llama.encoder.window - len(records.prompt(3)) - len(records.answer(3))
    filler = np.resize(records.demonstration(0), room).astype(np.int32)
    full = Job(filler, row)
    assert largest_gap(engine, NaiveEngine(llama.model), records, [full]) <= BOUND
    with pytest.raises(DeliftError, match="257 tokens is longer than the window of 256"):
        engine.score(records, [Job(np.append(filler, filler[:1]), row)])


def test_the_settings_name_what_decides_batches(engine: VllmEngine) -> None:
    settings = engine.settings
    assert settings["engine"] == "vllm"
    assert settings["version"] and settings["batch_tokens"] > 0
    assert settings["tensor_parallel_size"] == 1


def test_torchs_threads_can_still_be_set(engine: VllmEngine) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    assert torch.get_num_threads() == before + 1
    torch.set_num_threads(before)


def lora(base: Any, folder: Path, rank: int) -> Any:
    """A PEFT adapter with weights that change the scores, saved."""
    from peft import LoraConfig, get_peft_model

    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=modules, task_type="CAUSAL_LM")
    torch.manual_seed(1)
    model = get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.05)
    model.save_pretrained(str(folder))
    return model.eval()


def test_an_adapter_is_applied_as_by_peft(
    asked: ModelOptions, llama: LoadedModel, made_up: Made, tmp_path: Path
) -> None:
    records = llama.encoder.encode(made_up(12))
    jobs = jobs_of(records)
    adapted = NaiveEngine(lora(load_model(asked).model, tmp_path / "adapter", rank=4))
    window = llama.encoder.window
    engine = VllmEngine(llama.folder, asked, window, adapter=tmp_path / "adapter")
    try:
        assert largest_gap(engine, adapted, records, jobs) <= BOUND
        assert largest_gap(engine, NaiveEngine(llama.model), records, jobs) > 0.01
    finally:
        engine.close()


def test_scoring_starts_vllm_once_and_ends_it_with_the_model(
    asked: ModelOptions, llama: LoadedModel, made_up: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[VllmEngine] = []

    class Counted(VllmEngine):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(engines, "VllmEngine", Counted)
    scorer = load_scorer(asked.model_copy(update={"engine": "vllm"}))
    records = scorer.encoder.encode(made_up(6))
    found, expected = (score_table(model, None, records) for model in (scorer, llama))
    assert found.select("target_id", "demonstration_id", "tokens").equals(
        expected.select("target_id", "demonstration_id", "tokens")
    )
    for column in ("squared_distance", "sum_logprob"):
        np.testing.assert_allclose(found[column], expected[column], atol=BOUND)
    assert len(started) == 1 and started[0]._llm is not None
    del scorer
    gc.collect()
    assert started[0]._llm is None


def test_a_device_that_this_vllm_does_not_have_is_refused(
    asked: ModelOptions, llama: LoadedModel
) -> None:
    options = asked.model_copy(update={"device": "cuda:1"})
    with pytest.raises(InputError, match=r"device: this vLLM runs on .*, not on cuda:1"):
        VllmEngine(llama.folder, options, llama.encoder.window)


@pytest.mark.data
def test_heads_that_the_cpu_attention_lacks_are_refused(stories: Path) -> None:
    options = ModelOptions(model=str(stories), device="cpu", threads=1, engine="vllm")
    with pytest.raises(InputError, match="heads of size 8"):
        engine_for(load_scorer(options))


@pytest.mark.data
@pytest.mark.parametrize("name", ["gsm8k/train.jsonl", "alpaca/v1_original.jsonl"])
def test_a_real_model_agrees_on_real_records(
    name: str, stories: Path, wide_stories: Path, shared_data: Path
) -> None:
    plain = load_model(ModelOptions(model=str(stories), device="cpu", threads=1))
    frame = pl.read_ndjson(shared_data / name, n_rows=12)
    numbered = pl.int_range(frame.height).cast(pl.String).str.zfill(32).alias("record_id")
    records = plain.encoder.encode(frame.with_columns(numbered))
    rows = np.arange(len(records))
    jobs = [Job(records.prefix(), rows), *(Job(records.prefix(j), rows) for j in range(3))]
    options = ModelOptions(model=str(wide_stories), device="cpu", threads=1, engine="vllm")
    scorer = load_scorer(options)
    assert largest_gap(engine_for(scorer), engine_for(plain), records, jobs) <= BOUND
