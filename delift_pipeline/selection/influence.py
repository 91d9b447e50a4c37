"""Projected gradients of records at a checkpoint, kept in shards, and what they say of each other.

A shard is one file of 256 records, named by their ids under a folder named by the checkpoint's
bytes and all that decides a gradient. A killed run starts again at the first shard missing.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from delift_pipeline.errors import DeliftError
from delift_pipeline.progress import Meter
from delift_pipeline.storage.atomic import replacing
from delift_pipeline.storage.hashing import digest_text
from delift_pipeline.training.batches import Example
from delift_pipeline.training.gradients import RecordGradients, batch_of, gradient_batches
from delift_pipeline.training.projection import project

SHARD = 256
CPU_TOKENS, GPU_TOKENS = 2048, 32768
CPU_MEMORY = 512 << 20
"""Bytes of gradients that wait for their projection."""

Update = Callable[[torch.Tensor], torch.Tensor]
"""Gradients [n, size] -> what is projected, of the same shape."""


@dataclass(frozen=True)
class Features:
    """Where the projected gradients of one kind at one checkpoint are, and how they are made.

    Attributes:
        folder: Where shards are kept.
        dims: Numbers a record.
        seed: Of the projection.
        gradients: Makes the gradients; called only where a shard is missing.
        update: Made of the gradients before the projection; called as `gradients` is.
    """

    folder: Path
    dims: int
    seed: int
    gradients: Callable[[], RecordGradients] = field(repr=False)
    update: Callable[[], Update] = field(repr=False)

    def shards(
        self, examples: Sequence[Example], meter: Meter
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Places and unit features (float16 [records, dims]) of all examples, shard by shard."""
        for start in range(0, len(examples), SHARD):
            part = examples[start : start + SHARD]
            name = digest_text(*(example.record_id for example in part))
            path = self.folder / f"{name}.npy"
            if not path.is_file():
                self._write(path, part)
            yield slice(start, start + len(part)), np.load(path, allow_pickle=False)
            meter.advance(len(part))

    def all(self, examples: Sequence[Example], meter: Meter) -> np.ndarray:
        """Unit features of all examples, float32 [records, dims]."""
        parts = [features for _, features in self.shards(examples, meter)]
        return np.concatenate(parts).astype(np.float32)

    def _write(self, path: Path, examples: Sequence[Example]) -> None:
        features = projected(self.gradients(), examples, self.update(), self.dims, self.seed)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, features, allow_pickle=False)


def projected(
    gradients: RecordGradients,
    examples: Sequence[Example],
    update: Update,
    dims: int,
    seed: int,
) -> np.ndarray:
    """Projections of the updated gradients to unit length, float16 [examples, dims].

    Raises:
        DeliftError: a gradient is not finite.
    """
    device = next(gradients.model.parameters()).device
    memory, tokens = _limits(device)
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
        with torch.no_grad():
            waiting.append(update(_gradients_of(gradients, examples, chosen, device)))
        places += chosen
        if 4 * gradients.size * len(places) >= memory:
            flush()
    if waiting:
        flush()
    return result


def _gradients_of(
    gradients: RecordGradients, examples: Sequence[Example], chosen: list[int], device: torch.device
) -> torch.Tensor:
    with torch.enable_grad():
        return gradients(batch_of(examples, chosen, device))


def _limits(device: torch.device) -> tuple[int, int]:
    """Bytes of gradients and tokens a batch may take on a device."""
    if device.type != "cuda":
        return CPU_MEMORY, CPU_TOKENS
    return torch.cuda.mem_get_info(device)[0] // 4, GPU_TOKENS


def mean_cosines(
    features: np.ndarray,
    targets: np.ndarray,
    groups: Sequence[np.ndarray],
    itself: np.ndarray,
) -> np.ndarray:
    """Mean cosine of each record with the targets of each group, a record's own left out.

    Args:
        features: float [n, dims], unit rows.
        targets: float [m, dims], unit rows.
        groups: Places of the targets in each group.
        itself: int [n], the record's own place among the targets, or -1.

    Returns:
        float64 [n, groups]; -1 where a record is its group's only target.
    """
    rows = features.astype(np.float32)
    own = np.flatnonzero(itself >= 0)
    own_cosines = np.einsum("ij,ij->i", rows[own], targets[itself[own]])
    means = np.empty((len(rows), len(groups)))
    for number, members in enumerate(groups):
        sums = (rows @ targets[members].sum(axis=0)).astype(np.float64)
        counts = np.full(len(rows), len(members))
        inside = np.isin(itself[own], members)
        sums[own[inside]] -= own_cosines[inside]
        counts[own[inside]] -= 1
        means[:, number] = np.where(counts > 0, sums / np.maximum(counts, 1), -1)
    return means
