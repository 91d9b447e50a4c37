"""Train many small LoRA runs at once: their adapters are stacked and trained in one batch.

The operations of one run of the demo model are so small that most of its time is overhead. Here R
runs share every operation: weights are [R, in, out], activations [R, records x tokens, width]. Each
run has its own records, order, loss, gradient clipping and Adam state, so it gives the result that
`delift_pipeline.training` gives alone with the same start; a test compares it with PEFT.

Only the demo model's architecture is supported: a Llama without biases, with tied embeddings and
as many key heads as query heads. `delift_pipeline.training.stacked_layers` supports any model, and
trains the demo model more slowly.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from delift_pipeline.training.batches import Example, collate
from delift_pipeline.training.options import TrainingOptions, step_records
from delift_pipeline.training.stacked_layers import clip_each_run

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
EVALUATION_BATCH = 120
NO_LABEL = -100
"""The label of positions without a loss: torch's `ignore_index`."""

Weights = list[dict[str, torch.Tensor]]
"""For each layer and projection a matrix [in, out], or [R, in, out] where the runs differ."""


@dataclass(frozen=True)
class Stack:
    """Padded batches of R runs.

    Attributes:
        ids: int64 [R, records, width], padded on the right.
        at: int64 [R, answers], the position in `records x width` that predicts each answer token.
        labels: int64 [R, answers], `NO_LABEL` on padding.
        rows: int64 [R, answers], the record of each answer token.
    """

    ids: torch.Tensor
    at: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor


def stack_batches(batches: Sequence[Sequence[Example]]) -> Stack:
    """Pad the batches of all runs to one shape."""
    parts = [collate(batch) for batch in batches]
    records, longest = (max(part.input_ids.shape[side] for part in parts) for side in (0, 1))
    # The last token of the longest example predicts no token, so it is left out.
    width = longest - 1
    ids = torch.zeros(len(parts), records, longest, dtype=torch.int64)
    for run, part in zip(ids, parts, strict=True):
        run[: part.input_ids.shape[0], : part.input_ids.shape[1]] = part.input_ids
    return Stack(
        ids[:, :, :width],
        pad_sequence([part.rows * width + part.columns for part in parts], batch_first=True),
        pad_sequence([part.labels for part in parts], batch_first=True, padding_value=NO_LABEL),
        pad_sequence([part.rows for part in parts], batch_first=True),
    )


