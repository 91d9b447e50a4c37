"""What a selector by gradients asks for; `training.influence` has it."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import polars as pl

from delift_pipeline.progress import Meter
from delift_pipeline.selection.language_model import LanguageModel


class Example(Protocol):
    """A tokenised record that fits the model's window."""

    @property
    def record_id(self) -> str:
        """The record."""
        ...


class Checkpoints(Protocol):
    """The checkpoints of a warm-up, and unit features of gradients at each of them."""

    @property
    def learning_rates(self) -> Sequence[float]:
        """Mean learning rate of each checkpoint's epoch."""
        ...

    def plain(self, checkpoint: int, examples: Sequence[Any], meter: Meter) -> np.ndarray:
        """Features of plain gradients, float32 [examples, dims]."""
        ...

    def steps(
        self, checkpoint: int, examples: Sequence[Any], meter: Meter
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Features of the steps that Adam would take, by places, float16 [part, dims]."""
        ...


class Gradients(Protocol):
    """Warm-ups of a model."""

    def examples(self, model: LanguageModel, records: pl.DataFrame) -> Sequence[Example]:
        """The records whose answer fits the window, sorted by record_id."""
        ...

    def warmed_up(
        self, model: LanguageModel, records: pl.DataFrame, seed: int, options: Any
    ) -> Checkpoints:
        """Train adapters on records, unless they are kept from before.

        Args:
            model: The model.
            records: What to train on.
            seed: Decides the warm-up and the projection of gradients.
            options: `selectors.less.LessOptions`.
        """
        ...
