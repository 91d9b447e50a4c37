"""Which records each optimizer step sees: a function of seed and counts alone."""

from collections.abc import Iterator

import numpy as np

from delift_pipeline.training.options import TrainingOptions


def step_records(options: TrainingOptions, records: int, seed: int) -> Iterator[np.ndarray]:
    """Yield the positions of the records of each step, `[records per step]`, int64.

    Epochs follow each other without a gap, each in its own permutation, so every step but the last
    is full even where the subset is smaller than a batch.
    """
    left, epoch = options.presentations(records), 0
    waiting = np.empty(0, dtype=np.int64)
    while left > 0:
        size = min(options.records_per_step, left)
        while len(waiting) < size:
            waiting = np.concatenate([waiting, _epoch(records, seed, epoch)])
            epoch += 1
        yield waiting[:size]
        waiting, left = waiting[size:], left - size


def _epoch(records: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(records)