class StackedLora:
    """R adapters on one base model, or on R models of the same shape."""

    def __init__(
        self,
        model: "LlamaForCausalLM",
        seeds: Sequence[int],
        options: TrainingOptions,
        start: Weights | None = None,
    ) -> None:
        """Draw the adapters as PEFT does: A uniform within +-1 / sqrt(in), B zero.

        With `start` (the result of `merge`) the runs start from those weights instead of the
        model's.
        """
        config: Any = model.config
        self.runs, self.scale = len(seeds), options.alpha / options.rank
        self.heads, self.width = config.num_attention_heads, config.hidden_size
        self.eps, inner = config.rms_norm_eps, cast(Any, model.model)
        self.embedding, self.last_norm = inner.embed_tokens.weight.detach(), inner.norm.weight
        self.norms = [
            (layer.input_layernorm.weight, layer.post_attention_layernorm.weight)
            for layer in inner.layers
        ]
        self.base = start or base_weights(model)
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]

        def adapter(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            wide, out = weight.shape[-2:]
            firsts = [torch.rand(wide, options.rank, generator=draw) * 2 - 1 for draw in draws]
            first = torch.stack(firsts) * (1 / math.sqrt(wide))
            second = torch.zeros(self.runs, options.rank, out)
            return first.requires_grad_(), second.requires_grad_()

        self.adapters = [
            {name: adapter(weight) for name, weight in layer.items()} for layer in self.base
        ]
        self.merged_weights: Weights | None = None
        positions = torch.arange(config.max_position_embeddings)[None]
        cos, sin = inner.rotary_emb(torch.zeros(1, 1, 1), positions)
        self.cos, self.sin = cos[0].float(), sin[0].float()

    @property
    def parameters(self) -> list[torch.Tensor]:
        """All adapter matrices, each [R, ...]."""
        return [part for layer in self.adapters for pair in layer.values() for part in pair]

    def merge(self) -> Weights:
        """Merge the adapters into the base weights; training ends with this."""
        with torch.no_grad():
            self.merged_weights = [
                {name: self._weight(number, name).detach() for name in layer}
                for number, layer in enumerate(self.base)
            ]
        return self.merged_weights

    def _weight(self, layer: int, *names: str) -> torch.Tensor:
        """Return a layer's matrices of these names, concatenated along their outputs."""
        if self.merged_weights is not None:
            parts = [self.merged_weights[layer][name] for name in names]
        else:
            base, pairs = self.base[layer], self.adapters[layer]
            parts = [
                torch.baddbmm(base[n].expand(self.runs, -1, -1), *pairs[n], alpha=self.scale)
                for n in names
            ]
        return torch.cat(parts, dim=-1) if len(names) > 1 else parts[0]

    def logits(self, stack: Stack) -> torch.Tensor:
        """Return the logits at the answer positions, float32 [R, answers, vocabulary]."""
        runs, records, width = stack.ids.shape
        x = self.embedding[stack.ids].view(runs, records * width, self.width)
        for layer, (before, after) in enumerate(self.norms):
            mixed = self._attention(self._norm(x, before), layer, records, width)
            if layer == len(self.norms) - 1:
                at = stack.at[..., None].expand(-1, -1, self.width)
                mixed, x = mixed.gather(1, at), x.gather(1, at)
            x = x + torch.bmm(mixed, self._weight(layer, "o_proj"))
            gate, up = torch.bmm(self._norm(x, after), self._weight(layer, *MLP[:2])).chunk(2, -1)
            x = x + torch.bmm(functional.silu(gate) * up, self._weight(layer, "down_proj"))
        return self._norm(x, self.last_norm) @ self.embedding.t()

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, (self.width,), weight, self.eps)

    def _attention(self, x: torch.Tensor, layer: int, records: int, width: int) -> torch.Tensor:
        # Padding is on the right, so the causal mask alone keeps it out of every answer.
        joined = torch.bmm(x, self._weight(layer, *ATTENTION[:3]))
        split = joined.view(self.runs * records, width, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key = (self._rotate(part, width) for part in split[:2])
        out = functional.scaled_dot_product_attention(query, key, split[2], is_causal=True)
        return out.permute(0, 2, 1, 3).reshape(self.runs, records * width, self.width)

    def _rotate(self, part: torch.Tensor, width: int) -> torch.Tensor:
        low, high = part.chunk(2, dim=-1)
        return part * self.cos[:width] + torch.cat([-high, low], dim=-1) * self.sin[:width]


def base_weights(model: "LlamaForCausalLM") -> Weights:
    """Return the model's projections, transposed to [in, out]."""
    parts = [*(("self_attn", name) for name in ATTENTION), *(("mlp", name) for name in MLP)]
    return [
        {name: getattr(getattr(layer, at), name).weight.detach().t() for at, name in parts}
        for layer in cast(Any, model.model).layers
    ]


def write_weights(model: "LlamaForCausalLM", weights: Weights, run: int) -> None:
    """Write one run's merged weights into a model of the base model's shape."""
    for layer, trained in zip(base_weights(model), weights, strict=True):
        for name, weight in layer.items():
            weight.copy_(trained[name][run])


def train(
    model: "LlamaForCausalLM",
    sets: Sequence[Sequence[Example]],
    seeds: Sequence[int],
    options: TrainingOptions,
    start: Weights | None = None,
) -> StackedLora:
    """Train one adapter for each set of examples, all together, and merge them at the end.

    A run's seed decides its adapter's initial weights and the order of its records.
    """
    lora = StackedLora(model, seeds, options, start)
    optimizer = torch.optim.AdamW(lora.parameters, lr=options.learning_rate, weight_decay=0.0)
    orders = [step_records(options, len(s), seed) for s, seed in zip(sets, seeds, strict=True)]
    steps = options.total_steps(len(sets[0]))
    for step in range(steps):
        batches = [
            [chosen[i] for i in next(order)] for chosen, order in zip(sets, orders, strict=True)
        ]
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate_at(step, steps)
        step_losses(lora, stack_batches(batches)).sum().backward()
        clip_each_run(lora.parameters, options.gradient_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    lora.merge()
    return lora


def step_losses(lora: StackedLora, stack: Stack) -> torch.Tensor:
    """Return each run's mean loss per answer token, [R], in nats."""
    logits = lora.logits(stack).flatten(0, 1)
    losses = functional.cross_entropy(logits, stack.labels.flatten(), reduction="none")
    return losses.view(lora.runs, -1).sum(1) / (stack.labels != NO_LABEL).sum(1)


@dataclass(frozen=True)
class StackedResults:
    """The results of R runs on n records.

    Attributes:
        exact: bool [R, n]: whether every answer token is the most probable one, so that greedy
            generation gives exactly this answer.
        loss: float64 [R, n], mean loss per answer token in nats.
    """

    exact: np.ndarray = field(repr=False)
    loss: np.ndarray = field(repr=False)


@torch.inference_mode()
def measure(lora: StackedLora, examples: Sequence[Example]) -> StackedResults:
    """Measure every run on held-out records."""
    exact = np.zeros((lora.runs, len(examples)), dtype=bool)
    loss = np.zeros((lora.runs, len(examples)))
    for first in range(0, len(examples), EVALUATION_BATCH):
        part = examples[first : first + EVALUATION_BATCH]
        stack = stack_batches([part])
        wide = Stack(*(t.expand(lora.runs, *t.shape[1:]) for t in vars(stack).values()))
        scores = lora.logits(wide).log_softmax(-1)
        label_scores = scores.gather(2, wide.labels[..., None])[..., 0]
        wrong = scores.argmax(-1) != wide.labels
        rows, columns = stack.rows[0], slice(first, first + len(part))
        sums, errors = (
            torch.zeros(lora.runs, len(part)).index_add_(1, rows, values)
            for values in (-label_scores, wrong.float())
        )
        exact[:, columns] = (errors == 0).numpy()
        loss[:, columns] = (sums / torch.bincount(rows)).numpy()
    return StackedResults(exact, loss)
