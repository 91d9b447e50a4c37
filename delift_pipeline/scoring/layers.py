"""The fast path: run the layers of a rotary decoder one by one and compute only what is read.

It saves work compared with a plain pass over prefix and target, and is exact up to rounding:
- a prefix's keys and values are computed once and are not copied for each target (`attend`);
- only attention works on padded rows;
- a target's queries, keys and values in the first layer do not depend on the prefix and are reused;
- the last layer runs only at the positions that predict an answer token, and computes only keys and
  values of a prefix.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, NamedTuple

import torch

from delift_pipeline.scoring.batches import Batch, PackedTargets, pack
from delift_pipeline.scoring.decoder import Decoder

_aten = torch.ops.aten


class Attention(NamedTuple):
    """The result of attention over a part of the keys.

    Attributes:
        out: The weighted values, [batch, heads, queries, width].
        lse: The log-sum-exp of the scores, float32 [batch, heads, queries].
    """

    out: torch.Tensor
    lse: torch.Tensor


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    causal: bool = False,
    mask: torch.Tensor | None = None,
) -> Attention:
    """Compute attention and its log-sum-exp by the fastest kernel of the device.

    Query, key and value are [batch, heads, tokens, width]. With `causal`, query t sees keys 0..t
    only; else `mask` is added to the scores: it broadcasts to [batch, heads, queries, keys].
    """
    if query.device.type == "cpu":
        kernel = _aten._scaled_dot_product_flash_attention_for_cpu
        return Attention(*kernel(query, key, value, 0.0, causal, attn_mask=mask, scale=scale))
    if query.device.type == "cuda" and mask is None:
        if query.dtype in (torch.bfloat16, torch.float16):
            kernel, between = _aten._scaled_dot_product_flash_attention, ()
        else:
            kernel, between = _aten._scaled_dot_product_efficient_attention, (None, True)
        out, lse, *_ = kernel(query, key, value, *between, 0.0, causal, scale=scale)
        return Attention(out, lse[..., : query.shape[2]])
    return _attend_with_matmul(query, key, value, scale, causal, mask)


def _attend_with_matmul(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    causal: bool,
    mask: torch.Tensor | None,
) -> Attention:
    scores = (query * scale) @ key.transpose(-1, -2)
    if causal:
        mask = torch.full_like(scores[0, 0], float("-inf")).triu(1)
    scores = (scores if mask is None else scores + mask).float()
    lse = torch.logsumexp(scores, dim=-1)
    return Attention((scores - lse[..., None]).exp().to(value.dtype) @ value, lse)


KNOWN_LAYERS = (
    "LlamaDecoderLayer",
    "MistralDecoderLayer",
    "Qwen2DecoderLayer",
    "Qwen3DecoderLayer",
    "Phi3DecoderLayer",
)

PrefixCache = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of a prefix in every layer, [key heads, tokens, width] each."""
Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Queries, keys and values of tokens, [tokens, heads, width] each."""
Angles = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines of the rotary embedding, [tokens, 1, rotated width] each."""


def reason_against_layers(decoder: Decoder, window: int | None) -> str | None:
    """Return why a model's layers cannot be run one by one here, or None if they can.

    `window` is the most tokens in a sequence, or None if that is not known.
    """
    if len(set((getattr(decoder.model, "hf_device_map", None) or {}).values())) > 1:
        return "it lies on several devices"
    layers = getattr(decoder.body, "layers", None)
    if not layers or any(type(layer).__name__ not in KNOWN_LAYERS for layer in layers):
        return "its layers are of another kind"
    sliding = getattr(decoder.config, "sliding_window", None)
    if sliding and (window is None or window > sliding):
        return "its attention slides"
    return None


class TargetAttention(NamedTuple):
    """Queries, [queries, heads, width], and their attention to the tokens of their own target.

    `out` and `lse` are those of `Attention`, but [queries, heads, ...].
    """

    query: torch.Tensor
    out: torch.Tensor
    lse: torch.Tensor


