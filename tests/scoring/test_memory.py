"""Memory: a plan that real peaks stay below, and batches halved where memory runs out."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from delift_pipeline.bench.scoring import peak_memory, random_model, random_records
from delift_pipeline.core.errors import InputError
from delift_pipeline.scoring.decoder import Decoder
from delift_pipeline.scoring.engine import Job
from delift_pipeline.scoring.model import LoadedModel
from delift_pipeline.scoring.model_files import GIB
from delift_pipeline.scoring.plan import PairBlock, PairPlan
from delift_pipeline.scoring.run import score_pairs
from delift_pipeline.scoring.store import ScoreStore
from delift_pipeline.scoring.transformers_engine import MemoryPlan, TransformersEngine, plan_memory

CPU = torch.device("cpu")
Made = Callable[..., pl.DataFrame]


@pytest.fixture(scope="module")
def wide() -> Any:
    """Four layers over a vocabulary of 150,000 words."""
    torch.set_num_threads(1)
    return random_model("wide-vocabulary", torch.float32, CPU)


def peak_bytes(work: Callable[[], Any]) -> int:
    """Most bytes of tensors that live at the same moment, over those that live now."""
    activity = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activity, profile_memory=True) as profiler:
        work()
    events: Any = profiler.profiler.kineto_results.events()  # pyright: ignore
    moments = [e for e in events if e.name() == "[memory]"]
    sizes = [e.nbytes() for e in sorted(moments, key=lambda e: e.start_ns())]
    return int(np.cumsum(sizes).max())


@pytest.mark.parametrize("layered", [True, False])
def test_tensors_of_a_wide_vocabulary_stay_below_the_plan(wide: Any, layered: bool) -> None:
    records = random_records(12, 120, 40, 150_000)
    job = Job(records.prefix(0), np.arange(12))
    why = None if layered else "compared"
    engine = TransformersEngine(wide, window=512, memory_limit=0.75, why_not_layers=why)
    peak = peak_bytes(lambda: engine.score(records, [job]))
    # The logits of these answers alone, had they been made at once, are 0.27 GiB and twice that.
    assert 0.05 * GIB < peak < 0.75 * GIB


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["wide-vocabulary", "llama-10m", "demo"])
def test_the_process_stays_below_one_and_a_half_gib_over_the_model(shape: str) -> None:
    # 64 targets of 210 + 40 tokens: their logits alone, made everywhere, are 8.9 GiB of the first.
    assert 20 < peak_memory(shape, "realistic", targets=64) < 1536


def plan(model: Any, **asked: Any) -> MemoryPlan:
    return plan_memory(Decoder(model), shared=asked.pop("shared", True), **asked)


def test_the_plan_without_a_limit_is_that_of_one_and_a_half_gib(wide: Any) -> None:
    assert plan(wide) == plan(wide, memory_limit=1.5)
    assert plan(wide).limit == 1.5 * GIB


@pytest.mark.parametrize("shared", [True, False])
def test_less_memory_gives_smaller_batches_of_targets_and_logits(wide: Any, shared: bool) -> None:
    found = [plan(wide, memory_limit=limit, shared=shared) for limit in (0.5, 0.7, 1.0, 4.0)]
    sizes = [(each.tokens, each.logit_rows, each.keys or 0) for each in found]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_a_batch_size_that_is_asked_for_bounds_the_plan(wide: Any) -> None:
    assert plan(wide, batch_tokens=77).tokens == 77


def test_more_demonstrations_in_flight_leave_less_for_their_targets(wide: Any) -> None:
    one, many = (
        plan(wide, memory_limit=0.75, in_flight=count, batch_tokens=10**9) for count in (1, 8)
    )
    assert many.tokens < one.tokens


def test_a_limit_that_no_pair_fits_is_refused_with_what_it_needs(wide: Any) -> None:
    with pytest.raises(
        InputError, match=r"memory_limit: 0\.1 GiB is less than the 0\.\d+ GiB that"
    ):
        TransformersEngine(wide, memory_limit=0.1)


def test_where_no_limit_is_given_a_model_that_needs_more_gets_it(wide: Any) -> None:
    asked = {"window": 1 << 17, "shared": False}
    assert plan(wide, **asked).tokens >= 1
    with pytest.raises(InputError, match="smaller window"):
        plan(wide, memory_limit=1.5, **asked)


def test_prefixes_that_are_copied_bound_the_targets_of_a_batch(
    llama: LoadedModel, made_up: Made
) -> None:
    records = llama.encoder.encode(made_up(20))
    engine = TransformersEngine(llama.model, why_not_layers="compared", window=256)
    assert engine.plan.keys is not None
    job = Job(records.prefix(3), np.arange(20))
    expected = engine.score(records, [job])[0]
    few = TransformersEngine(llama.model, why_not_layers="compared", window=256)
    few.plan = MemoryPlan(**{**vars(engine.plan), "keys": 2 * 256})
    sizes = []
    logprobs: Any = few.path.logprobs
    few.path.logprobs = lambda ready, prefixes: (  # pyright: ignore
        sizes.append(ready.rows) or logprobs(ready, prefixes)  # pyright: ignore
    )
    found = few.score(records, [job])[0]
    assert max(sizes) <= 4 < 20
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-5)


def test_batches_are_made_anew_where_a_longer_prefix_leaves_less_room(
    llama: LoadedModel, made_up: Made
) -> None:
    records = llama.encoder.encode(made_up(20))
    engine = TransformersEngine(llama.model, why_not_layers="compared", window=256)
    engine.plan = MemoryPlan(**{**vars(engine.plan), "keys": 600, "longest_prefix": 1})
    sizes = list[int]()
    logprobs: Any = engine.path.logprobs
    engine.path.logprobs = lambda ready, prefixes: (  # pyright: ignore
        sizes.append(ready.rows) or logprobs(ready, prefixes)  # pyright: ignore
    )
    rows, one = np.arange(20), records.prefix(3)
    long = np.concatenate([one] * 5)
    engine.score(records, [Job(one, rows)])
    short, sizes[:] = max(sizes), []
    (found,) = engine.score(records, [Job(long, rows)])
    assert max(sizes) < short and sum(sizes) == 20
    expected = TransformersEngine(llama.model, window=256).score(records, [Job(long, rows)])[0]
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-5)


def test_an_allocation_that_fails_halves_the_batch_and_the_shard_says_so(
    llama: LoadedModel, made_up: Made, tmp_path: Path
) -> None:
    frame = tmp_path / "records.arrow"
    made_up(40).write_ipc(frame)
    script = str(Path(__file__).with_name("short_of_memory.py"))
    done = subprocess.run(
        [sys.executable, script, str(llama.folder), str(frame), str(tmp_path / "store")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    records = llama.encoder.encode(made_up(40))
    store = ScoreStore(tmp_path / "store")
    assert sum(int(shard.meta["halved"]) for shard in store.shards) == int(done.stdout) > 0
    whole, ids, shown = ScoreStore(tmp_path / "whole"), records.ids, records.ids[:1]
    score_pairs(llama, whole, records, PairPlan((PairBlock("self", ids, shown),)))
    mine, theirs = store.read_block(ids, shown), whole.read_block(ids, shown)
    np.testing.assert_allclose(mine.sum_logprob, theirs.sum_logprob, atol=1e-4)
    np.testing.assert_allclose(mine.squared_distance, theirs.squared_distance, atol=1e-5)
