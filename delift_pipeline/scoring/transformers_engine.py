"""The reference engine: a demonstration is read once and serves all its targets."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from delift_pipeline.errors import DeliftError
from delift_pipeline.prompts.encoded import EncodedRecords
from delift_pipeline.scoring.batches import Batch, halves, make_batches
from delift_pipeline.scoring.decoder import Decoder, expanded
from delift_pipeline.scoring.engine import Job, TokenScores

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

BATCH_TOKENS_CPU = 2048
BATCH_TOKENS_GPU = 65536


class TransformersEngine:
    """Shares each prefix's keys and values among length-sorted batches of targets.

    Logits are made at answer positions only, a chunk at a time.
    """

    name = "transformers"

    def __init__(self, model: "PreTrainedModel", batch_tokens: int | None = None) -> None:
        """Wrap a model.

        Args:
            model: A causal language model whose cache can be shared (see `engines.engine_for`).
            batch_tokens: Most target tokens, padding included, in one batch.
        """
        self.decoder = Decoder(model)
        on_cpu = self.decoder.device.type == "cpu"
        self.batch_tokens = batch_tokens or (BATCH_TOKENS_CPU if on_cpu else BATCH_TOKENS_GPU)
        self._last: tuple[EncodedRecords, np.ndarray, list[Batch]] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The options that decide batches."""
        return {"engine": self.name, "batch_tokens": self.batch_tokens}

    @torch.inference_mode()
    def score(self, records: EncodedRecords, jobs: Sequence[Job]) -> list[TokenScores]:
        """Score jobs, each prefix once."""
        return [self._job(records, job) for job in jobs]

    def _job(self, records: EncodedRecords, job: Job) -> TokenScores:
        lengths = records.answer_lengths[job.rows]
        result = np.empty(int(lengths.sum()), dtype=np.float32)
        cache = self.prefilled(job.prefix)
        halved = 0
        pending = list(reversed(self._batches(records, job.rows)))
        while pending:
            batch = pending.pop()
            try:
                result[batch.places] = self._batch(batch, cache)
            except (RuntimeError, MemoryError) as error:
                _check_memory(error, batch)
                halved += 1
                pending += [half.moved(self.decoder.device) for half in halves(records, batch)]
        return TokenScores(result, lengths, halved)

    def prefilled(self, prefix: np.ndarray) -> "DynamicCache | None":
        """Keys and values of a prefix, or None for an empty one; under `torch.inference_mode`."""
        if not len(prefix):
            return None
        ids = torch.from_numpy(prefix.astype(np.int64))[None].to(self.decoder.device)
        return self.decoder.prefill(ids)

    def _batch(self, batch: Batch, cache: "DynamicCache | None") -> np.ndarray:
        shared = None if cache is None else expanded(cache, len(batch.rows))
        hidden = self.decoder.hidden(batch.ids, shared)
        chosen = hidden.flatten(0, 1).index_select(0, batch.positions)
        return self.decoder.logprobs(chosen, batch.answers).cpu().numpy()

    def _batches(self, records: EncodedRecords, rows: np.ndarray) -> list[Batch]:
        # In a dense block every demonstration has the same targets: their batches are made once.
        if self._last and self._last[0] is records and np.array_equal(self._last[1], rows):
            return self._last[2]
        made = make_batches(records, rows, self.batch_tokens)
        moved = [batch.moved(self.decoder.device) for batch in made]
        self._last = (records, rows.copy(), moved)
        return moved


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