@dataclass(frozen=True)
class PreparedBatch:
    """A batch with everything that does not depend on its prefixes.

    Attributes:
        hidden: Embeddings of the targets, [tokens, model width].
        heads: Queries, keys and values of the first layer, before rotation.
    """

    targets: PackedTargets
    hidden: torch.Tensor
    heads: Heads

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors."""
        parts = chain(vars(self.targets).values(), self.heads, [self.hidden])
        return sum(part.nbytes for part in parts if isinstance(part, torch.Tensor))


class LayerPath:
    """Runs the layers of the families in `KNOWN_LAYERS` over packed targets."""

    name = "layers"

    def __init__(self, decoder: Decoder) -> None:
        """Take the layers of a model for which `reason_against_layers` returns None."""
        self.decoder, self.body = decoder, decoder.body
        self.layers: list[Any] = list(self.body.layers)  # pyright: ignore
        attention = self.layers[0].self_attn
        self.width, self.heads = int(attention.head_dim), int(decoder.config.num_attention_heads)
        self.groups, self.scale = int(attention.num_key_value_groups), float(attention.scaling)

    def prepare(self, batch: Batch) -> PreparedBatch:
        """Pack a batch, and compute what does not depend on its prefixes."""
        targets = pack(batch, self.decoder.device, self.decoder.model.dtype)
        hidden: torch.Tensor = self.body.embed_tokens(targets.ids)  # pyright: ignore
        queries = targets.query_tokens if len(self.layers) == 1 else None
        return PreparedBatch(targets, hidden, self._heads(self.layers[0], hidden, queries))

    def prefill(self, ids: torch.Tensor) -> PrefixCache:
        """Compute the keys and values of a prefix in every layer; `ids` int64 [tokens]."""
        hidden: torch.Tensor = self.body.embed_tokens(ids)  # pyright: ignore
        angles = self._angles(torch.arange(len(ids), device=ids.device), hidden)
        cache: PrefixCache = []
        for layer in self.layers:
            query, key, value = self._heads(layer, hidden)
            heads = (_rotate(query, angles), _rotate(key, angles), value)
            query, key, value = (part.transpose(0, 1).contiguous() for part in heads)
            cache.append((key, value))
            # Nothing reads the output of the last layer.
            if len(cache) < len(self.layers):
                keys = (self._repeat_heads(part)[None] for part in (key, value))
                part = attend(query[None], *keys, scale=self.scale, causal=True)
                hidden = _finish_layer(layer, hidden, part.out[0].transpose(0, 1))
        return cache

    def logprobs(
        self, batch: PreparedBatch, prefixes: Sequence[PrefixCache | None]
    ) -> torch.Tensor:
        """Return log p of every answer token, float32 [answers]; each job has a prefix or None."""
        targets, hidden = batch.targets, batch.hidden
        before = [prefixes[owner] for owner in targets.owners]
        # A target's positions begin where its prefix ends.
        shifts = torch.tensor([prefix[0][0].shape[1] if prefix else 0 for prefix in before])
        shift = shifts.repeat_interleave(torch.tensor(targets.segments).diff()).to(hidden.device)
        angles = self._angles(targets.steps + shift, hidden)
        for place, layer in enumerate(self.layers):
            last = place == len(self.layers) - 1
            queries = targets.query_tokens if last else None
            heads = self._heads(layer, hidden, queries) if place else batch.heads
            own = self._attend_targets(heads, angles, targets, answers_only=last)
            keys = [prefix[place] if prefix else None for prefix in before]
            bounds = targets.answer_segments if last else targets.segments
            attended = self._attend_prefixes(own, keys, bounds)
            hidden = _finish_layer(layer, hidden if queries is None else hidden[queries], attended)
        return self.decoder.logprobs(self.body.norm(hidden), targets.answers)  # pyright: ignore

    def _angles(self, positions: torch.Tensor, like: torch.Tensor) -> Angles:
        """Return cosines and sines of positions; the lower half of the sines is negated."""
        cos, sin = self.body.rotary_emb(like[None], position_ids=positions[None])  # pyright: ignore
        low, high = sin[0].chunk(2, dim=-1)
        return cos[0][:, None], torch.cat([-low, high], dim=-1)[:, None]

    def _heads(
        self, layer: Any, hidden: torch.Tensor, query_tokens: torch.Tensor | None = None
    ) -> Heads:
        """Compute queries, keys and values of tokens, [tokens, heads, width], before rotation.

        With `query_tokens` only those tokens get queries.
        """
        attention, normed = layer.self_attn, layer.input_layernorm(hidden)
        if hasattr(attention, "qkv_proj"):
            inner = self.heads * self.width
            sizes = (inner, inner // self.groups, inner // self.groups)
            query, key, value = attention.qkv_proj(normed).split(sizes, dim=-1)
            query = query if query_tokens is None else query[query_tokens]
        else:
            query = attention.q_proj(normed if query_tokens is None else normed[query_tokens])
            key, value = attention.k_proj(normed), attention.v_proj(normed)
        query, key, value = (part.unflatten(-1, (-1, self.width)) for part in (query, key, value))
        if hasattr(attention, "q_norm"):
            query, key = attention.q_norm(query), attention.k_norm(key)
        return query, key, value

    def _attend_targets(
        self, heads: Heads, angles: Angles, targets: PackedTargets, *, answers_only: bool
    ) -> TargetAttention:
        """Compute each target's attention to itself; with `answers_only` of query tokens alone."""
        cos, sin = angles
        cells, back, mask = targets.spread, targets.gather, None
        if answers_only:
            cells, back, mask = targets.answer_spread, targets.answer_gather, targets.mask
            cos, sin = cos[targets.query_tokens], sin[targets.query_tokens]
        rotated = _rotate(heads[0], (cos, sin))
        # From packed tokens to rows: [tokens, heads, width] -> [rows, heads, longest, width].
        query, key, value = (
            part.index_select(0, places).unflatten(0, (targets.rows, -1)).transpose(1, 2)
            for part, places in (
                (rotated, cells),
                (_rotate(heads[1], angles), targets.spread),
                (heads[2], targets.spread),
            )
        )
        keys = self._repeat_heads(key), self._repeat_heads(value)
        own = attend(query, *keys, scale=self.scale, causal=not answers_only, mask=mask)
        out, lse = (part.transpose(1, 2).flatten(0, 1).index_select(0, back) for part in own)
        return TargetAttention(rotated, out, lse)

    def _attend_prefixes(
        self,
        own: TargetAttention,
        keys: Sequence[tuple[torch.Tensor, torch.Tensor] | None],
        bounds: Sequence[int],
    ) -> torch.Tensor:
        """Merge attention to targets with attention to prefixes, [queries, heads, width].

        Each segment of queries, between two of the `bounds`, has the keys of its prefix, or None.
        The two parts are merged by their log-sum-exp, which is exact (arXiv 2402.05099). So all
        queries of a segment share one copy of the prefix in one matrix product.
        """
        parts = []
        for (start, stop), prefix in zip(pairwise(bounds), keys, strict=True):
            query, out, lse = (part[start:stop] for part in own)
            if prefix is not None:
                shared = (self._repeat_heads(part)[None] for part in prefix)
                first = attend(query.transpose(0, 1)[None], *shared, scale=self.scale)
                before, before_lse = (part[0].transpose(0, 1) for part in first)
                weight = torch.sigmoid(lse - before_lse)[..., None].to(out.dtype)
                out = torch.lerp(before, out, weight)
            parts.append(out)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _repeat_heads(self, part: torch.Tensor) -> torch.Tensor:
        """Repeat key heads [..., heads, tokens, width] once for each query head that reads them."""
        return part if self.groups == 1 else part.repeat_interleave(self.groups, dim=-3)


def _rotate(heads: torch.Tensor, angles: Angles) -> torch.Tensor:
    """Apply the rotary embedding to heads, [tokens, heads, width]; the rest of the width stays."""
    cos, sin = angles
    part, rest = heads[..., : cos.shape[-1]], heads[..., cos.shape[-1] :]
    low, high = part.chunk(2, dim=-1)
    rotated = torch.addcmul(part * cos, torch.cat([high, low], dim=-1), sin)
    return torch.cat([rotated, rest], dim=-1) if rest.shape[-1] else rotated


def _finish_layer(layer: Any, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """Compute the rest of a layer after attention, [tokens, model width]."""
    hidden = layer.self_attn.o_proj(attended.flatten(1)).add_(hidden)
    mlp, normed = layer.mlp, layer.post_attention_layernorm(hidden)
    # The gated MLP in place: one array less than the model's own code allocates.
    if hasattr(mlp, "gate_up_proj"):
        gate, up = mlp.gate_up_proj(normed).chunk(2, dim=-1)
        activated = mlp.activation_fn(gate).mul_(up)
    else:
        activated = mlp.act_fn(mlp.gate_proj(normed)).mul_(mlp.up_proj(normed))
    return mlp.down_proj(activated).add_(hidden)
