"""Train many LoRA runs of one base model at once, for any causal model of Hugging Face.

Each linear layer that PEFT would adapt gets R adapters with a leading dimension. The batch holds
the records of run 0, then those of run 1, and so on. The base layer multiplies all of them at once,
and two batched products add what each run's adapter changes:

    y_r = W x_r + (alpha / rank) B_r A_r x_r        (Hu et al., arXiv 2106.09685)

Each run has its own records, order, loss, gradient clipping and Adam state, so it gives the result
that `delift_pipeline.training.run` gives alone; a test compares them.

`delift_pipeline.training.stacked` does the same for the demo model only. It trains a fifth faster
there, because it merges adapters into weights, which pays for a tiny model only. It can also start
runs from different weights.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from peft import get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn import functional

from delift_pipeline.core.errors import InputError
from delift_pipeline.core.progress import Progress, SilentProgress
from delift_pipeline.training.batches import Batch, Example, collate
from delift_pipeline.training.options import TrainingOptions, step_records
from delift_pipeline.training.run import seed_torch
from delift_pipeline.training.setup import lora_config


class StackedLinear(nn.Module):
    """A frozen linear layer with R adapters.

    Attributes:
        first: A of every run, transposed, float32 `[R, in, rank]`.
        second: B of every run, transposed, float32 `[R, rank, out]`; zero at the start.
        run: The one run that a batch belongs to; None if it holds equally many rows of each run.
    """

    def __init__(self, base: nn.Linear, first: torch.Tensor, scale: float) -> None:
        super().__init__()
        self.base, self.scale, self.run = base, scale, cast(int | None, None)
        runs, _, rank = first.shape
        self.first = nn.Parameter(first.to(base.weight.device))
        self.second = nn.Parameter(self.first.new_zeros(runs, rank, base.out_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output; `x` has `R x records` rows in run order, `[rows, ..., in]`."""
        out = self.base(x)
        runs = slice(None) if self.run is None else slice(self.run, self.run + 1)
        first, second = self.first[runs], self.second[runs]
        by_run = x.to(first.dtype).reshape(len(first), -1, x.shape[-1])
        change = torch.bmm(torch.bmm(by_run, first), second * self.scale)
        return (out + change.view(out.shape)).to(out.dtype)


