"""`delift bench scoring`: measure the pairs per second of every way to score, in one run."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from delift_pipeline.core.errors import DeliftError
from delift_pipeline.prompts.encode import EncodedRecords
from delift_pipeline.scoring.engine import Engine, Job, TokenScores, reduce_scores
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.scoring.transformers_engine import TransformersEngine
from delift_pipeline.training.batches import Example, collate

VLLM_ABSENT = "vLLM is not measured because it is not installed here. See docs/vllm.md"
VLLM_WINDOW = 1024
VLLM_NARROWEST_HEAD = 32
"""The narrowest attention head that vLLM supports on a CPU."""
_FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
)
_SIZES = {
    "llama-10m": (16_000, 256, 688, 8, 8, 8, 4096),
    "llama-3.2-1b": (128_256, 2048, 8192, 16, 32, 8, 4096),
    "llama-3.2-3b": (128_256, 3072, 8192, 28, 24, 8, 4096),
    "qwen2.5-0.5b": (151_936, 896, 4864, 24, 14, 2, 4096),
    "demo": (365, 64, 192, 3, 4, 4, 1024),
    "wide-vocabulary": (150_000, 256, 688, 4, 8, 8, 4096),
}
SHAPES: dict[str, dict[str, Any]] = {
    name: {**dict(zip(_FIELDS, sizes, strict=True)), "tie_word_embeddings": True}
    for name, sizes in _SIZES.items()
}
"""The configuration of each model that can be measured."""
LENGTHS = {"short": (35, 10), "realistic": (210, 40), "tiny": (12, 5)}
"""Mean numbers of prompt and answer tokens; each record's numbers vary by up to 30 %."""
USUAL_LENGTHS = ("short", "realistic")


@dataclass(frozen=True)
class BenchSizes:
    """Sizes of the benchmark.

    Attributes:
        repeats: How often every method is measured.
        targets: Targets of each demonstration.
        demonstrations: Demonstrations in one measurement.
        naive_batch: Pairs in one batch of a naive method.
    """

    repeats: int = 5
    targets: int = 16
    demonstrations: int = 2
    naive_batch: int = 16


def benchmark_scoring(
    shape: str = "llama-10m",
    *,
    device: str = "cpu",
    lengths: Sequence[str] = USUAL_LENGTHS,
    sizes: BenchSizes | None = None,
    memory: bool = True,
) -> dict[str, Any]:
    """Measure every method at every length.

    The methods run in rounds, and each figure is a median over the rounds, so a busy machine slows
    all of them alike. On a GPU the naive methods run in bfloat16 as well. vLLM is measured if it is
    installed.

    `shape` and `lengths` are names in `SHAPES` and `LENGTHS`. With `memory`, peak memory is
    measured too, on a CPU in a separate process.

    Returns:
        For each length the keys of `_figures`, and `peak_rss_mib`.
    """
    torch_device, sizes = torch.device(device), sizes or BenchSizes()
    dtype = torch.float32 if torch_device.type == "cpu" else torch.bfloat16
    model = random_model(shape, dtype, torch_device)
    engines: dict[str, Engine] = {
        "ours": TransformersEngine(model),
        "ours_bf16": TransformersEngine(random_model(shape, torch.bfloat16, torch_device)),
    }
    with _open_vllm(shape, model) as vllm:
        results = {name: _measure_lengths(model, engines | vllm, name, sizes) for name in lengths}
    for name, row in results.items():
        row["peak_rss_mib"] = (
            _measure_peak_memory(shape, name, model, sizes.targets) if memory else None
        )
    return results


@contextmanager
def _open_vllm(shape: str, model: Any) -> Iterator[dict[str, Engine]]:
    """Open the engine `vllm` with a model's weights; yield {} if vLLM cannot run here."""
    width = model.config.hidden_size // model.config.num_attention_heads
    too_narrow = model.device.type == "cpu" and width < VLLM_NARROWEST_HEAD
    if find_spec("vllm") is None or too_narrow:
        yield {}
        return
    from delift_pipeline.scoring.vllm_engine import VllmEngine

    threads, dtype = torch.get_num_threads(), str(model.dtype).removeprefix("torch.")
    options = ModelOptions.model_validate({"model": shape, "dtype": dtype, "threads": threads})
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        engine = VllmEngine(Path(folder), options, VLLM_WINDOW)
        # Importing vLLM changes torch's number of threads.
        torch.set_num_threads(threads)
        try:
            yield {"vllm": engine}
        finally:
            engine.close()


