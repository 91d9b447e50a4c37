"""The language model that a selector reads, loaded once when it is first used; its gradients.

A selector that needs a model says so in its `Needs`; it is then given one of these, whether an arm
of a version or a file is chosen from. Torch is not imported before the weights are wanted.
Gradients are an interface here; `training.influence` computes them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import polars as pl

from delift_pipeline.core.home import Home
from delift_pipeline.core.progress import Meter, Progress, SilentProgress
from delift_pipeline.scoring.fingerprint import fingerprint_of
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.scoring.store import ScoreStore

if TYPE_CHECKING:
    from delift_pipeline.prompts.encode import Encoder
    from delift_pipeline.scoring.model import LoadedModel

GRADIENTS = "gradients"
"""Folder beside the scores of a fingerprint for what gradient selectors keep."""


def _nothing() -> None:
    """Devices are not shared."""


@dataclass(frozen=True)
class LanguageModel:
    """A model, its tokenizer, and where what it computed is kept.

    Attributes:
        options: Which model, and how it is run.
        home: Where scores and gradients are kept, by fingerprint.
        progress: Where progress is shown.
        claim: Called before any weights are loaded, each time; where devices are shared it waits
            for one.
    """

    options: ModelOptions
    home: Home
    progress: Progress = field(default_factory=SilentProgress, repr=False)
    claim: Callable[[], object] = field(default=_nothing, repr=False)

    @cached_property
    def fingerprint(self) -> str:
        """The digest of all that decides what the model computes."""
        return fingerprint_of(self.options).digest

    @cached_property
    def encoder(self) -> "Encoder":
        """The tokenizer with the prompt template, without the weights.

        Raises:
            Refused: the model, its tokenizer or the template cannot be used.
        """
        from delift_pipeline.scoring.model import load_encoder

        return load_encoder(self.options)

    @cached_property
    def loaded(self) -> "LoadedModel":
        """The model with its weights, in evaluation mode.

        Hidden states and single logits are read from it, which vLLM does not give; so it is loaded
        by transformers whatever engine scores.

        Raises:
            Refused: the model cannot be used.
        """
        from delift_pipeline.scoring.model import load_model

        self.claim()
        return load_model(self.options.model_copy(update={"engine": "transformers"}))

    @property
    def scorer(self) -> "LoadedModel":
        """The model for `scoring.engines.engine_for`; for vLLM, which loads weights, its shape.

        Raises:
            Refused: the model cannot be used, or vLLM is asked for and not installed.
        """
        from delift_pipeline.scoring.model import load_scorer

        if self.options.engine != "vllm":
            return self.loaded
        self.claim()
        return load_scorer(self.options)

    @property
    def scores(self) -> ScoreStore:
        """The pair scores made with this model so far."""
        return ScoreStore(self.home.scores(self.fingerprint))

    @property
    def gradients(self) -> Path:
        """Where gradients of this model are kept; deleting it costs time and nothing else."""
        return self.home.scores(self.fingerprint) / GRADIENTS

    def named(self, model: str) -> "LanguageModel":
        """Another model, run in the same way."""
        options = self.options.model_copy(update={"model": model, "revision": None})
        return LanguageModel(options, self.home, self.progress, self.claim)


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

        `seed` decides the warm-up and the projection of gradients; `options` are those of `less`.
        """
        ...
