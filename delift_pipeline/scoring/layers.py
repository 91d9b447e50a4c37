"""The fast path: the layers of a rotary decoder one by one, with nothing computed that is not read.

Against a plain pass over prefix and target, all exact up to rounding:
- the prefix's keys and values are computed once and never copied for the rows (`mixing`);
- padding exists only where tokens look at each other (`packed`);
- what the first layer's projections make of a target does not depend on the prefix and is kept, and
  its attention to itself, which depends on the prefix's length alone;
- the last layer runs at the positions that predict an answer token; of a prefix it only makes keys
  and values.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from delift_pipeline.scoring import compiled
from delift_pipeline.scoring.attention import attend
from delift_pipeline.scoring.batches import Batch
from delift_pipeline.scoring.decoder import Decoder
from delift_pipeline.scoring.mixing import (
    Heads,
    JointMixing,
    Mixing,
    Own,
    SplitMixing,
    picked,
    repeated,
)
from delift_pipeline.scoring.packed import Packed, packed
from delift_pipeline.scoring.turning import Angles, Turn

SHORT = 32
"""Tokens up to which the attention kernel of a CPU takes most of its time to get going."""
KNOWN_LAYERS = (
    "LlamaDecoderLayer",
    "MistralDecoderLayer",
    "Qwen2DecoderLayer",
    "Qwen3DecoderLayer",
    "Phi3DecoderLayer",
)


@dataclass(frozen=True)
class PrefixKeys:
    """Keys and values of a prefix in every layer, [key heads, tokens, width] each."""

    layers: list[tuple[torch.Tensor, torch.Tensor]]

    @property
    def tokens(self) -> int:
        """Tokens of the prefix."""
        return self.layers[0][0].shape[1]


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


@dataclass
class Start:
    """What the first layer makes of a batch's targets, whatever stands before them.

    Attributes:
        hidden: Embeddings, [tokens, model width].
        heads: The first layer's, not rotated.
        own: Its own part after prefixes of some lengths, by the way of mixing.
        used: Whether a prefix has been scored with it.
    """

    hidden: torch.Tensor
    heads: Heads
    own: dict[tuple[Mixing, tuple[int, ...]], Own] = field(default_factory=dict)
    used: bool = False


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
        self.scale = float(attention.scaling)
        half = decoder.model.dtype == torch.bfloat16
        able = decoder.device.type == "cpu" and decoder.model.dtype in compiled.HELD
        joint = (JointMixing(None if half else SHORT),) if able else ()
        self.mixings: tuple[Mixing, ...] = (*joint, SplitMixing())
        self.kept_bytes = self._room = kept_bytes
        self._angles: Angles | None = None

    def prepare(self, batch: Batch) -> Packed:
        """A batch as this path reads it."""
        return packed(batch, self.decoder.device)

    def forget(self) -> None:
        """Nothing is kept of the batches any more."""
        self._room = self.kept_bytes

    def prefill(self, ids: torch.Tensor) -> PrefixKeys:
        """Keys and values of a prefix, ids int64 [tokens]."""
        hidden = self.body.embed_tokens(ids)  # pyright: ignore
        tokens = torch.arange(len(ids), device=ids.device)
        turn = Turn(self._up_to(len(ids), hidden), tokens)
        normed, found = compiled.normed(self.layers[0].input_layernorm, hidden), []
        for place, layer in enumerate(self.layers):
            own = self._projected(layer, normed)
            fewer = own.key.shape[1]
            key = compiled.laid_out(own.key, tokens, fewer, turn)
            value = compiled.laid_out(own.value, tokens, fewer)
            found.append((key, value))
            if place < len(self.layers) - 1:
                query = compiled.laid_out(own.query, tokens, self.heads, turn)[None]
                spread = [repeated(part, self.groups, 0)[None] for part in (key, value)]
                part = attend(query, *spread, scale=self.scale, causal=True)
                hidden, normed = self._after(place, hidden, part.out[0].transpose(0, 1))
        return PrefixKeys(found)

    def logprobs(self, batch: Packed, prefixes: Sequence[PrefixKeys | None]) -> torch.Tensor:
        """Log p of every answer token of a batch, float32 [answers].

        Args:
            batch: The targets.
            prefixes: Of the batch's jobs, by owner.
        """
        own_prefixes = [prefixes[owner] for owner in batch.owners]
        for mixing in self.mixings:
            if batch.width <= mixing.widest:
                found = self._logprobs(batch, own_prefixes, mixing)
                if found is not None:
                    return found
        raise AssertionError("the last way of mixing is always sound")

    def _logprobs(
        self, batch: Packed, prefixes: list[PrefixKeys | None], mixing: Mixing
    ) -> torch.Tensor | None:
        """As `logprobs`; None where this way of mixing cannot be believed."""
        start = self._start(batch)
        hidden, normed = start.hidden, None
        before = tuple(prefix.tokens if prefix else 0 for prefix in prefixes)
        turn = self._turn(batch, before, hidden)
        for place, layer in enumerate(self.layers):
            asked = place == len(self.layers) - 1
            at = batch.at if asked else None
            if normed is None:
                own = self._first_own(start, batch, before, turn, mixing, asked)
            else:
                heads = self._projected(layer, normed, at)
                own = mixing.own(heads, turn, batch, self.scale, asked=asked)
            keys = [prefix and prefix.layers[place] for prefix in prefixes]
            mixed = mixing.joined(own, keys, batch, self.scale, asked=asked)
            if not mixing.sound():
                return None
            hidden, normed = self._after(place, picked(hidden, at), mixed)
        assert normed is not None
        return self.decoder.logprobs(normed, batch.answers)

    def _start(self, batch: Packed) -> Start:
        """What the first layer makes of a batch, kept while there is room."""
        if isinstance(batch.start, Start):
            return batch.start
        hidden = self.body.embed_tokens(batch.ids)  # pyright: ignore
        heads = self._projected(
            self.layers[0], compiled.normed(self.layers[0].input_layernorm, hidden)
        )
        start = Start(hidden, heads)
        batch.start = start if self._fits(hidden, *heads) else None
        return start

    def _first_own(
        self,
        start: Start,
        batch: Packed,
        before: tuple[int, ...],
        turn: Turn,
        mixing: Mixing,
        asked: bool,
    ) -> Own:
        """The first layer's own part: the same after all prefixes of the same lengths."""
        key = (mixing, before)
        if key in start.own:
            return start.own[key]
        heads = start.heads
        heads = heads._replace(query=heads.query[batch.at]) if asked else heads
        own = mixing.own(heads, turn, batch, self.scale, asked=asked)
        # From the second prefix on, so that every batch of the first finds room for its start.
        if start.used and batch.start is start and self._fits(*own[:3]):
            own = start.own[key] = own._replace(kept=True)
        start.used = True
        return own

    def _fits(self, *tensors: torch.Tensor) -> bool:
        """Whether there is room to keep tensors, which is then theirs."""
        size = sum(tensor.nbytes for tensor in tensors)
        fits = size <= self._room
        self._room -= size * fits
        return fits

    def _turn(self, batch: Packed, before: tuple[int, ...], like: torch.Tensor) -> Turn:
        """How far each token's place in its whole sequence turns it."""
        places = batch.steps + before[0]
        if len(before) > 1:
            sizes = torch.tensor([stop - start for start, stop in batch.segments])
            places = batch.steps + torch.tensor(before).repeat_interleave(sizes).to(places.device)
        return Turn(self._up_to(batch.width + max(before), like), places)

    def _up_to(self, tokens: int, like: torch.Tensor) -> Angles:
        """The angles of at least the first positions."""
        if self._angles is None or len(self._angles) < tokens:
            places = torch.arange(tokens, device=like.device)[None]
            cos, sin = self.body.rotary_emb(like[None], position_ids=places)  # pyright: ignore
            self._angles = Angles.of(cos[0], sin[0], self.heads)
        return self._angles

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
        query, key, value = (part.unflatten(-1, (-1, self.width)) for part in (query, key, value))
        if hasattr(attention, "q_norm"):
            query, key = (
                compiled.normed(attention.q_norm, query),
                compiled.normed(attention.k_norm, key),
            )
        return Heads(query, key, value)

    def _after(
        self, place: int, hidden: torch.Tensor, mixed: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What a layer does after attention, and the norm that follows, [tokens, model width]."""
        layer, following = self.layers[place], place + 1
        norm = (
            self.layers[following].input_layernorm
            if following < len(self.layers)
            else self.body.norm  # pyright: ignore
        )
        found = layer.self_attn.o_proj(mixed.flatten(1))
        normed = compiled.added_and_normed(layer.post_attention_layernorm, found, hidden)
        after = _fed(layer.mlp, normed)
        return after, compiled.added_and_normed(norm, after, found)


def _fed(mlp: Any, normed: torch.Tensor) -> torch.Tensor:
    """A gated feed-forward block, with one array less than the model's own makes."""
    if hasattr(mlp, "gate_up_proj"):
        gate, up = mlp.gate_up_proj(normed).chunk(2, dim=-1)
        return mlp.down_proj(mlp.activation_fn(gate).mul_(up))
    return mlp.down_proj(mlp.act_fn(mlp.gate_proj(normed)).mul_(mlp.up_proj(normed)))
