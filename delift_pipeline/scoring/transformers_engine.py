"""The transformers engine: a demonstration is read once and serves all its targets."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from delift_pipeline.errors import DeliftError
from delift_pipeline.prompts.encoded import EncodedRecords
from delift_pipeline.scoring.batches import Batch, Targets, batch_places, halves
from delift_pipeline.scoring.cache_path import CachePath
from delift_pipeline.scoring.decoder import Decoder
from delift_pipeline.scoring.engine import Job, TokenScores
from delift_pipeline.scoring.layers import LayerPath, why_not_layered
from delift_pipeline.scoring.memory import MemoryPlan, keep_freed_pages, plan_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IN_FLIGHT_GPU = 4
"""Demonstrations that share batches on a GPU, where those of one alone would not fill it."""

_Ready = tuple[Batch, Any]
"""A batch, and what the engine's path made of it."""


class TransformersEngine:
    """Shares each prefix's keys and values among length-sorted batches of targets.

    Logits are made at answer positions only, a chunk at a time. Known families run layer by layer
    (`layers`), the others by a cache that is expanded for every batch (`cache_path`). How much is
    done at a time follows from a memory plan (`memory`).
    """

    name = "transformers"

    def __init__(
        self,
        model: "PreTrainedModel",
        batch_tokens: int | None = None,
        *,
        window: int | None = None,
        why_not_layers: str | None = None,
        memory_limit: float | None = None,
        in_flight: int | None = None,
    ) -> None:
        """Wrap a model.

        Args:
            model: A causal language model whose cache can be shared (see `engines.engine_for`).
            batch_tokens: Most target tokens, padding included, in one batch.
            window: Most tokens in a sequence; with it, attention that slides only beyond it counts
                as plain.
            why_not_layers: A reason not to run known families layer by layer.
            memory_limit: Most memory over the loaded model, in GiB (`memory.plan_memory`).
            in_flight: Jobs of one call that share batches; None for 1 on a CPU and 4 on a GPU. It
                is 1 where layers do not run one by one.

        Raises:
            Refused: not even one pair fits the memory limit.
        """
        keep_freed_pages()
        self.decoder = Decoder(model)
        self.why_not_layers = why_not_layers or why_not_layered(self.decoder, window)
        shared = self.why_not_layers is None
        own = IN_FLIGHT_GPU if self.decoder.device.type == "cuda" else 1
        self.in_flight = (in_flight or own) if shared else 1
        self.plan = plan_memory(
            self.decoder,
            shared=shared,
            window=window,
            batch_tokens=batch_tokens,
            memory_limit=memory_limit,
            in_flight=self.in_flight,
        )
        self.decoder.logit_rows = self.plan.logit_rows
        self.path: LayerPath | CachePath = (
            LayerPath(self.decoder, self.plan.kept // 2) if shared else CachePath(self.decoder)
        )
        self._made = _Made(self.path, self.plan.kept - self.plan.kept // 2)

    @property
    def settings(self) -> dict[str, Any]:
        """The options that decide batches, and why layers do not run one by one if they do not."""
        found: dict[str, Any] = {"engine": self.name, "path": self.path.name}
        found |= {"batch_tokens": self.plan.tokens, "in_flight": self.in_flight}
        if self.plan.keys is not None:
            found["batch_keys"] = self.plan.keys
        if self.why_not_layers:
            found["why_not_layers"] = self.why_not_layers
        return found

    @torch.inference_mode()
    def score(self, records: EncodedRecords, jobs: Sequence[Job]) -> list[TokenScores]:
        """Score jobs, each prefix once."""
        groups = [
            jobs[start : start + self.in_flight] for start in range(0, len(jobs), self.in_flight)
        ]
        return [found for group in groups for found in self._group(records, group)]

    def _group(self, records: EncodedRecords, jobs: Sequence[Job]) -> list[TokenScores]:
        targets = Targets.of(records, [job.rows for job in jobs])
        result = np.empty(int(records.answer_lengths[targets.rows].sum()), dtype=np.float32)
        prefixes = [self._prefilled(job.prefix) for job in jobs]
        reach = max(self.plan.reach, *(len(job.prefix) for job in jobs))
        halved = 0
        for batch, ready in self._made.batches(targets, self.plan, reach):
            halved += self._into(result, targets, batch, ready, prefixes)
        return _split(result, records, jobs, halved)

    def _into(
        self,
        result: np.ndarray,
        targets: Targets,
        batch: Batch,
        ready: Any,
        prefixes: list[Any],
    ) -> int:
        """Write a batch's scores into the result; how often it had to be halved."""
        try:
            found = self.path.logprobs(ready, prefixes)
            result[batch.places] = found.cpu().numpy()
            return 0
        except (RuntimeError, MemoryError) as error:
            check_memory(error)
            if len(batch.rows) < 2:
                raise _too_large() from error
        # Outside the handler: its error holds the frames, and with them the tensors, of the pass.
        free_memory()
        parts = halves(targets.records, batch)
        return 1 + sum(
            self._into(result, targets, half, self.path.prepare(half), prefixes) for half in parts
        )

    def _prefilled(self, prefix: np.ndarray) -> Any:
        try:
            return self.prefilled(prefix)
        except (RuntimeError, MemoryError) as error:
            check_memory(error)
            raise _too_large() from error

    def prefilled(self, prefix: np.ndarray) -> Any:
        """Keys and values of a prefix, or None for an empty one; under `torch.inference_mode`."""
        if not len(prefix):
            return None
        return self.path.prefill(torch.from_numpy(prefix.astype(np.int64)).to(self.decoder.device))


class _Made:
    """Batches, kept while there is room: in a dense block every demonstration has the same."""

    def __init__(self, path: LayerPath | CachePath, room: int) -> None:
        self.path, self.room, self.left = path, room, room
        self.targets: Targets | None = None
        self.reach: int | None = None
        self.places: list[np.ndarray] = []
        self.kept: dict[int, _Ready] = {}

    def batches(self, targets: Targets, plan: MemoryPlan, reach: int) -> Iterator[_Ready]:
        """The batches of targets under a plan, after prefixes of up to `reach` tokens."""
        # Where keys are not bounded, how far a prefix reaches decides nothing.
        bounded = None if plan.keys is None else reach
        if not targets.same(self.targets) or bounded != self.reach:
            self.path.forget()
            self.targets, self.reach, self.kept, self.left = targets, bounded, {}, self.room
            self.places = batch_places(targets, plan.tokens, keys=plan.keys, reach=reach)
        for number, chosen in enumerate(self.places):
            yield self.kept.get(number) or self._make(targets, number, chosen)

    def _make(self, targets: Targets, number: int, chosen: np.ndarray) -> _Ready:
        batch = targets.batch(chosen)
        made = (batch, self.path.prepare(batch))
        size = batch.nbytes + made[1].nbytes
        if size <= self.left:
            self.left -= size
            self.kept[number] = made
        return made


def _split(
    result: np.ndarray, records: EncodedRecords, jobs: Sequence[Job], halved: int
) -> list[TokenScores]:
    found, start = list[TokenScores](), 0
    for job in jobs:
        lengths = records.answer_lengths[job.rows]
        stop = start + int(lengths.sum())
        # A batch of several jobs is counted at the first of them.
        found.append(TokenScores(result[start:stop], lengths, 0 if found else halved))
        start = stop
    return found


def check_memory(error: Exception) -> None:
    """Raise an error again unless it says that memory ran out."""
    text = str(error).lower()
    memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        "out of memory" in text or "allocate memory" in text
    )
    if not memory:
        raise error


def free_memory() -> None:
    """Give cached blocks of a GPU back to its allocator."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _too_large() -> DeliftError:
    return DeliftError(
        "a single pair does not fit in memory; use a smaller window, dtype bfloat16 or a "
        "larger device"
    )