def _measure_lengths(
    model: Any, engines: dict[str, Engine], lengths: str, sizes: BenchSizes
) -> dict[str, Any]:
    records = random_records(sizes.targets, *LENGTHS[lengths], model.config.vocab_size)
    rows = np.arange(sizes.targets)
    jobs = [Job(records.prefix(j % len(records)), rows) for j in range(sizes.demonstrations)]
    naive = partial(score_naively, model, records, jobs, batch=sizes.naive_batch)
    methods: dict[str, Callable[[], Any]] = {
        "naive_full": partial(naive, full_logits=True),
        "naive_answer": partial(naive, full_logits=False),
        **{name: partial(engine.score, records, jobs) for name, engine in engines.items()},
    }
    peaks = {
        "peak": partial(matmul_gflops, model.device, model.dtype),
        "peak_bf16": partial(matmul_gflops, model.device, torch.bfloat16),
    }
    functions = methods | peaks
    rounds = [
        {name: _time_call(method, model.device) for name, method in functions.items()}
        for _ in range(sizes.repeats + 1)
    ][1:]  # the first round is a warm-up
    results = {name: [one_round[name][0] for one_round in rounds] for name in functions}
    median = {
        name: statistics.median(one_round[name][1] for one_round in rounds) for name in methods
    }
    return _figures(results, median, jobs, useful_operations(model.config, records, jobs))


def random_model(shape: str, dtype: torch.dtype, device: torch.device) -> Any:
    """Return a Llama (or Qwen2) of a shape with random weights, the same ones each time."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    qwen = shape.startswith("qwen")
    config, kind = (Qwen2Config, Qwen2ForCausalLM) if qwen else (LlamaConfig, LlamaForCausalLM)
    with torch.device(device):
        model = kind(config(**SHAPES[shape]))  # pyright: ignore
    return model.to(dtype).eval().requires_grad_(False)  # pyright: ignore


def random_records(count: int, prompt: int, answer: int, vocabulary: int) -> EncodedRecords:
    """Return records of random tokens, which serve as targets and as demonstrations."""
    rng = np.random.default_rng(0)
    prompts = rng.uniform(0.7 * prompt, 1.3 * prompt, count).astype(np.int32).clip(1)
    answers = rng.uniform(0.7 * answer, 1.3 * answer, count).astype(np.int32).clip(1)
    starts = np.concatenate([[0], np.cumsum(prompts + answers)]).astype(np.int64)
    tokens = rng.integers(5, vocabulary, starts[-1]).astype(np.int32)
    begin = np.asarray([1], dtype=np.int32)
    return EncodedRecords(
        ids=tuple(f"{place:032x}" for place in range(count)),
        head=begin,
        start=begin,
        target_tokens=tokens,
        target_starts=starts,
        prompt_lengths=prompts,
        demonstration_tokens=tokens,
        demonstration_starts=starts,
        unscorable={},
        cuts={},
    )


def useful_operations(config: Any, records: EncodedRecords, jobs: list[Job]) -> float:
    """Return how many floating-point operations the jobs need at least.

    A product of an [a, b] and a [b, c] matrix counts 2abc. Each prefix is read once, and each
    target once for each prefix. Logits and the last layer's queries, attention and MLP count only
    at answer positions. Attention counts the keys that a query may see. Norms, rotations and
    softmax are not counted.
    """
    width, layers = config.hidden_size, config.num_hidden_layers
    head = getattr(config, "head_dim", None) or width // config.num_attention_heads
    inner, key_width = config.num_attention_heads * head, config.num_key_value_heads * head
    heavy = 2 * (2 * width * inner + 3 * width * config.intermediate_size)
    keys = 2 * 2 * width * key_width
    lengths = np.diff(records.target_starts).astype(np.float64) - 1
    answers = records.answer_lengths.astype(np.float64)
    total = 0.0
    for job in jobs:
        n, a, p = lengths[job.rows], answers[job.rows], float(len(job.prefix))
        seen = n * p + n * (n + 1) / 2
        seen_last = a * (p + n - (a - 1) / 2)
        total += (n.sum() + p) * keys * layers
        total += heavy * ((layers - 1) * (n.sum() + p) + a.sum())
        total += 4 * inner * ((layers - 1) * (seen.sum() + p * (p + 1) / 2) + seen_last.sum())
        total += 2 * width * config.vocab_size * a.sum()
    return total


@torch.inference_mode()
def score_naively(
    model: Any, records: EncodedRecords, jobs: list[Job], *, full_logits: bool, batch: int
) -> np.ndarray:
    """Compute the log-probabilities of all answers from padded batches of whole sequences.

    This is the usual way, with the model's default attention. Logits are computed at all positions
    (`full_logits`) or only at answer positions.
    """
    pairs = [
        Example("", np.concatenate([job.prefix, records.prompt(row)]), records.answer(row))
        for job in jobs
        for row in job.rows.tolist()
    ]
    logprobs = []
    for start in range(0, len(pairs), batch):
        part = collate(pairs[start : start + batch]).to(model.device)
        forward = model if full_logits else model.base_model
        output = forward(part.input_ids, attention_mask=part.attention_mask, use_cache=False)
        states = output.logits if full_logits else output.last_hidden_state
        chosen = states[part.rows, part.columns]
        logits = chosen if full_logits else model.lm_head(chosen)
        logprobs.append(logits.float().log_softmax(-1).gather(1, part.labels[:, None])[:, 0].cpu())
    return torch.cat(logprobs).numpy()


def _time_call(method: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """Return a method's result and how many seconds the method and the device took."""
    started = time.perf_counter()
    result = method()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - started


