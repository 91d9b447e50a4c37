"""The fast path: the layers of a rotary decoder one by one, with nothing computed that is not read.

Against a plain pass over prefix and target, all exact up to rounding:
- the prefix's keys and values are computed once and never copied for the rows (`attention`);
- padding exists only where tokens look at each other (`packed`);
- what the first layer's projections make of a target does not depend on the prefix and is kept;
- the last layer runs at the positions that predict an answer token; of a prefix it only makes keys
  and values.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from delift_pipeline.scoring.attention import Part, attend, merged
from delift_pipeline.scoring.batches import Batch
from delift_pipeline.scoring.decoder import Decoder
from delift_pipeline.scoring.packed import Packed, packed

KNOWN_LAYERS = (
    "LlamaDecoderLayer",
    "MistralDecoderLayer",
    "Qwen2DecoderLayer",
    "Qwen3DecoderLayer",
    "Phi3DecoderLayer",
)
KEPT_BYTES = 256 << 20
"""Most memory for what the first layer makes of the targets."""


class Heads(NamedTuple):
    """Queries, keys and values of tokens, [tokens, heads, width] (fewer heads for the last two)."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor


@dataclass(frozen=True)
class PrefixKeys:
    """Keys and values of a prefix in every layer, [1, heads, tokens, width] each."""

    layers: list[tuple[torch.Tensor, torch.Tensor]]

    @property
    def tokens(self) -> int:
        """Tokens of the prefix."""
        return self.layers[0][0].shape[2]


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

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.body = decoder, decoder.body
        self.layers: list[Any] = list(self.body.layers)  # pyright: ignore
        attention = self.layers[0].self_attn
        self.width = int(attention.head_dim)
        self.heads = int(decoder.config.num_attention_heads)
        self.groups = int(attention.num_key_value_groups)
        self._room = KEPT_BYTES

    def prepare(self, batch: Batch) -> Packed:
        """A batch as this path reads it."""
        return packed(batch, self.decoder.device, self.decoder.model.dtype)

    def forget(self) -> None:
        """Nothing is kept of the batches any more."""
        self._room = KEPT_BYTES

    def prefill(self, ids: torch.Tensor) -> PrefixKeys:
        """Keys and values of a prefix, ids int64 [tokens]."""
        hidden = self.body.embed_tokens(ids)  # pyright: ignore
        turn = self._turn(torch.arange(len(ids), device=ids.device), hidden)
        found = []
        for layer in self.layers:
            own = self._turned(self._projected(layer, layer.input_layernorm(hidden)), turn)
            query, key, value = (self._rows(part, 1) for part in own)
            key, value = self._repeated(key).contiguous(), self._repeated(value).contiguous()
            found.append((key, value))
            if len(found) < len(self.layers):
                part = attend(query, key, value, scale=layer.self_attn.scaling, causal=True)
                hidden = self._after(layer, hidden, part.out[0].transpose(0, 1))
        return PrefixKeys(found)

    def logprobs(self, batch: Packed, prefix: PrefixKeys | None) -> torch.Tensor:
        """Log p of every answer token of a batch, float32 [answers]."""
        hidden, own = self._first(batch)
        turn = self._turn(batch.steps + (prefix.tokens if prefix else 0), hidden)
        last = len(self.layers) - 1
        for place, layer in enumerate(self.layers):
            at = batch.at if place == last else None
            if place:
                own = self._projected(layer, layer.input_layernorm(hidden), at)
            elif at is not None:
                own = own._replace(query=own.query[at])
            keys = prefix.layers[place] if prefix else None
            mixed = self._mixed(layer, self._turned(own, turn, at), batch, keys, place == last)
            hidden = self._after(layer, hidden if at is None else hidden[at], mixed)
        return self.decoder.logprobs(self.body.norm(hidden), batch.answers)  # pyright: ignore

    def _first(self, batch: Packed) -> tuple[torch.Tensor, Heads]:
        """Embeddings and the first layer's heads before rotation: the same after every prefix."""
        if batch.first is not None:
            return batch.first[0], Heads(*batch.first[1:])
        hidden = self.body.embed_tokens(batch.ids)  # pyright: ignore
        own = self._projected(self.layers[0], self.layers[0].input_layernorm(hidden))
        size = sum(tensor.numel() * tensor.element_size() for tensor in (hidden, *own))
        if size <= self._room:
            self._room -= size
            batch.first = (hidden, *own)
        return hidden, own

    def _turn(self, steps: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = self.body.rotary_emb(like[None], position_ids=steps[None])  # pyright: ignore
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

    def _mixed(
        self,
        layer: Any,
        own: Heads,
        batch: Packed,
        keys: tuple[torch.Tensor, ...] | None,
        last: bool,
    ) -> torch.Tensor:
        """Attention of every token, or in the last layer of those that predict an answer token.

        Returns:
            [tokens, heads, width].
        """
        query = _picked(own.query, batch.asked if last else batch.spread)
        key, value = (self._rows(_picked(part, batch.spread), batch.rows) for part in own[1:])
        part = attend(
            self._rows(query, batch.rows),
            self._repeated(key),
            self._repeated(value),
            scale=_scale(layer),
            causal=not last,
            mask=batch.mask if last else None,
        )
        back = batch.asked_back if last else batch.gather
        return self._joined(layer, own.query, part, back, keys)

    def _joined(
        self,
        layer: Any,
        query: torch.Tensor,
        part: Part,
        back: torch.Tensor | None,
        keys: tuple[torch.Tensor, ...] | None,
    ) -> torch.Tensor:
        """A batch's own part and the prefix's part as one, [queries, heads, width]."""
        out = _picked(part.out.transpose(1, 2).reshape(-1, self.heads, self.width), back)
        if keys is None:
            return out
        lse = _picked(part.lse.transpose(1, 2).reshape(-1, self.heads), back)
        before = attend(self._rows(query, 1), *keys, scale=_scale(layer))
        return merged(before.out[0].transpose(0, 1), before.lse[0].transpose(0, 1), out, lse)

    def _after(self, layer: Any, hidden: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        """What a layer does after attention, [tokens, model width]."""
        hidden = hidden + layer.self_attn.o_proj(mixed.flatten(1))
        return hidden + layer.mlp(layer.post_attention_layernorm(hidden))

    def _rows(self, part: torch.Tensor, rows: int) -> torch.Tensor:
        """[rows * tokens, heads, width] as [rows, heads, tokens, width]."""
        return part.view(rows, -1, part.shape[1], self.width).transpose(1, 2)

    def _repeated(self, part: torch.Tensor) -> torch.Tensor:
        """Every key head once for each query head that reads it."""
        return part if self.groups == 1 else part.repeat_interleave(self.groups, dim=1)


def _scale(layer: Any) -> float:
    return float(layer.self_attn.scaling)


def _picked(tensor: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
    return tensor if places is None else tensor.index_select(0, places)


def _rotated(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """[tokens, heads, width] with rotary positions on the first `cos.shape[-1]` of each head."""
    turned = cos.shape[-1]
    part, rest = heads[..., :turned], heads[..., turned:]
    low, high = part.chunk(2, dim=-1)
    found = part * cos + torch.cat([-high, low], dim=-1) * sin
    return found if not rest.shape[-1] else torch.cat([found, rest], dim=-1)
