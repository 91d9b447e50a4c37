"""The general path: a prefix's cache, expanded for every batch; right for most decoders."""

from collections.abc import Sequence

import torch
from transformers import DynamicCache

from delift_pipeline.scoring.batches import Batch
from delift_pipeline.scoring.decoder import Decoder, expanded


class CachePath:
    """Runs a model's own forward pass on padded targets after a shared cache."""

    name = "cache"

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder

    def prepare(self, batch: Batch) -> Batch:
        """The batch on the model's device."""
        return batch.moved(self.decoder.device)

    def forget(self) -> None:
        """Nothing is kept."""

    def prefill(self, ids: torch.Tensor) -> DynamicCache:
        """Keys and values of a prefix, ids int64 [tokens]."""
        return self.decoder.prefill(ids[None])

    def logprobs(self, batch: Batch, prefixes: Sequence[DynamicCache | None]) -> torch.Tensor:
        """Log p of every answer token of a batch, float32 [answers]; of one prefix."""
        (prefix,) = prefixes
        shared = None if prefix is None else expanded(prefix, len(batch.rows))
        hidden = self.decoder.hidden(batch.ids, shared)
        chosen = hidden.flatten(0, 1).index_select(0, batch.positions)
        return self.decoder.logprobs(chosen, batch.answers)