def _figures(
    results: dict[str, list[Any]], median: dict[str, float], jobs: list[Job], operations: float
) -> dict[str, Any]:
    pairs = sum(len(job.rows) for job in jobs)
    reference, ours, bf16 = (results[name][0] for name in ("naive_full", "ours", "ours_bf16"))
    others = [name for name in median if not name.startswith("ours")]

    def speed(method: str, peak: str) -> dict[str, float]:
        useful, limit = operations / median[method] / 1e9, statistics.median(results[peak])
        names = ("matmul_peak_gflops", "useful_gflops", "fraction_of_peak")
        return dict(zip(names, (limit, useful, useful / limit), strict=True))

    return {
        "pairs_per_second": {name: pairs / seconds for name, seconds in median.items()},
        **{f"ratio_vs_{name}": median[name] / median["ours"] for name in others},
        "max_abs_logprob_difference": _largest_difference(ours, reference),
        **speed("ours", "peak"),
        "bf16": {
            "ratio_vs_ours_float32": median["ours"] / median["ours_bf16"],
            "max_abs_logprob_difference": _largest_difference(bf16, reference),
            "max_abs_distance_difference": float(np.abs(_distances(ours) - _distances(bf16)).max()),
            **speed("ours_bf16", "peak_bf16"),
        },
    }


def _largest_difference(scores: list[TokenScores], reference: np.ndarray) -> float:
    return float(np.abs(np.concatenate([score.logprobs for score in scores]) - reference).max())


def _distances(scores: list[TokenScores]) -> np.ndarray:
    """Return the distance d of every pair; a utility's error is at most twice that of d."""
    return np.sqrt(np.concatenate([reduce_scores(score).squared_distance for score in scores]))


def matmul_gflops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the best speed of several large matrix products, in 10^9 operations per second."""
    size = 1024 if device.type == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = min(_time_call(partial(torch.matmul, left, right), device)[1] for _ in range(6))
    return 2 * size**3 / best / 1e9


def _measure_peak_memory(shape: str, lengths: str, model: Any, targets: int) -> float:
    """Return the peak memory of scoring without the loaded model, in MiB."""
    if model.device.type == "cpu":
        return peak_memory(shape, lengths, targets)
    before = torch.cuda.memory_allocated(model.device)
    torch.cuda.reset_peak_memory_stats(model.device)
    score_twice(model, lengths, targets)
    return (torch.cuda.max_memory_allocated(model.device) - before) / 2**20


def score_twice(model: Any, lengths: str, targets: int) -> None:
    """Score all targets after the first record, two times."""
    records = random_records(targets, *LENGTHS[lengths], model.config.vocab_size)
    job = Job(records.prefix(0), np.arange(targets))
    TransformersEngine(model).score(records, [job] * 2)


def peak_memory(shape: str, lengths: str, targets: int) -> float:
    """Measure peak memory on a CPU in a separate process, which runs this module as a program.

    Raises:
        DeliftError: the process fails.
    """
    command = [sys.executable, "-P", "-m", __name__, shape, lengths, str(targets)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        last = process.stderr.strip()[-300:]
        raise DeliftError(f"the process that measures peak memory failed: {last}")
    return float(json.loads(process.stdout)["peak_rss_mib"])


def _memory_in_mib(field: str) -> float:
    """Return a size from /proc/self/status; unlike rusage it leaves out the parent's peak."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 2**10


def main(shape: str, lengths: str, targets: int) -> None:
    """Print `{"peak_rss_mib": ...}`: the peak while scoring, minus the loaded model's memory."""
    model = random_model(shape, torch.float32, torch.device("cpu"))
    for parameter in model.parameters():
        parameter.sum()
    before = _memory_in_mib("VmRSS")
    score_twice(model, lengths, targets)
    print(json.dumps({"peak_rss_mib": max(_memory_in_mib("VmHWM") - before, 0.0)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
