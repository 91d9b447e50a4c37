"""Measure how many training steps suit the demo's picks: `python -m tools.demo_steps`.

Random picks and whole pools of seeds that the demo does not use are trained for several numbers of
steps. Then they answer the held-out questions of `demo-v1`. No other selector takes part, so the
number of steps cannot be chosen for one. It takes minutes on one core.
"""

import random
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import demo_model, examples_of, training_options
from delift_pipeline.demo.dataset import write_demo_files
from delift_pipeline.demo.results import Mean
from delift_pipeline.records.read import read_records
from delift_pipeline.training.batches import Example
from delift_pipeline.training.stacked import StackedLora, measure, train

SEEDS = range(700, 706)
STEPS = (12, 24, 36, 48, 72, 100, 150)
PICKS, DRAWS = 48, 2


def main() -> None:
    """Print exact match and loss of the untrained model, random picks and whole pools."""
    import torch

    torch.set_num_threads(1)
    loaded = demo_model()
    examples: list[list[Example]] = []
    questions: list[list[Example]] = []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            files = write_demo_files(Path(folder), seed)
            for path, into in ((files.first_pool, examples), (files.first_heldout, questions)):
                into.append(list(examples_of(loaded, read_records(path).frame).values()))
    sets = [
        picks
        for number, pool in enumerate(examples)
        for rng in [random.Random(number)]
        for picks in (*(rng.sample(pool, PICKS) for _ in range(DRAWS)), pool)
    ]
    model: Any = loaded.model
    seeds = [0] * len(sets)
    untrained = StackedLora(model, seeds, training_options("lora", 1))
    untrained.merge()
    _print_means("initial", 0, untrained, questions, [DRAWS])
    for steps in STEPS:
        trained = train(model, sets, seeds, training_options("lora", steps))
        _print_means("random", steps, trained, questions, range(DRAWS))
        _print_means("full", steps, trained, questions, [DRAWS])


def _print_means(
    name: str,
    steps: int,
    lora: StackedLora,
    questions: Sequence[Sequence[Example]],
    places: Sequence[int],
) -> None:
    """Print means over pools of the runs at these places among the runs of each pool."""
    exact, loss = [], []
    for number, heldout in enumerate(questions):
        results, first = measure(lora, heldout), number * (DRAWS + 1)
        runs = [first + place for place in places]
        exact.append(statistics.fmean(results.exact[runs].mean(axis=1)))
        loss.append(statistics.fmean(results.loss[runs].mean(axis=1)))
    line = f"{name:8}{steps:5} steps  exact match {Mean.of(exact).text(3)}"
    print(f"{line}  loss {Mean.of(loss).text(3)}", flush=True)


if __name__ == "__main__":
    main()
