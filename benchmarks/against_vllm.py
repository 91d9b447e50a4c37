"""Compare the pairs per second of vLLM's prompt_logprobs and the transformers engine in one run.

`make test-vllm` makes the environment. Then run in the repository's root:

    OMP_NUM_THREADS=1 .venv-vllm/bin/python -m benchmarks.against_vllm --threads 1
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from delift_pipeline.bench.scoring import LENGTHS, SHAPES, random_model, random_records
from delift_pipeline.scoring.engine import Engine, Job, TokenScores
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.scoring.transformers_engine import TransformersEngine
from delift_pipeline.scoring.vllm_engine import VllmEngine

WINDOW = 1024


def main() -> None:
    """Measure, and print one JSON object with a row for each length."""
    arguments = _parse_arguments()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cpu" if arguments.dtype == "float32" else "cuda")
    model = random_model(arguments.shape, getattr(torch, arguments.dtype), device)
    options = ModelOptions(model=arguments.shape, dtype=arguments.dtype, threads=arguments.threads)
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        engines = {
            "vllm": VllmEngine(Path(folder), options, WINDOW),
            "ours": TransformersEngine(model, window=WINDOW),
        }
        torch.set_num_threads(arguments.threads)
        rows = {name: _measure_lengths(engines, name, arguments) for name in LENGTHS}
    print(json.dumps({"settings": engines["vllm"].settings, **rows}, indent=2))


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="llama-10m")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--targets", type=int, default=16, help="targets of a demonstration")
    parser.add_argument("--demonstrations", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def _measure_lengths(
    engines: dict[str, Engine], lengths: str, arguments: argparse.Namespace
) -> dict[str, Any]:
    vocabulary = SHAPES[arguments.shape]["vocab_size"]
    records = random_records(arguments.targets, *LENGTHS[lengths], vocabulary)
    rows = np.arange(arguments.targets)
    jobs = [Job(records.prefix(place), rows) for place in range(arguments.demonstrations)]
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    last: dict[str, Sequence[TokenScores]] = {}
    # The engines alternate, so a busy machine slows both. The first round is a warm-up.
    for round_number in range(arguments.repeats + 1):
        for name, engine in engines.items():
            started = time.perf_counter()
            last[name] = engine.score(records, jobs)
            if round_number:
                seconds[name].append(time.perf_counter() - started)
    return _figures(seconds, last, len(jobs) * len(rows))


def _figures(
    seconds: dict[str, list[float]], last: dict[str, Sequence[TokenScores]], pairs: int
) -> dict[str, Any]:
    median = {name: statistics.median(times) for name, times in seconds.items()}
    flat = {
        name: np.concatenate([score.logprobs for score in scores]) for name, scores in last.items()
    }
    return {
        "pairs_per_second": {name: pairs / value for name, value in median.items()},
        "spread": {name: max(times) / min(times) for name, times in seconds.items()},
        "ratio_vs_vllm": median["vllm"] / median["ours"],
        "max_abs_logprob_difference": float(np.abs(flat["vllm"] - flat["ours"]).max()),
    }


if __name__ == "__main__":
    main()
