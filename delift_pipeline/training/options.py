"""The options of training, and which records each step uses.

This module does not import torch, so arms are validated in milliseconds.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

PRESETS: dict[str, dict[str, Any]] = {
    # Strong enough for the demo model (under a million parameters) to memorise facts.
    "demo": {
        "method": "lora",
        "rank": 16,
        "alpha": 32.0,
        "learning_rate": 5e-3,
        "schedule": "linear",
        "floor": 0.1,
        "warmup_steps": 10,
        "batch_size": 16,
        "steps": 200,
    },
    # Agarwal et al. (arXiv 2411.04425, published code). Its loss also covers the prompt and packs
    # records; here the loss covers the answer only, and every record is its own sequence.
    "paper": {
        "method": "qlora",
        "rank": 8,
        "alpha": 32.0,
        "dropout": 0.1,
        "learning_rate": 2.5e-5,
        "schedule": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.01,
        "batch_size": 1,
        "epochs": 20.0,
        "gradient_checkpointing": True,
    },
}
"""Named sets of values. `preset: NAME` selects one; a value that is set explicitly overrides it."""


class TrainingOptions(BaseModel):
    """How a model is fine-tuned on a subset.

    Exactly one option sets the amount of compute: `steps` (the same work for every arm) or `epochs`
    (the same number of passes over every arm's own records). The seed comes from the arm.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: Literal["demo", "paper"] | None = Field(
        default=None, description="A named set of values, which the other options override."
    )
    method: Literal["lora", "qlora", "full"] = Field(
        default="lora",
        description="lora: low-rank adapters; qlora: adapters on a 4-bit base; full: all weights.",
    )
    rank: int = Field(default=16, ge=1, description="Rank of the adapters.")
    alpha: float = Field(
        default=32.0, gt=0, description="Adapters are scaled by alpha divided by rank."
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout before each adapter.")
    target_modules: Literal["all-linear"] | tuple[str, ...] = Field(
        default="all-linear",
        description="Layers with an adapter: all linear ones but the output head, or these names.",
    )
    learning_rate: float = Field(default=2e-4, gt=0, description="Highest learning rate.")
    schedule: Literal["linear", "constant", "cosine"] = Field(
        default="linear", description="How the learning rate falls after the warm-up."
    )
    floor: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Last learning rate of linear and cosine, as a share of the highest.",
    )
    warmup_steps: int = Field(
        default=10, ge=0, description="Steps in which the learning rate rises linearly from zero."
    )
    weight_decay: float = Field(
        default=0.0, ge=0, description="AdamW's decay of matrices; norms and biases have none."
    )
    gradient_clip: float | None = Field(
        default=1.0, gt=0, description="Largest gradient norm; null for no limit."
    )
    batch_size: int = Field(default=16, ge=1, description="Records in one forward pass.")
    accumulation: int = Field(
        default=1, ge=1, description="Forward passes in one optimizer step, which share one loss."
    )
    steps: int | None = Field(default=None, ge=1, description="Optimizer steps.")
    epochs: float | None = Field(default=None, gt=0, description="Passes over the records.")
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute activations in the backward pass to save memory."
    )
    checkpoint_every: int | None = Field(
        default=None,
        ge=1,
        description="Steps between checkpoints; a killed run resumes from the last.",
    )

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("preset") not in PRESETS:
            return values
        base = dict(PRESETS[values["preset"]])
        if values.get("steps") is not None or values.get("epochs") is not None:
            base.pop("steps", None)
            base.pop("epochs", None)
        return base | {
            name: value
            for name, value in values.items()
            if value is not None or name not in ("steps", "epochs")
        }

    @model_validator(mode="after")
    def _check_compute(self) -> "TrainingOptions":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("set exactly one of steps and epochs")
        return self

    @property
    def request(self) -> dict[str, Any]:
        """The options that decide the weights: all but the preset's name and memory settings."""
        ignored = {"preset", "checkpoint_every", "gradient_checkpointing"}
        return self.model_dump(mode="json", exclude=ignored)

    @property
    def records_per_step(self) -> int:
        """How many records one optimizer step uses."""
        return self.batch_size * self.accumulation

    def total_steps(self, records: int) -> int:
        """Return the number of optimizer steps on `records` records."""
        if self.steps is not None:
            return self.steps
        return math.ceil(self.presentations(records) / self.records_per_step)

    def presentations(self, records: int) -> int:
        """Return how many records the model reads in all, repeats included."""
        if self.steps is not None:
            return self.steps * self.records_per_step
        assert self.epochs is not None
        return max(1, round(records * self.epochs))

    def learning_rate_at(self, step: int, total: int) -> float:
        """Return the learning rate of a step (from 0) out of `total`."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        done = (step - self.warmup_steps) / max(1, total - self.warmup_steps)
        left = 1 - done if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.learning_rate * (self.floor + (1 - self.floor) * left)


def step_records(options: TrainingOptions, records: int, seed: int) -> Iterator[np.ndarray]:
    """Yield the positions of each step's records, int64 `[records per step]`.

    Every epoch is a new permutation, and a step may take the end of one epoch and the start of the
    next. So every step but the last is full, even if the subset is smaller than a batch.
    """
    left, epoch = options.presentations(records), 0
    positions = np.empty(0, dtype=np.int64)
    while left > 0:
        size = min(options.records_per_step, left)
        while len(positions) < size:
            positions = np.concatenate([positions, _epoch_order(records, seed, epoch)])
            epoch += 1
        yield positions[:size]
        positions, left = positions[size:], left - size


def _epoch_order(records: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(records)
