"""The fast path: the layers of a rotary decoder one by one, with nothing computed that is not read.

Against a plain pass over prefix and target, all exact up to rounding:
- the prefix's keys and values are computed once and never copied for the rows (`mixing`);
- padding exists only where tokens look at each other (`packed`);
- what the first layer's projections make of a target does not depend on the prefix and is kept;
- the last layer runs at the positions that predict an answer token; of a prefix it only makes keys
  and values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from delift_pipeline.scoring.attention import attend
from delift_pipeline.scoring.batches import Batch
from delift_pipeline.scoring.decoder import Decoder
from delift_pipeline.scoring.mixing import (
    Heads,
    JointMixing,
    Mixing,
    SplitMixing,
    picked,
    repeated,
    rows_of,
)
from delift_pipeline.scoring.packed import Packed, packed

KNOWN_LAYERS = (
    "LlamaDecoderLayer",
    "MistralDecoderLayer",
    "Qwen2DecoderLayer",
    "Qwen3DecoderLayer",
    "Phi3DecoderLayer",
)


@dataclass(frozen=True)
class PrefixKeys:
    """Keys and values of a prefix in every layer, [tokens, key heads, width] each."""

    layers: list[tuple[torch.Tensor, torch.Tensor]]

    @property
    def tokens(self) -> int:
        """Tokens of the prefix."""
        return self.layers[0][0].shape[0]


def why_not_layered(decoder: Decoder, window: int | None) -> str | None:
    """Why a model's layers cannot be run one by one here, or None where they can.

    Args:
        decoder: The model.
        window: Most tokens in a sequence; None where that is not known.
    """
    layers = getattr(decoder.body, "layers", None)
    if not layers or any(type(layer).__name__ not in KNOWN_LAYERS for layer in layers):
        return "its layers are of another kind"
    if len(set(getattr(decoder.model, "hf_device_map", {"": 0}).values())) > 1:
        return "its layers lie on several devices"
    sliding = getattr(decoder.config, "sliding_window", None)
    if sliding and (window is None or window > sliding):
        return "its attention slides"
    return None


class LayerPath:
    """Runs the layers of the families in `KNOWN_LAYERS` over packed targets."""

    name = "layers"

    def __init__(self, decoder: Decoder, kept_bytes: int = 0) -> None:
        """Take a model's layers.

        Args:
            decoder: The model, for which `why_not_layered` has nothing to say.
            kept_bytes: Most memory for what the first layer makes of the targets.
        """
        self.decoder, self.body = decoder, decoder.body
        self.layers: list[Any] = list(self.body.layers)  # pyright: ignore
        attention = self.layers[0].self_attn
        self.width = int(attention.head_dim)
        self.heads = int(decoder.config.num_attention_heads)
        self.groups = int(attention.num_key_value_groups)
        self.split = SplitMixing()
        joint = decoder.device.type == "cpu" and decoder.model.dtype == torch.bfloat16
        self.mixings: tuple[Mixing, ...] = (JointMixing(), self.split) if joint else (self.split,)
        self.kept_bytes = self._room = kept_bytes

    def prepare(self, batch: Batch) -> Packed:
        """A batch as this path reads it."""
        return packed(batch, self.decoder.device)

    def forget(self) -> None:
        """Nothing is kept of the batches any more."""
        self._room = self.kept_bytes

    def prefill(self, ids: torch.Tensor) -> PrefixKeys:
        """Keys and values of a prefix, ids int64 [tokens]."""
        hidden = self.body.embed_tokens(ids)  # pyright: ignore
        turn = self._turn(torch.arange(len(ids), device=ids.device), hidden)
        found = []
        for layer in self.layers:
            own = self._turned(self._projected(layer, layer.input_layernorm(hidden)), turn)
            found.append((own.key.contiguous(), own.value.contiguous()))
            if len(found) < len(self.layers):
                spread = Heads(own.query, *(repeated(part, self.groups, 1) for part in own[1:]))
                query, key, value = (rows_of(part, 1) for part in spread)
                part = attend(query, key, value, scale=_scale(layer), causal=True)
                hidden = self._after(layer, hidden, part.out[0].transpose(0, 1))
        return PrefixKeys(found)

    def logprobs(self, batch: Packed, prefixes: Sequence[PrefixKeys | None]) -> torch.Tensor:
        """Log p of every answer token of a batch, float32 [answers].

        Args:
            batch: The targets.
            prefixes: Of the batch's jobs, by owner.
        """
        own_prefixes = [prefixes[owner] for owner in batch.owners]
        for mixing in self.mixings:
            found = self._logprobs(batch, own_prefixes, mixing)
            if mixing.sound():
                return found
        raise AssertionError("the last way of mixing is always sound")

    def _logprobs(
        self, batch: Packed, prefixes: list[PrefixKeys | None], mixing: Mixing
    ) -> torch.Tensor:
        hidden, own = self._first(batch)
        turn = self._turn(_positions(batch, prefixes), hidden)
        for place, layer in enumerate(self.layers):
            last = place == len(self.layers) - 1
            at = batch.at if last else None
            if place:
                own = self._projected(layer, layer.input_layernorm(hidden), at)
            elif last:
                own = own._replace(query=own.query[batch.at])
            keys = [prefix and prefix.layers[place] for prefix in prefixes]
            mix = self.split.asked if last else mixing.mixed
            mixed = mix(self._turned(own, turn, at), batch, keys, _scale(layer))
            hidden = self._after(layer, picked(hidden, at), mixed)
        return self.decoder.logprobs(self.body.norm(hidden), batch.answers)  # pyright: ignore

    def _first(self, batch: Packed) -> tuple[torch.Tensor, Heads]:
        """Embeddings and the first layer's heads before rotation: the same after every prefix."""
        if batch.first is not None:
            return batch.first[0], Heads(*batch.first[1:])
        hidden = self.body.embed_tokens(batch.ids)  # pyright: ignore
        own = self._projected(self.layers[0], self.layers[0].input_layernorm(hidden))
        size = sum(tensor.nbytes for tensor in (hidden, *own))
        if size <= self._room:
            self._room -= size
            batch.first = (hidden, *own)
        return hidden, own

    def _turn(self, steps: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = self.body.rotary_emb(like[None], position_ids=steps[None])  # pyright: ignore
        # The lower half of a head turns by minus the sine: the sign is taken here once.
        sin = torch.cat([-sin[..., : sin.shape[-1] // 2], sin[..., sin.shape[-1] // 2 :]], dim=-1)
        return cos[0, :, None], sin[0, :, None]

    def _projected(self, layer: Any, normed: torch.Tensor, at: torch.Tensor | None = None) -> Heads:
        """The heads of tokens, not rotated; queries only of the tokens `at` where that is given."""
        attention = layer.self_attn
        if hasattr(attention, "qkv_proj"):
            inner = self.heads * self.width
            sizes = (inner, inner // self.groups, inner // self.groups)
            query, key, value = attention.qkv_proj(normed).split(sizes, dim=-1)
            query = query if at is None else query[at]
        else:
            query = attention.q_proj(normed if at is None else normed[at])
            key, value = attention.k_proj(normed), attention.v_proj(normed)
        parts = (part.reshape(len(part), -1, self.width) for part in (query, key, value))
        query, key, value = parts
        if hasattr(attention, "q_norm"):
            query, key = attention.q_norm(query), attention.k_norm(key)
        return Heads(query, key, value)

    def _turned(
        self, own: Heads, turn: tuple[torch.Tensor, ...], at: torch.Tensor | None = None
    ) -> Heads:
        """Heads with rotary positions; `at` as in `_projected`."""
        asking = turn if at is None else tuple(part[at] for part in turn)
        return Heads(_rotated(own.query, *asking), _rotated(own.key, *turn), own.value)

    def _after(self, layer: Any, hidden: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        """What a layer does after attention, [tokens, model width]."""
        hidden = hidden + layer.self_attn.o_proj(mixed.flatten(1))
        return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


def _positions(batch: Packed, prefixes: list[PrefixKeys | None]) -> torch.Tensor:
    """Each token's place in its whole sequence, int64 [tokens]."""
    before = [prefix.tokens if prefix else 0 for prefix in prefixes]
    if len(before) == 1:
        return batch.steps + before[0]
    sizes = torch.tensor([stop - start for start, stop in batch.segments])
    shift = torch.tensor(before).repeat_interleave(sizes)
    return batch.steps + shift.to(batch.steps.device)


def _scale(layer: Any) -> float:
    return float(layer.self_attn.scaling)


def _rotated(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """[tokens, heads, width] turned by `LayerPath._turn` in the first `cos.shape[-1]` of a head."""
    turned = cos.shape[-1]
    part, rest = heads[..., :turned], heads[..., turned:]
    low, high = part.chunk(2, dim=-1)
    found = torch.addcmul(part * cos, torch.cat([high, low], dim=-1), sin)
    return found if not rest.shape[-1] else torch.cat([found, rest], dim=-1)
