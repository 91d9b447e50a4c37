"""Compute the gradients of single records at checkpoints of a short training, and project them.

For a linear layer with input x and gradient g at its output, the gradient of record n's loss is

    dL_n / dW = sum_t g_nt x_nt^T

No record's loss depends on another record's activations, so one backward pass of the summed losses
gives g for all records. No array as large as the base model's weights is needed.

The projection uses a random matrix of signs, which is computed when needed and never stored:

    R[i, k] = +-1,   z = x R / sqrt(dims)

It keeps inner products up to an error of about 1 / sqrt(dims) of the norms' product (Johnson and
Lindenstrauss; Rademacher signs: Achlioptas 2003). Sign (i, k) is a bit of a hash of seed, i and
k (splitmix64, Steele et al. 2014), so every device, batch and restart sees the same matrix.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file

from delift_pipeline.core.atomic import read_json, write_json
from delift_pipeline.core.errors import DeliftError, InputError
from delift_pipeline.core.hashing import digest_files, digest_json
from delift_pipeline.core.progress import Progress
from delift_pipeline.scoring.batches import length_batches
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.training.batches import Batch, Example, answer_losses, encode_examples
from delift_pipeline.training.options import TrainingOptions
from delift_pipeline.training.run import (
    MOMENTS,
    STATE,
    WEIGHTS,
    TrainingRun,
    load_weights,
    seed_torch,
)
from delift_pipeline.training.setup import Trainable, load_trainable


class RecordGradients:
    """Computes per-record gradients of a model's trainable linear weights.

    Attributes:
        names: Names of the trainable weights, in the order of a gradient's parts.
        size: How many numbers one gradient has.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        """Wrap a model in evaluation mode whose adapters are trainable.

        Raises:
            DeliftError: nothing is trainable, or something other than weights of linear layers.
        """
        self.model = model
        layers = {
            f"{name}.weight": module
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and module.weight.requires_grad
        }
        self.names, self._layers = tuple(layers), list(layers.values())
        trained = {name for name, value in model.named_parameters() if value.requires_grad}
        if not self.names or trained != set(self.names):
            name = next(iter(sorted(trained - set(self.names))), "nothing")
            raise DeliftError(
                "gradients of single records need adapters on linear layers and nothing else that "
                f"is trainable, but this model trains {name}"
            )
        sizes = (layer.weight.numel() for layer in self._layers)
        self._starts = [*accumulate(sizes, initial=0)]
        self.size = self._starts[-1]

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Return the gradient of each record's mean loss per token, float32 [records, size]."""
        rows, width = batch.input_ids.shape
        calls: list[tuple[int, torch.Tensor, torch.Tensor]] = []

        def record(layer: int, _: Any, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
            calls.append((layer, inputs[0].detach(), out))

        with ExitStack() as hooks:
            for number, layer in enumerate(self._layers):
                hooks.enter_context(layer.register_forward_hook(partial(record, number)))
            losses = answer_losses(self.model, batch)
        answers = torch.bincount(batch.rows, minlength=rows)
        total = (losses / answers[batch.rows]).sum()
        output_gradients = torch.autograd.grad(total, [outputs for _, _, outputs in calls])
        gradients = torch.zeros(rows, self.size, device=losses.device)
        for (number, inputs, _), output_gradient in zip(calls, output_gradients, strict=True):
            start, stop = self._starts[number : number + 2]
            gradients[:, start:stop] += _weight_gradients(inputs, output_gradient, rows, width)
        return gradients


def _weight_gradients(
    inputs: torch.Tensor, output_gradient: torch.Tensor, rows: int, width: int
) -> torch.Tensor:
    """Return sum_t g_nt x_nt^T of each record n, flattened, float32 [records, out * in].

    Raises:
        DeliftError: the layer mixes the tokens of several records, as a mixture of experts does.
    """
    if inputs.numel() // inputs.shape[-1] != rows * width:
        raise DeliftError(
            "a layer mixes the tokens of several records (a mixture of experts), so the gradients "
            "of single records cannot be separated. Name other layers in target_modules"
        )
    x = inputs.reshape(rows, width, -1).float()
    g = output_gradient.reshape(rows, width, -1).float()
    return torch.bmm(g.transpose(1, 2), x).flatten(1)


def gradient_batches(
    examples: Sequence[Example], size: int, tokens: int, memory: int
) -> Iterator[list[int]]:
    """Yield batches as indices of examples of similar length, longest first.

    A batch has at most `tokens` tokens, padding included, and its gradients take at most `memory`
    bytes. A record that exceeds a limit gets a batch of its own.
    """
    most = max(1, memory // (4 * size))
    lengths = np.asarray([len(example) for example in examples], dtype=np.int64)
    for places in length_batches(lengths, lambda longest: min(most, tokens // longest)):
        yield places.tolist()


WORD_BITS = 64
_GOLDEN, _FIRST, _SECOND = (
    number - (1 << WORD_BITS)
    for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
"""The constants of splitmix64 as signed integers."""
SIGN_ROWS = 2048
"""How many rows of signs are computed at a time: 64 MiB at 8,192 dimensions."""


def project(vectors: torch.Tensor, dims: int, seed: int) -> torch.Tensor:
    """Project rows, float32 [n, size], to float32 [n, dims]."""
    result = torch.zeros(len(vectors), dims, device=vectors.device)
    for start in range(0, vectors.shape[1], SIGN_ROWS):
        part = vectors[:, start : start + SIGN_ROWS]
        result += part @ signs(start, part.shape[1], dims, seed, vectors.device)
    return result / dims**0.5


def signs(start: int, rows: int, dims: int, seed: int, device: torch.device) -> torch.Tensor:
    """Return rows `start` to `start + rows` of the matrix of signs, float32 [rows, dims].

    Raises:
        InputError: `dims` is not a multiple of 64.
    """
    if dims < WORD_BITS or dims % WORD_BITS:
        raise InputError(
            f"dims is {dims:,}, which is not a multiple of {WORD_BITS}. Choose another"
        )
    # One int64 holds 64 signs: [rows, dims / 64].
    words = dims // WORD_BITS
    first = torch.arange(start, start + rows, dtype=torch.int64, device=device)[:, None]
    counters = first * words + torch.arange(words, dtype=torch.int64, device=device)
    offset = _mix_bits(torch.tensor([seed], dtype=torch.int64, device=device))
    # A table with the eight signs of every byte value, lowest bit first: float32 [256, 8].
    byte_values = torch.arange(256, device=device)[:, None]
    table = ((byte_values >> torch.arange(8, device=device)) & 1).float() * 2 - 1
    sign_bytes = _mix_bits(counters ^ offset).view(torch.uint8).int()
    return torch.nn.functional.embedding(sign_bytes, table).reshape(rows, dims)


def _mix_bits(numbers: torch.Tensor) -> torch.Tensor:
    """Apply the finaliser of splitmix64, in integers that wrap around."""
    x = numbers + _GOLDEN
    x = (x ^ _shift_right(x, 30)) * _FIRST
    x = (x ^ _shift_right(x, 27)) * _SECOND
    return x ^ _shift_right(x, 31)


def _shift_right(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift to the right and fill with zeros; torch's own shift repeats the sign bit."""
    return (numbers >> bits) & ((1 << (WORD_BITS - bits)) - 1)


CHECKPOINT_LIST, CHECKPOINT_FOLDER = "checkpoints.json", "step-{:08d}"
BETAS, EPSILON = (0.9, 0.999), 1e-8
"""The defaults of torch's AdamW, with which the warm-up trains."""


@dataclass(frozen=True)
class Checkpoint:
    """The stored training state at the end of an epoch.

    Attributes:
        folder: Holds weights, moments and state (`training.run`).
        learning_rate: Mean learning rate over the steps since the previous checkpoint.
    """

    folder: Path
    step: int
    learning_rate: float

    @cached_property
    def digest(self) -> str:
        """Digest of weights and moments, on which gradients at this checkpoint depend."""
        return digest_files(self.folder, [self.folder / WEIGHTS, self.folder / MOMENTS])


@dataclass(frozen=True)
class Moments:
    """Adam's state of the requested weights, concatenated in their order.

    Attributes:
        first: Mean of the gradients, float32 [size].
        second: Mean of their squares, float32 [size].
    """

    first: torch.Tensor
    second: torch.Tensor
    step: int

    def update(self, gradients: torch.Tensor) -> torch.Tensor:
        """Return the direction in which Adam would step for each gradient alone.

        m' = b1 m + (1 - b1) g,  v' = b2 v + (1 - b2) g^2
        (m' / (1 - b1^t)) / (sqrt(v' / (1 - b2^t)) + eps),  t = step + 1

        `gradients` and the result are float32 [n, size].
        """
        (b1, b2), count = BETAS, self.step + 1
        mean = (b1 * self.first + (1 - b1) * gradients) / (1 - b1**count)
        square = (b2 * self.second + (1 - b2) * gradients.square()) / (1 - b2**count)
        return mean / (square.sqrt() + EPSILON)


@dataclass(frozen=True)
class WarmUp:
    """Trains adapters on a few records and stores a checkpoint at the end of every epoch.

    A killed run continues from its last checkpoint, and a finished run is not repeated. `claim` is
    called before weights are loaded.
    """

    options: TrainingOptions
    model: ModelOptions
    records: pl.DataFrame
    seed: int
    folder: Path
    progress: Progress
    claim: Callable[[], object]

    @cached_property
    def trainable(self) -> Trainable:
        """The model with fresh adapters, with which the warm-up starts."""
        self.claim()
        with seed_torch(self.seed):
            return load_trainable(self.options, self.model, None)

    @cached_property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The checkpoints in order; the warm-up runs first where they are missing."""
        if not (self.folder / CHECKPOINT_LIST).is_file():
            self._train()
        entries = read_json(self.folder / CHECKPOINT_LIST)
        steps = ((entry["step"], entry["learning_rate"]) for entry in entries)
        return tuple(
            Checkpoint(self.folder / CHECKPOINT_FOLDER.format(step), step, rate)
            for step, rate in steps
        )

    def model_at(self, checkpoint: Checkpoint) -> torch.nn.Module:
        """Return the model with a checkpoint's weights, in evaluation mode."""
        load_weights(checkpoint.folder, self.trainable.model)
        return self.trainable.model.eval()

    def moments(self, checkpoint: Checkpoint, names: tuple[str, ...]) -> Moments:
        """Adam's moments of the named weights.

        Raises:
            DeliftError: the checkpoint has none of a weight.
        """
        stored = load_file(checkpoint.folder / MOMENTS)
        if missing := [name for name in names if f"{name}/exp_avg" not in stored]:
            where = f"checkpoint {checkpoint.folder.name} has no moments of {missing[0]}"
            raise DeliftError(f"{where}. Delete {self.folder} and start again")
        device = self.trainable.device
        first, second = (
            torch.cat([stored[f"{name}/{kind}"].flatten() for name in names]).float().to(device)
            for kind in ("exp_avg", "exp_avg_sq")
        )
        return Moments(first, second, int(stored[f"{names[0]}/step"]))

    def _train(self) -> None:
        examples, _ = encode_examples(self.trainable.encoder, self.records.sort("record_id"))
        ids = [example.record_id for example in examples]
        request = [self.options.request, self.seed, self.trainable.fingerprint, ids]
        states = sorted(self.folder.glob(f"step-*/{STATE}"))
        key, last = digest_json(request), states[-1].parent if states else None
        with torch.random.fork_rng():
            run = TrainingRun(self.options, self.seed, self.trainable, examples, key, last)
            # The steps after which an epoch is complete; a step can complete several.
            records, per_step = len(examples), self.options.records_per_step
            epochs = max(1, round(self.options.presentations(records) / records))
            ends = sorted({-(-records * epoch // per_step) for epoch in range(1, epochs + 1)})

            def save_at_epoch_end(step: int, _: Any) -> None:
                if step + 1 in ends:
                    run.save(self.folder / CHECKPOINT_FOLDER.format(step + 1))

            run.run_steps(self.progress, save_at_epoch_end)
        rates = run.done.learning_rates
        finished = [
            {"step": end, "learning_rate": sum(rates[start:end]) / (end - start)}
            for start, end in pairwise([0, *ends])
        ]
        write_json(self.folder / CHECKPOINT_LIST, finished)
