"""Projected gradients of records at a checkpoint, kept in shards, and what they say of each other.

A shard is one file of 256 records, named by their ids under a folder named by the checkpoint's
bytes and all that decides a gradient. A killed run starts again at the first shard missing.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl

from delift_pipeline.core.atomic import replacing
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
"""Counted up when the meaning of a stored gradient changes."""
RECORDS_PER_STEP = 128
RECORDS_PER_PASS = 8
WARM_UP_RATIO = 0.03
SHARD = 256
CPU_TOKENS, GPU_TOKENS = 2048, 32768
CPU_MEMORY = 512 << 20
"""Bytes of gradients that wait for their projection."""

Update = Callable[["torch.Tensor"], "torch.Tensor"]
"""Gradients [n, size] -> what is projected, of the same shape."""


def warm_up_options(options: LessOptions, records: int) -> TrainingOptions:
    """How the warm-up trains on so many records: a step is 128 of them, or all."""
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
    """`selection.language_model.Gradients` with respect to LoRA adapters."""

    def examples(self, model: LanguageModel, records: pl.DataFrame) -> "list[Example]":
        """The records whose answer fits the window, sorted by record_id."""
        from delift_pipeline.training.batches import encode_examples

        return encode_examples(model.encoder, records.sort("record_id"))[0]

    def warmed_up(
        self, model: LanguageModel, records: pl.DataFrame, seed: int, options: LessOptions
    ) -> "ProjectedGradients":
        """Train adapters on records, unless they are kept from before."""
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
    """Unit features of records at the checkpoints of a warm-up, kept in shards."""

    warm_up: "WarmUp" = field(repr=False)
    dims: int
    seed: int

    @property
    def learning_rates(self) -> list[float]:
        """Mean learning rate of each checkpoint's epoch."""
        return [checkpoint.learning_rate for checkpoint in self.warm_up.checkpoints]

    def plain(self, checkpoint: int, examples: "Sequence[Example]", meter: Meter) -> np.ndarray:
        """Features of plain gradients, float32 [examples, dims]."""
        parts = [features for _, features in self._shards("plain", checkpoint, examples, meter)]
        return np.concatenate(parts).astype(np.float32)

    def steps(
        self, checkpoint: int, examples: "Sequence[Example]", meter: Meter
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Features of the steps that Adam would take, by places, float16 [part, dims]."""
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
                with replacing(path) as temporary, temporary.open("wb") as file:
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
    """Projections of the updated gradients to unit length, float16 [examples, dims].

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
        # Many at once: the signs are made anew for every projection.
        rows = torch.nn.functional.normalize(project(torch.cat(waiting), dims, seed), dim=1)
        if not torch.isfinite(rows).all():
            raise DeliftError("a gradient is not finite; try dtype float32")
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