class StackedLora:
    """R adapters in the layers of a model. `remove` gives the model its own layers back."""

    def __init__(self, model: Any, seeds: Sequence[int], options: TrainingOptions) -> None:
        """Replace the model's layers; a run's seed draws the same weights as in a run alone.

        Raises:
            InputError: The options are not those of LoRA without dropout, or a layer that they name
                is not a linear layer.
        """
        if options.method != "lora" or options.dropout:
            raise InputError("runs are stacked for method lora without dropout", field="training")
        self.model, self.runs = model, len(seeds)
        draws = {seed: _first_weights(model, options, seed) for seed in dict.fromkeys(seeds)}
        self.layers: dict[str, StackedLinear] = {}
        for name in draws[seeds[0]]:
            first = torch.stack([draws[seed][name] for seed in seeds])
            base = model.get_submodule(name)
            self.layers[name] = StackedLinear(base, first, options.alpha / options.rank)
        for name, layer in self.layers.items():
            model.set_submodule(name, layer)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All adapter matrices, each [R, ...]."""
        return [part for layer in self.layers.values() for part in (layer.first, layer.second)]

    def remove(self) -> None:
        """Give the model its own layers back."""
        for name, layer in self.layers.items():
            self.model.set_submodule(name, layer.base)

    @contextmanager
    def only(self, run: int) -> Iterator[None]:
        """Make the model answer as one run inside the block, for batches of any size."""
        for layer in self.layers.values():
            layer.run = run
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.run = None

    def answer_logits(self, batch: Batch) -> torch.Tensor:
        """Return the logits that predict each answer token, float32 `[answer tokens, vocabulary]`.

        The output head reads only these positions, because the logits of all of them would take
        most of the memory.
        """

        def pick(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return (inputs[0][batch.rows, batch.columns][None], *inputs[1:])

        head = self.model.get_output_embeddings()
        handle = head.register_forward_pre_hook(pick)
        try:
            masks = {"attention_mask": batch.attention_mask}
            return self.model(batch.input_ids, use_cache=False, **masks).logits[0].float()
        finally:
            handle.remove()


def _first_weights(model: Any, options: TrainingOptions, seed: int) -> dict[str, torch.Tensor]:
    """Return A of every layer that PEFT adapts, transposed, float32 `[in, rank]`."""
    with seed_torch(seed):
        adapted = cast(Any, get_peft_model(model, lora_config(options)))
    named = adapted.base_model.model.named_modules()
    layers: dict[str, Any] = {name: part for name, part in named if isinstance(part, LoraLayer)}
    bases = {name: type(layer.get_base_layer()) for name, layer in layers.items()}
    weights = {
        name: layer.lora_A["default"].weight.detach().float().t()
        for name, layer in layers.items()
        if issubclass(bases[name], nn.Linear)
    }
    adapted.unload()
    model.requires_grad_(False)
    if other := [name for name in layers if name not in weights]:
        kind = bases[other[0]].__name__
        reason = f"{other[0]} is a layer of the kind {kind}. Only linear layers can be stacked"
        raise InputError(reason, field="target_modules")
    return weights


def train(
    model: Any,
    sets: Sequence[Sequence[Example]],
    seeds: Sequence[int],
    options: TrainingOptions,
    progress: Progress | None = None,
) -> StackedLora:
    """Train one adapter for each set of examples, all together.

    All sets take the same number of steps, so with `epochs` they have the same size. A run's seed
    decides its adapter's initial weights and the order of its records.

    Returns:
        The adapters, which stay in the model until they are removed. If training fails, they are
        removed.
    """
    sizes = {options.presentations(len(examples)) for examples in sets}
    if len(sizes) != 1:
        raise ValueError("runs of different lengths cannot be stacked")
    lora = StackedLora(model, seeds, options)
    model.train()
    try:
        _run_steps(lora, sets, seeds, options, progress or SilentProgress())
    except BaseException:
        lora.remove()
        raise
    finally:
        model.eval()
    return lora


def _run_steps(
    lora: StackedLora,
    sets: Sequence[Sequence[Example]],
    seeds: Sequence[int],
    options: TrainingOptions,
    progress: Progress,
) -> None:
    device = lora.parameters[0].device
    optimizer = torch.optim.AdamW(
        lora.parameters, lr=options.learning_rate, weight_decay=options.weight_decay, fused=True
    )
    orders = [step_records(options, len(s), seed) for s, seed in zip(sets, seeds, strict=True)]
    steps = options.total_steps(len(sets[0]))
    with progress.track("train", steps, "steps") as meter:
        for step, positions in enumerate(zip(*orders, strict=True)):
            # Sorted by length, so forward passes need little padding.
            chosen = [
                sorted((examples[i] for i in own), key=len)
                for examples, own in zip(sets, positions, strict=True)
            ]
            tokens = torch.tensor([sum(len(e.answer) for e in own) for own in chosen]).to(device)
            for start in range(0, len(chosen[0]), options.batch_size):
                parts = [own[start : start + options.batch_size] for own in chosen]
                (_sums(lora, _stack(parts, device)) / tokens).sum().backward()
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate_at(step, steps)
            clip_each_run(lora.parameters, options.gradient_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            meter.advance()


def _stack(parts: Sequence[Sequence[Example]], device: torch.device) -> Batch:
    """Return one batch of the records of all runs, in run order."""
    return collate([example for part in parts for example in part]).to(device)


def _sums(lora: StackedLora, batch: Batch) -> torch.Tensor:
    """Return the summed loss of each run's answer tokens, [R], in nats."""
    losses = functional.cross_entropy(lora.answer_logits(batch), batch.labels, reduction="none")
    run = batch.rows // (len(batch.input_ids) // lora.runs)
    return losses.new_zeros(lora.runs).index_add(0, run, losses)


def clip_each_run(parameters: Sequence[torch.Tensor], limit: float | None) -> None:
    """Clip each run's gradient by its own norm, as `torch.nn.utils.clip_grad_norm_` does."""
    if limit is None:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor[:, None, None])


@dataclass(frozen=True)
class StackedResults:
    """The results of R runs on n records.

    Attributes:
        loss: float64 [R, n], mean loss per answer token in nats.
        accuracy: float64 [R, n], share of answer tokens that are the most probable ones. It is 1
            where greedy generation gives exactly this answer.
    """

    loss: np.ndarray = field(repr=False)
    accuracy: np.ndarray = field(repr=False)


@torch.inference_mode()
def measure(
    lora: StackedLora, examples: Sequence[Example], tokens_at_once: int = 4096
) -> StackedResults:
    """Measure every run on held-out records. A batch has about `tokens_at_once` tokens."""
    loss, accuracy = np.zeros((2, lora.runs, len(examples)))
    device = lora.parameters[0].device
    by_length = sorted(range(len(examples)), key=lambda i: len(examples[i]))
    while by_length:
        records = max(1, tokens_at_once // (lora.runs * len(examples[by_length[-1]])))
        columns, by_length = by_length[-records:], by_length[:-records]
        part = [examples[i] for i in columns]
        batch = _stack([part] * lora.runs, device)
        logits = lora.answer_logits(batch)
        values = (
            functional.cross_entropy(logits, batch.labels, reduction="none"),
            (logits.argmax(-1) == batch.labels).float(),
        )
        counts = torch.bincount(batch.rows)
        for table, value in zip((loss, accuracy), values, strict=True):
            means = value.new_zeros(len(counts)).index_add(0, batch.rows, value) / counts
            table[:, columns] = means.view(lora.runs, -1).cpu().numpy()
    return StackedResults(loss, accuracy)
