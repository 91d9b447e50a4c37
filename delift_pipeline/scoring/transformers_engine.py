"""The reference engine: a demonstration is read once and serves all its targets."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from delift_pipeline.errors import DeliftError
from delift_pipeline.prompts.encoded import EncodedRecords
from delift_pipeline.scoring.batches import Batch, halves, make_batches
from delift_pipeline.scoring.cache_path import CachePath
from delift_pipeline.scoring.decoder import Decoder
from delift_pipeline.scoring.engine import Job, TokenScores
from delift_pipeline.scoring.layers import LayerPath, why_not_layered

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH_TOKENS_CPU = 2048
BATCH_TOKENS_GPU = 65536


class TransformersEngine:
    """Shares each prefix's keys and values among length-sorted batches of targets.

    Logits are made at answer positions only, a chunk at a time. Known families run layer by layer
    (`layers`), the others by a cache that is expanded for every batch (`cache_path`).
    """

    name = "transformers"

    def __init__(
        self,
        model: "PreTrainedModel",
        batch_tokens: int | None = None,
        *,
        window: int | None = None,
        layered: bool = True,
    ) -> None:
        """Wrap a model.

        Args:
            model: A causal language model whose cache can be shared (see `engines.engine_for`).
            batch_tokens: Most target tokens, padding included, in one batch.
            window: Most tokens in a sequence; with it, attention that slides only beyond it counts
                as plain.
            layered: Whether known families run layer by layer.
        """
        self.decoder = Decoder(model)
        on_cpu = self.decoder.device.type == "cpu"
        self.batch_tokens = batch_tokens or (BATCH_TOKENS_CPU if on_cpu else BATCH_TOKENS_GPU)
        layered = layered and why_not_layered(self.decoder, window) is None
        self.path: LayerPath | CachePath = (LayerPath if layered else CachePath)(self.decoder)
        self._last: tuple[EncodedRecords, np.ndarray, list[_Ready]] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The options that decide batches."""
        return {"engine": self.name, "path": self.path.name, "batch_tokens": self.batch_tokens}

    @torch.inference_mode()
    def score(self, records: EncodedRecords, jobs: Sequence[Job]) -> list[TokenScores]:
        """Score jobs, each prefix once."""
        return [self._job(records, job) for job in jobs]

    def _job(self, records: EncodedRecords, job: Job) -> TokenScores:
        lengths = records.answer_lengths[job.rows]
        result = np.empty(int(lengths.sum()), dtype=np.float32)
        prefix = self.prefilled(job.prefix)
        halved = 0
        pending = list(reversed(self._batches(records, job.rows)))
        while pending:
            batch, ready = pending.pop()
            try:
                result[batch.places] = self._batch(ready, prefix)
            except (RuntimeError, MemoryError) as error:
                _check_memory(error, batch)
                halved += 1
                pending += [(half, self.path.prepare(half)) for half in halves(records, batch)]
        return TokenScores(result, lengths, halved)

    def prefilled(self, prefix: np.ndarray) -> Any:
        """Keys and values of a prefix, or None for an empty one; under `torch.inference_mode`."""
        if not len(prefix):
            return None
        return self.path.prefill(torch.from_numpy(prefix.astype(np.int64)).to(self.decoder.device))

    def _batch(self, ready: Any, prefix: Any) -> np.ndarray:
        return self.path.logprobs(ready, prefix).cpu().numpy()

    def _batches(self, records: EncodedRecords, rows: np.ndarray) -> "list[_Ready]":
        # In a dense block every demonstration has the same targets: their batches are made once.
        if self._last and self._last[0] is records and np.array_equal(self._last[1], rows):
            return self._last[2]
        self._last = None
        self.path.forget()
        made = make_batches(records, rows, self.batch_tokens)
        ready = [(batch, self.path.prepare(batch)) for batch in made]
        self._last = (records, rows.copy(), ready)
        return ready


_Ready = tuple[Batch, Any]
"""A batch, and what the engine's path made of it."""


def _check_memory(error: Exception, batch: Batch) -> None:
    text = str(error).lower()
    memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        "out of memory" in text or "can't allocate memory" in text
    )
    if not memory:
        raise error
    if len(batch.rows) < 2:
        raise DeliftError(
            "a single pair does not fit in memory; use a smaller window, dtype bfloat16 or a "
            "larger device"
        ) from error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
