"""A short training whose checkpoints, with Adam's moments, gradients are taken at."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import torch
from safetensors.torch import load_file

from delift_pipeline.errors import DeliftError
from delift_pipeline.progress import Progress
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.storage.atomic import read_json, write_json
from delift_pipeline.storage.hashing import digest_files, digest_json
from delift_pipeline.training.batches import encode_examples
from delift_pipeline.training.checkpoint import (
    MOMENTS,
    STATE,
    WEIGHTS,
    load_weights,
    save_checkpoint,
)
from delift_pipeline.training.loop import Kept, Run
from delift_pipeline.training.options import TrainingOptions
from delift_pipeline.training.setup import Trainable, prepare

FINISHED = "checkpoints.json"
BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Those of torch's AdamW, which the warm-up runs with."""


@dataclass(frozen=True)
class Checkpoint:
    """The state at the end of an epoch.

    Attributes:
        folder: Weights, moments and state (`training.checkpoint`).
        step: Optimizer steps done.
        learning_rate: Mean over the steps since the checkpoint before.
    """

    folder: Path
    step: int
    learning_rate: float

    @cached_property
    def digest(self) -> str:
        """Digest of weights and moments: what gradients at this checkpoint depend on."""
        return digest_files(self.folder, [self.folder / WEIGHTS, self.folder / MOMENTS])


@dataclass(frozen=True)
class Moments:
    """Adam's state, its parts in the order of the weights asked for.

    Attributes:
        first: Mean of the gradients, float32 [size].
        second: Mean of their squares, float32 [size].
        step: Steps that made them.
    """

    first: torch.Tensor
    second: torch.Tensor
    step: int

    def update(self, gradients: torch.Tensor) -> torch.Tensor:
        """The direction that Adam would step in on each gradient alone.

            m' = b1 m + (1 - b1) g,  v' = b2 v + (1 - b2) g^2
            (m' / (1 - b1^t)) / (sqrt(v' / (1 - b2^t)) + eps),  t = step + 1

        Args:
            gradients: float32 [n, size].
        """
        (b1, b2), count = BETAS, self.step + 1
        mean = (b1 * self.first + (1 - b1) * gradients) / (1 - b1**count)
        square = (b2 * self.second + (1 - b2) * gradients.square()) / (1 - b2**count)
        return mean / (square.sqrt() + EPSILON)


class WarmUp:
    """Trains adapters on a few records and keeps a checkpoint at the end of every epoch.

    A run that was killed goes on from its last checkpoint; a finished one is found.

    Args:
        options: How to train; its epochs are the checkpoints.
        model: The base model.
        records: What to train on.
        seed: Decides adapters, batches and dropout.
        folder: Where this very warm-up is kept.
        progress: Where progress is shown.
        claim: Called before weights are loaded.
    """

    def __init__(
        self,
        options: TrainingOptions,
        model: ModelOptions,
        records: pl.DataFrame,
        seed: int,
        folder: Path,
        progress: Progress,
        claim: Callable[[], object],
    ) -> None:
        self._claim = claim
        self._options, self._model, self._records = options, model, records.sort("record_id")
        self._seed, self._folder, self._progress = seed, folder, progress

    @cached_property
    def trainable(self) -> Trainable:
        """The model under its adapters, as the warm-up starts with them."""
        self._claim()
        with torch.random.fork_rng():
            torch.manual_seed(self._seed)
            return prepare(self._options, self._model, None)

    @cached_property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The checkpoints in order; trained first where they are not there."""
        if not (self._folder / FINISHED).is_file():
            self._train()
        kept = read_json(self._folder / FINISHED)
        return tuple(
            Checkpoint(_place(self._folder, entry["step"]), entry["step"], entry["learning_rate"])
            for entry in kept
        )

    def at(self, checkpoint: Checkpoint) -> torch.nn.Module:
        """The model with a checkpoint's weights, in evaluation mode."""
        load_weights(checkpoint.folder, self.trainable.model)
        return self.trainable.model.eval()

    def moments(self, checkpoint: Checkpoint, names: tuple[str, ...]) -> Moments:
        """Adam's moments of the named weights.

        Raises:
            DeliftError: the checkpoint has none of a weight.
        """
        stored = load_file(checkpoint.folder / MOMENTS)
        if lacking := [name for name in names if f"{name}/exp_avg" not in stored]:
            raise DeliftError(f"{checkpoint.folder.name} has no moments of {lacking[0]}")
        device = self.trainable.device
        first, second = (
            torch.cat([stored[f"{name}/{kind}"].flatten() for name in names]).float().to(device)
            for kind in ("exp_avg", "exp_avg_sq")
        )
        return Moments(first, second, int(stored[f"{names[0]}/step"]))

    def _train(self) -> None:
        examples, _ = encode_examples(self.trainable.encoder, self._records)
        ids = [example.record_id for example in examples]
        request = [self._options.request, self._seed, self.trainable.fingerprint, ids]
        states = sorted(self._folder.glob(f"step-*/{STATE}"))
        kept = Kept(states[-1].parent if states else None, digest_json(request), None)
        with torch.random.fork_rng():
            run = Run(self._options, self._seed, self.trainable, examples, kept)
            ends = _epoch_ends(self._options, len(examples))

            def keep(step: int, _: Any) -> None:
                if step + 1 in ends:
                    place = _place(self._folder, step + 1)
                    model = self.trainable.model
                    save_checkpoint(place, kept.key, model, run.optimizer, run.done)

            run.go(self._progress, keep)
        rates = run.done.learning_rates
        write_json(
            self._folder / FINISHED,
            [
                {"step": end, "learning_rate": sum(rates[start:end]) / (end - start)}
                for start, end in pairwise([0, *ends])
            ],
        )


def _epoch_ends(options: TrainingOptions, records: int) -> list[int]:
    """The steps at whose end an epoch is complete, each once."""
    epochs = max(1, round(options.presentations(records) / records))
    per_step = options.records_per_step
    return sorted({-(-records * epoch // per_step) for epoch in range(1, epochs + 1)})


def _place(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"
