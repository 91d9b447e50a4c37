"""Compute projected gradients of records at the checkpoints of a warm-up, and store them in shards.

A shard is one file of 256 records. Its name is a hash of their ids, and its folder's name a hash of
the checkpoint and of everything else that decides a gradient. A killed run continues at the first
missing shard.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl

from delift_pipeline.core.atomic import replace_file
from delift_pipeline.core.errors import DeliftError
from delift_pipeline.core.hashing import digest_json, digest_text
from delift_pipeline.core.progress import Meter
from delift_pipeline.selection.language_model import LanguageModel
from delift_pipeline.selection.selectors.less import LessOptions
from delift_pipeline.training.options import TrainingOptions

if TYPE_CHECKING:
    import torch

    from delift_pipeline.training.batches import Example
    from delift_pipeline.training.gradients import RecordGradients, WarmUp

METHOD = 1
"""Raise this number when the meaning of a stored gradient changes."""
RECORDS_PER_STEP = 128
RECORDS_PER_PASS = 8
WARM_UP_RATIO = 0.03
SHARD = 256
CPU_TOKENS, GPU_TOKENS = 2048, 32768
CPU_MEMORY = 512 << 20
"""How many bytes of gradients are collected before they are projected."""

Update = Callable[["torch.Tensor"], "torch.Tensor"]
"""A function from gradients [n, size] to the vectors that are projected, of the same shape."""


def warm_up_options(options: LessOptions, records: int) -> TrainingOptions:
    """Return the options of a warm-up on `records` records: a step takes 128 of them, or all."""
    per_pass = min(RECORDS_PER_PASS, records)
    accumulation = -(-min(RECORDS_PER_STEP, records) // per_pass)
    steps = -(-records * options.epochs // (per_pass * accumulation))
    return TrainingOptions(
        method="lora",
        rank=options.rank,
        alpha=options.alpha,
        dropout=options.dropout,
        target_modules=options.target_modules,
        learning_rate=options.learning_rate,
        schedule="linear",
        floor=0.0,
        warmup_steps=int(WARM_UP_RATIO * steps),
        batch_size=per_pass,
        accumulation=accumulation,
        epochs=float(options.epochs),
    )


class LowRankGradients:
    """Implements `selection.language_model.Gradients` for LoRA adapters."""

    def examples(self, model: LanguageModel, records: pl.DataFrame) -> "list[Example]":
        """Return the records whose answer fits the window, sorted by record_id."""
        from delift_pipeline.training.batches import encode_examples

        return encode_examples(model.encoder, records.sort("record_id"))[0]

    def warm_up(
        self, model: LanguageModel, records: pl.DataFrame, seed: int, options: LessOptions
    ) -> "ProjectedGradients":
        """Train adapters on records, unless an earlier run stored them."""
        from delift_pipeline.training.gradients import WarmUp

        training = warm_up_options(options, records.height)
        folder = model.gradients / digest_json(
            [METHOD, training.request, seed, records["record_id"].to_list()]
        )
        scorer = model.options.model_copy(update={"engine": "transformers"})
        warm_up = WarmUp(training, scorer, records, seed, folder, model.progress, model.claim)
        return ProjectedGradients(warm_up, options.dims, seed)


@dataclass(frozen=True)
class ProjectedGradients:
    """Computes features of records, of unit length, at a warm-up's checkpoints; stores shards."""

    warm_up: "WarmUp" = field(repr=False)
    dims: int
    seed: int

    @property
    def learning_rates(self) -> list[float]:
        """Mean learning rate of each checkpoint's epoch."""
        return [checkpoint.learning_rate for checkpoint in self.warm_up.checkpoints]

    def gradient_features(
        self, checkpoint: int, examples: "Sequence[Example]", meter: Meter
    ) -> np.ndarray:
        """Return features of plain gradients, float32 [examples, dims]."""
        parts = [features for _, features in self._shards("plain", checkpoint, examples, meter)]
        return np.concatenate(parts).astype(np.float32)

    def step_features(
        self, checkpoint: int, examples: "Sequence[Example]", meter: Meter
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield a slice of the examples with features of Adam's steps, float16 [part, dims]."""
        return self._shards("adam", checkpoint, examples, meter)

    def _shards(
        self,
        kind: Literal["plain", "adam"],
        number: int,
        examples: "Sequence[Example]",
        meter: Meter,
    ) -> Iterator[tuple[slice, np.ndarray]]:
        from delift_pipeline.training.gradients import RecordGradients

        checkpoint = self.warm_up.checkpoints[number]
        key = digest_json([METHOD, checkpoint.digest, self.dims, self.seed])
        folder, sources = checkpoint.folder.parent / f"features-{key}" / kind, None
        for start in range(0, len(examples), SHARD):
            part = examples[start : start + SHARD]
            path = folder / f"{digest_text(*(example.record_id for example in part))}.npy"
            if not path.is_file():
                if sources is None:
                    gradients = RecordGradients(self.warm_up.model_at(checkpoint))
                    adam = kind == "adam"
                    moments = self.warm_up.moments(checkpoint, gradients.names) if adam else None
                    sources = gradients, moments.update if moments else lambda plain: plain
                features = project_gradients(sources[0], part, sources[1], self.dims, self.seed)
                with replace_file(path) as temporary, temporary.open("wb") as file:
                    np.save(file, features, allow_pickle=False)
            yield slice(start, start + len(part)), np.load(path, allow_pickle=False)
            meter.advance(len(part))


def project_gradients(
    gradients: "RecordGradients",
    examples: "Sequence[Example]",
    update: Update,
    dims: int,
    seed: int,
) -> np.ndarray:
    """Return the projected, updated gradients, scaled to length 1, float16 [examples, dims].

    Raises:
        DeliftError: a gradient is not finite.
    """
    import torch

    from delift_pipeline.training.batches import collate
    from delift_pipeline.training.gradients import gradient_batches, project

    device = next(gradients.model.parameters()).device
    memory, tokens = CPU_MEMORY, CPU_TOKENS
    if device.type == "cuda":
        memory, tokens = torch.cuda.mem_get_info(device)[0] // 4, GPU_TOKENS
    result = np.empty((len(examples), dims), dtype=np.float16)
    waiting: list[torch.Tensor] = []
    places: list[int] = []

    def flush() -> None:
        # Many gradients at once, because every projection computes the signs again.
        rows = torch.nn.functional.normalize(project(torch.cat(waiting), dims, seed), dim=1)
        if not torch.isfinite(rows).all():
            raise DeliftError("a gradient is not finite. Use dtype float32")
        result[places] = rows.half().cpu().numpy()
        waiting.clear()
        places.clear()

    for chosen in gradient_batches(examples, gradients.size, tokens, memory):
        batch_gradients = gradients(collate([examples[place] for place in chosen]).to(device))
        with torch.no_grad():
            waiting.append(update(batch_gradients))
        places += chosen
        if 4 * gradients.size * len(places) >= memory:
            flush()
    if waiting:
        flush()
    return result
