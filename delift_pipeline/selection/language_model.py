"""The language model that a selector reads, loaded when it is first used, and its gradients.

A selector that sets `model` in its `Needs` receives a `LanguageModel`, both for an arm of a version
and for a file. Torch is imported only when the weights are loaded. The gradients here are only an
interface, which `training.influence` implements.
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
from delift_pipeline.scoring.options import ModelOptions, options_of_other
from delift_pipeline.scoring.store import ScoreStore

if TYPE_CHECKING:
    from delift_pipeline.prompts.encode import Encoder
    from delift_pipeline.scoring.model import LoadedModel

BATCH_TOKENS_CPU = 2048
BATCH_TOKENS_GPU = 65536
GRADIENTS = "gradients"
"""Folder in the scores of a fingerprint where gradient selectors store their results."""


def _claim_nothing() -> None:
    """Wait for no device, because none is shared."""


@dataclass(frozen=True)
class LanguageModel:
    """A model with its tokenizer, and with the folders for its scores and gradients.

    Attributes:
        options: The model, and how to run it.
        home: The home that stores scores and gradients, by fingerprint.
        progress: The progress display.
        claim: Called each time before weights are loaded. If devices are shared, it waits for one.
    """

    options: ModelOptions
    home: Home
    progress: Progress = field(default_factory=SilentProgress, repr=False)
    claim: Callable[[], object] = field(default=_claim_nothing, repr=False)

    @cached_property
    def fingerprint(self) -> str:
        """Return the digest of everything that decides what the model computes."""
        return fingerprint_of(self.options).digest

    @property
    def template(self) -> str:
        """Return the name of the prompt template."""
        return fingerprint_of(self.options).template

    @cached_property
    def encoder(self) -> "Encoder":
        """Return the tokenizer with the prompt template; no weights are loaded.

        Raises:
            InputError: The model, its tokenizer or the template cannot be used.
        """
        from delift_pipeline.scoring.model import load_encoder

        return load_encoder(self.options)

    @cached_property
    def loaded_model(self) -> "LoadedModel":
        """Load the model with its weights, in evaluation mode.

        Selectors read hidden states and single logits, which vLLM does not give. So transformers
        loads the model even if vLLM scores.

        Raises:
            InputError: The model cannot be used.
        """
        from delift_pipeline.scoring.model import load_model

        self.claim()
        return load_model(self.options.model_copy(update={"engine": "transformers"}))

    @property
    def scorer(self) -> "LoadedModel":
        """Return the model for `scoring.engines.engine_for`, without weights for vLLM.

        vLLM loads the weights itself.

        Raises:
            InputError: The model cannot be used, or vLLM is chosen and not installed.
        """
        from delift_pipeline.scoring.model import load_scorer

        if self.options.engine != "vllm":
            return self.loaded_model
        self.claim()
        return load_scorer(self.options)

    @property
    def scores(self) -> ScoreStore:
        """Return the store of this model's pair scores."""
        return ScoreStore(self.home.scores(self.fingerprint))

    @property
    def gradients(self) -> Path:
        """Return the folder of this model's gradients. It can be deleted and computed again."""
        return self.home.scores(self.fingerprint) / GRADIENTS

    def with_model(self, model: str) -> "LanguageModel":
        """Return another model that runs with the same options."""
        other = options_of_other(self.options, model)
        return LanguageModel(other, self.home, self.progress, self.claim)


def reduce_hidden_states(
    model: LanguageModel, sequences: Sequence[np.ndarray], reduce: Callable[..., Any], name: str
) -> np.ndarray:
    """Compute one value per sequence from its hidden states on the model's device.

    Sequences of similar length share a forward pass, and only the lengths decide the batches.
    `sequences` are token ids, int32, none empty. `reduce` receives the decoder, hidden states
    [rows, tokens, width] and lengths [rows], and returns values [rows, ...]. `name` is the label of
    the progress display.

    Returns:
        float32 [sequences, ...], in the order of `sequences`.
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
    """Return the token ids of whole texts, without template and markers."""
    return [np.asarray(one.ids, dtype=np.int32) for one in encoder.plain.encode(list(texts))]


def begin_of_text(encoder: "Encoder") -> np.ndarray:
    """Return the begin-of-text token if the model has one, int32 [0 or 1]."""
    begin = encoder.tokenizer.bos_token_id
    return np.asarray([begin] if isinstance(begin, int) else [], dtype=np.int32)


def cut_middle(tokens: np.ndarray, room: int) -> np.ndarray:
    """Return at most `room` tokens: if there are more, both ends without the middle."""
    if len(tokens) <= room:
        return tokens
    first = (room + 1) // 2
    return np.concatenate([tokens[:first], tokens[len(tokens) - (room - first) :]])


def position_weighted_mean(decoder: Any, hidden: Any, lengths: Any) -> Any:
    """Return the mean of the hidden states weighted by position, [rows, width] of unit length.

    The weight of the t-th of T tokens is t / (1 + ... + T), because under a causal mask later
    tokens have read more (SGPT, Muennighoff 2022).
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
        """Return the record_id."""
        ...


class Checkpoints(Protocol):
    """The checkpoints of a warm-up, with unit features of gradients at each of them."""

    @property
    def learning_rates(self) -> Sequence[float]:
        """Return the mean learning rate of each checkpoint's epoch."""
        ...

    def gradient_features(
        self, checkpoint: int, examples: Sequence[Any], meter: Meter
    ) -> np.ndarray:
        """Return features of plain gradients, float32 [examples, dims]."""
        ...

    def step_features(
        self, checkpoint: int, examples: Sequence[Any], meter: Meter
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield positions and features of the steps that Adam would take, float16 [part, dims]."""
        ...


class Gradients(Protocol):
    """Gradients of a model after a short warm-up."""

    def examples(self, model: LanguageModel, records: pl.DataFrame) -> Sequence[Example]:
        """Return the records whose answer fits the window, sorted by record_id."""
        ...

    def warm_up(
        self, model: LanguageModel, records: pl.DataFrame, seed: int, options: Any
    ) -> Checkpoints:
        """Train adapters on records, or reuse stored ones.

        `seed` decides the warm-up and the projection of gradients. `options` are those of `less`.
        """
        ...
