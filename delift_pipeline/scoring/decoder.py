"""The parts of a causal language model (body, cache, head), and the general scoring path."""

import copy
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from delift_pipeline.scoring.batches import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SHAREABLE = (DynamicLayer, DynamicSlidingWindowLayer)


class Decoder:
    """The parts of a model that scoring needs.

    Attributes:
        logit_rows: For how many tokens logits are computed at a time.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        self.model, self.config = model, model.config.get_text_config(decoder=True)
        self.body = model.base_model
        self.head = model.get_output_embeddings()
        self._accepts_positions = "position_ids" in inspect.signature(self.body.forward).parameters
        self.logit_rows = 128

    @property
    def device(self) -> torch.device:
        """The device that reads the input ids."""
        return self.model.get_input_embeddings().weight.device  # pyright: ignore

    def hidden_states(self, ids: torch.Tensor, cache: DynamicCache | None) -> torch.Tensor:
        """Return the last hidden states [rows, tokens, width] of ids that follow the cache.

        The model gets no attention mask. Rows are padded on the right, so under the causal mask no
        real token sees padding, and the prefix has no padding at all.
        """
        seen = 0 if cache is None else cache.get_seq_length()
        inputs: dict[str, object] = {"input_ids": ids, "use_cache": cache is not None}
        if cache is not None:
            inputs["past_key_values"] = cache
        if self._accepts_positions:
            steps = torch.arange(seen, seen + ids.shape[1], device=ids.device)
            inputs["position_ids"] = steps.expand(ids.shape[0], -1)
        return self.body(**inputs).last_hidden_state

    def logprobs(self, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return log p of `tokens` [n] from hidden states [n, width], float32 [n].

        Logits are computed in chunks, because those of all tokens would take too much memory.
        """
        chunks = []
        for start in range(0, len(tokens), self.logit_rows):
            stop = start + self.logit_rows
            logits = self.logits(hidden[start:stop])
            logprobs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
            chunks.append(logprobs.gather(1, tokens[start:stop, None])[:, 0])
        return torch.cat(chunks)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [n, words] of hidden states [n, width], scaled as the model scales them."""
        logits: torch.Tensor = self.head(hidden)  # pyright: ignore
        if scale := getattr(self.config, "logit_scale", None):
            logits = logits * scale
        if divisor := getattr(self.config, "logits_scaling", None):
            logits = logits / divisor
        if cap := getattr(self.config, "final_logit_softcapping", None):
            logits = torch.tanh(logits / cap) * cap
        return logits


class CachePath:
    """The general path: the model's own cache of a prefix, expanded for every batch."""

    name = "cache"

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder

    def prepare(self, batch: Batch) -> Batch:
        """Return the batch unchanged."""
        return batch

    def prefill(self, ids: torch.Tensor) -> DynamicCache:
        """Compute the keys and values of a prefix; `ids` int64 [tokens]."""
        cache = DynamicCache(config=self.decoder.model.config)
        self.decoder.hidden_states(ids[None], cache)
        return cache

    def logprobs(self, batch: Batch, prefixes: Sequence[DynamicCache | None]) -> torch.Tensor:
        """Return log p of every answer token of a batch after one prefix, float32 [answers]."""
        (prefix,) = prefixes
        device = self.decoder.device
        shared = None if prefix is None else expand_cache(prefix, batch.rows)
        hidden = self.decoder.hidden_states(batch.ids.to(device), shared)
        chosen = hidden.flatten(0, 1).index_select(0, batch.positions.to(device))
        return self.decoder.logprobs(chosen, batch.answers.to(device))


def is_shareable(cache: DynamicCache) -> bool:
    """Whether `expand_cache` works for every layer of a filled cache."""
    return all(type(layer) in _SHAREABLE for layer in cache.layers)


def expand_cache(cache: DynamicCache, rows: int) -> DynamicCache:
    """Return a cache that repeats a prefix for `rows` rows without copying it.

    A forward pass puts new tensors into the layer objects of its cache and does not write into the
    old tensors. So new layer objects around the same tensors keep the prefix unchanged.
    """
    fresh, layers = copy.copy(cache), list[Any](map(copy.copy, cache.layers))
    fresh.layers = layers
    for layer in layers:
        if layer.keys is not None and layer.values is not None:
            layer.keys = layer.keys.expand(rows, -1, -1, -1)
            layer.values = layer.values.expand(rows, -1, -1, -1)
    return fresh
