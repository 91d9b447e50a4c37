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

BATCH_TOKENS_CPU = 2048
BATCH_TOKENS_GPU = 65536
GRADIENTS = "gradients"
"""Folder beside the scores of a fingerprint for what gradient selectors keep."""


def _claim_nothing() -> None:
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
    claim: Callable[[], object] = field(default=_claim_nothing, repr=False)

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
    def loaded_model(self) -> "LoadedModel":
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
            return self.loaded_model
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

    def with_model(self, model: str) -> "LanguageModel":
        """Another model, run in the same way."""
        options = self.options.model_copy(update={"model": model, "revision": None})
        return LanguageModel(options, self.home, self.progress, self.claim)


def reduce_hidden_states(
    model: LanguageModel, sequences: Sequence[np.ndarray], reduce: Callable[..., Any], name: str
) -> np.ndarray:
    """One value a sequence, made from its hidden states on the model's device.

    Sequences of near lengths share a forward pass; batches are a function of the lengths alone. The
    sequences are token ids, int32, none empty. `reduce` makes values [rows, ...] of the decoder,
    hidden states [rows, tokens, width] and lengths [rows]; `name` is what the progress is called.

    Returns:
        float32 [sequences, ...], in the order given.
    """
    import torch

    from delift_pipeline.scoring.batches import length_batches, pad_sequences
    from delift_pipeline.scoring.decoder import Decoder

    decoder, progress = Decoder(model.loaded_model.model), model.progress
    on_cpu = decoder.device.type == "cpu"
    limit = model.options.batch_tokens or (BATCH_TOKENS_CPU if on_cpu else BATCH_TOKENS_GPU)
    lengths = np.array([len(sequence) for sequence in sequences])
    values_of: dict[int, np.ndarray] = {}
    with progress.track(name, len(sequences), "records") as meter, torch.inference_mode():
        for rows in length_batches(lengths, lambda longest: limit // longest):
            ids = pad_sequences([sequences[row] for row in rows])[0].to(decoder.device)
            sizes = torch.from_numpy(lengths[rows]).to(decoder.device)
            values = reduce(decoder, decoder.hidden_states(ids, None), sizes).float().cpu().numpy()
            values_of.update(zip(rows.tolist(), values, strict=True))
            meter.advance(len(rows))
    return np.stack([values_of[row] for row in range(len(sequences))])


def text_tokens(encoder: "Encoder", texts: Sequence[str]) -> list[np.ndarray]:
    """Texts as plain text, whole, without template and markers."""
    return [np.asarray(one.ids, dtype=np.int32) for one in encoder.plain.encode(list(texts))]


def begin_of_text(encoder: "Encoder") -> np.ndarray:
    """The begin-of-text token, where the model has one, int32 [0 or 1]."""
    begin = encoder.tokenizer.bos_token_id
    return np.asarray([begin] if isinstance(begin, int) else [], dtype=np.int32)


def cut_middle(tokens: np.ndarray, room: int) -> np.ndarray:
    """The tokens, cut in the middle where there are more than `room`, both ends kept."""
    if len(tokens) <= room:
        return tokens
    first = (room + 1) // 2
    return np.concatenate([tokens[:first], tokens[len(tokens) - (room - first) :]])


def position_weighted_mean(decoder: Any, hidden: Any, lengths: Any) -> Any:
    """Mean of the hidden states weighted by position, [rows, width] of unit length.

    The weight of the t-th token (from 1) is t / (1 + ... + T): under a causal mask later tokens
    have read more (SGPT, Muennighoff 2022).
    """
    import torch

    steps = torch.arange(1, hidden.shape[1] + 1, device=hidden.device, dtype=torch.float32)
    weights = steps * (steps <= lengths[:, None])
    weights = weights / weights.sum(dim=1, keepdim=True)
    means = torch.einsum("rt,rtw->rw", weights, hidden.float())
    return torch.nn.functional.normalize(means, dim=1)


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

    def gradient_features(
        self, checkpoint: int, examples: Sequence[Any], meter: Meter
    ) -> np.ndarray:
        """Features of plain gradients, float32 [examples, dims]."""
        ...

    def step_features(
        self, checkpoint: int, examples: Sequence[Any], meter: Meter
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Features of the steps that Adam would take, by places, float16 [part, dims]."""
        ...


class Gradients(Protocol):
    """Warm-ups of a model."""

    def examples(self, model: LanguageModel, records: pl.DataFrame) -> Sequence[Example]:
        """The records whose answer fits the window, sorted by record_id."""
        ...

    def warm_up(
        self, model: LanguageModel, records: pl.DataFrame, seed: int, options: Any
    ) -> Checkpoints:
        """Train adapters on records, unless they are kept from before.

        `seed` decides the warm-up and the projection of gradients; `options` are those of `less`.
        """
        ...
