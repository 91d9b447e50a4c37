"""`delift bench scoring`: pairs a second of every way to score, side by side in one run."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from delift_pipeline.bench.scoring_naive import BATCH, naive_padded
from delift_pipeline.bench.scoring_shapes import (
    LENGTHS,
    SHAPES,
    USUAL_LENGTHS,
    random_model,
    random_records,
    useful_operations,
)
from delift_pipeline.bench.scoring_vllm import vllm_beside
from delift_pipeline.errors import DeliftError
from delift_pipeline.prompts.encoded import EncodedRecords
from delift_pipeline.scoring.distance import reduce_scores
from delift_pipeline.scoring.engine import Engine, Job, TokenScores
from delift_pipeline.scoring.transformers_engine import TransformersEngine

REPEATS = 5
TARGETS = 16
DEMONSTRATIONS = 2


@dataclass(frozen=True)
class BenchSizes:
    """How much is measured.

    Attributes:
        repeats: Turns.
        targets: Targets of each demonstration.
        demonstrations: Demonstrations in a turn.
        naive_batch: Pairs in a batch of the naive methods.
    """

    repeats: int = REPEATS
    targets: int = TARGETS
    demonstrations: int = DEMONSTRATIONS
    naive_batch: int = BATCH


def scoring_bench(
    shape: str = "llama-10m",
    *,
    device: str = "cpu",
    lengths: Sequence[str] = USUAL_LENGTHS,
    sizes: BenchSizes | None = None,
    memory: bool = True,
) -> dict[str, Any]:
    """Measure every method at every length.

    The methods take turns, and each figure is a median over the turns, so that a busy machine slows
    all of them alike. On a GPU the naive methods run in bfloat16 as well. vLLM takes part where it
    is installed.

    Args:
        shape: A name in `SHAPES`.
        device: Where the model runs.
        lengths: Names in `LENGTHS`.
        sizes: How much is measured; None for the default.
        memory: Whether peak memory is measured; on a CPU in a process of its own.

    Returns:
        For each length the keys of `_figures`, and `peak_rss_mib`.
    """
    place, sizes = torch.device(device), sizes or BenchSizes()
    plain = torch.float32 if place.type == "cpu" else torch.bfloat16
    models = {"plain": random_model(shape, plain, place)}
    models["bf16"] = random_model(shape, torch.bfloat16, place)
    with vllm_beside(shape, models["plain"]) as vllm:
        found = {name: _row(models, name, place, sizes, vllm) for name in lengths}
    for name, row in found.items():
        row["peak_rss_mib"] = _peak(shape, name, models, place, sizes.targets) if memory else None
    return found


def _peak(
    shape: str, lengths: str, models: dict[str, Any], device: torch.device, targets: int
) -> float:
    if device.type == "cpu":
        return peak_memory(shape, lengths, targets)
    model = models["plain"]
    records = random_records(targets, *LENGTHS[lengths], model.config.vocab_size)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    TransformersEngine(model).score(records, [sample_job(records, targets)] * 2)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def _row(
    models: dict[str, Any],
    lengths: str,
    device: torch.device,
    sizes: BenchSizes,
    vllm: Engine | None,
) -> dict[str, Any]:
    model, config = models["plain"], models["plain"].config
    records = random_records(sizes.targets, *LENGTHS[lengths], config.vocab_size)
    rows = np.arange(sizes.targets)
    jobs = [Job(records.prefix(j % len(records)), rows) for j in range(sizes.demonstrations)]
    engines: dict[str, Engine] = {
        "ours": TransformersEngine(model),
        "ours_bf16": TransformersEngine(models["bf16"]),
    }
    if vllm:
        engines["vllm"] = vllm
    padded = partial(naive_padded, model, records, jobs, batch=sizes.naive_batch)
    methods: dict[str, Callable[[], Any]] = {
        "naive_full": partial(padded, full_logits=True),
        "naive_answer": partial(padded, full_logits=False),
    }
    methods |= {name: partial(engine.score, records, jobs) for name, engine in engines.items()}
    timed = tuple(methods)
    methods["peak"] = partial(matmul_gflops, device, model.dtype)
    methods["peak_bf16"] = partial(matmul_gflops, device, torch.bfloat16)
    results, seconds = _turns(methods, sizes.repeats, device)
    return _figures(results, seconds, timed, jobs, useful_operations(config, records, jobs))


def _turns(
    methods: dict[str, Callable[[], Any]], repeats: int, device: torch.device
) -> tuple[dict[str, list[Any]], dict[str, list[float]]]:
    """Results and seconds of each method, one a turn, after a turn that warms up."""
    results: dict[str, list[Any]] = {name: [] for name in methods}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(repeats + 1):
        for name, method in methods.items():
            started = time.perf_counter()
            result = method()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                seconds[name].append(time.perf_counter() - started)
                results[name].append(result)
    return results, seconds


def _figures(
    results: dict[str, list[Any]],
    seconds: dict[str, list[float]],
    timed: Sequence[str],
    jobs: list[Job],
    operations: float,
) -> dict[str, Any]:
    pairs = sum(len(job.rows) for job in jobs)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    peak = {name: statistics.median(results[name]) for name in ("peak", "peak_bf16")}
    truth, ours, half = results["naive_full"][0], results["ours"][0], results["ours_bf16"][0]
    gflops = {name: operations / median[name] / 1e9 for name in ("ours", "ours_bf16")}
    others = [name for name in timed if not name.startswith("ours")]
    return {
        "pairs_per_second": {name: pairs / median[name] for name in timed},
        **{f"ratio_vs_{name}": median[name] / median["ours"] for name in others},
        "max_abs_logprob_difference": _gap(ours, truth),
        "matmul_peak_gflops": peak["peak"],
        "useful_gflops": gflops["ours"],
        "fraction_of_peak": gflops["ours"] / peak["peak"],
        "bf16": {
            "ratio_vs_ours_float32": median["ours"] / median["ours_bf16"],
            "max_abs_logprob_difference": _gap(half, truth),
            "max_abs_distance_difference": _distance_gap(ours, half),
            "matmul_peak_gflops": peak["peak_bf16"],
            "useful_gflops": gflops["ours_bf16"],
            "fraction_of_peak": gflops["ours_bf16"] / peak["peak_bf16"],
        },
    }


def _gap(found: list[TokenScores], truth: np.ndarray) -> float:
    return float(np.abs(np.concatenate([score.logprobs for score in found]) - truth).max())


def _distance_gap(full: list[TokenScores], half: list[TokenScores]) -> float:
    """The largest difference of a distance d, hence of a utility by at most twice as much."""
    distances = [
        np.concatenate([np.sqrt(reduce_scores(score).squared_distance) for score in scores])
        for scores in (full, half)
    ]
    return float(np.abs(distances[0] - distances[1]).max())


def matmul_gflops(device: torch.device, dtype: torch.dtype, size: int = 0) -> float:
    """Speed of one large square matrix product, in 10^9 operations a second; best of several."""
    size = size or (1024 if device.type == "cpu" else 8192)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        started = time.perf_counter()
        torch.matmul(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best / 1e9


def peak_memory(shape: str, lengths: str, targets: int = TARGETS) -> float:
    """Peak memory of scoring over the loaded model, in MiB, in a process of its own (CPU).

    Raises:
        DeliftError: the process fails.
    """
    command = [sys.executable, "-P", "-m", "delift_pipeline.bench.scoring_memory"]
    command += [shape, lengths, str(targets)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DeliftError(f"peak memory could not be measured: {done.stderr.strip()[-300:]}")
    return float(json.loads(done.stdout)["peak_rss_mib"])


def known_shapes() -> list[str]:
    """The shapes that can be measured."""
    return list(SHAPES)


def sample_job(records: EncodedRecords, targets: int) -> Job:
    """All targets after the first record."""
    return Job(records.prefix(0), np.arange(targets))
