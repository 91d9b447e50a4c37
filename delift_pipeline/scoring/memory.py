"""How much is scored at a time, from how much memory it may take over the loaded model.

The sizes are those of the tensors that live at the same moment, counted by hand from the passes in
`layers` and `cache_path` and rounded up; the tests hold real peaks below them.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from delift_pipeline.errors import Fault, Refused

if TYPE_CHECKING:
    from delift_pipeline.scoring.decoder import Decoder

GIB = 1 << 30
LIMIT_CPU = 1.5
"""GiB over the loaded model where no limit is given."""
SHARE_OF_GPU = 0.8
"""Of the memory that is free on a GPU where no limit is given."""
BATCH_TOKENS_CPU = 2048
BATCH_TOKENS_NARROW = 4096
"""On a CPU for a model of which this many tokens still stay in its cache."""
NARROW_LAYER = 256
"""Widest array of such a model's layers, in numbers a token."""
BATCH_TOKENS_GPU = 65536
LARGEST_WINDOW = 2048
KEPT_BYTES = 256 << 20
"""Most memory for what is kept of the targets from one prefix to the next."""
RESERVE = 64 << 20
"""For buffers inside the libraries."""
SAFETY = 1.1
# A chunk of logits holds this many numbers: few enough for a CPU's cache, many enough for a GPU.
_LOGITS_CPU, _LOGITS_GPU = 1 << 21, 1 << 26
_LEAST_LOGIT_ROWS = 128
_SCRATCH = 16 << 20


@dataclass(frozen=True)
class MemoryPlan:
    """What a limit allows.

    Attributes:
        limit: Bytes over the loaded model.
        tokens: Most target tokens, padding included, in one batch.
        keys: Most tokens, a prefix counted once for each target, in one batch; None for no bound.
        reach: Longest prefix that is planned for.
        logit_rows: Answer tokens whose logits are made at a time.
        kept: Bytes for what is kept of the targets.
    """

    limit: int
    tokens: int
    keys: int | None
    reach: int
    logit_rows: int
    kept: int


@dataclass(frozen=True)
class _Shape:
    """A model's sizes, in numbers."""

    hidden: int
    inner: int
    kept: int
    middle: int
    layers: int
    heads: int
    vocabulary: int
    itemsize: int

    @classmethod
    def of(cls, decoder: "Decoder") -> "_Shape":
        config: Any = decoder.config
        # Models without attention have no heads; their cache is found not to be shareable later.
        hidden, heads = int(config.hidden_size), getattr(config, "num_attention_heads", None) or 1
        width = getattr(config, "head_dim", None) or hidden // heads
        middle = [getattr(config, name, None) for name in ("intermediate_size", "ffn_dim")]
        return cls(
            hidden=hidden,
            inner=heads * width,
            kept=(getattr(config, "num_key_value_heads", None) or heads) * width,
            middle=next((size for size in middle if size), 4 * hidden),
            layers=int(config.num_hidden_layers),
            heads=heads,
            vocabulary=int(decoder.head.weight.shape[0]),  # pyright: ignore
            itemsize=decoder.model.dtype.itemsize,
        )

    def token(self, window: int, *, shared: bool, gpu: bool) -> float:
        """Bytes of one target token in the layer that takes most."""
        attention = 9 * self.inner + 6 * self.kept
        size = self.itemsize * (6 * self.hidden + max(attention, 4 * self.middle))
        size += 12 * self.hidden
        if not shared:
            # The mask over prefix and target, as booleans and as numbers.
            return size + (1 + self.itemsize) * window
        # Scores that are written down: by `JointMixing`, or in the last layer without a kernel.
        return size + (12 * self.heads * (window // 2) if gpu else 140 * self.heads)

    def tokens_on_cpu(self) -> int:
        """Target tokens that a CPU scores fastest together."""
        narrow = max(self.hidden, self.inner, self.middle) <= NARROW_LAYER
        return BATCH_TOKENS_NARROW if narrow else BATCH_TOKENS_CPU

    def key(self) -> float:
        """Bytes of one token of a prefix that is copied for a target, in all layers."""
        return 2 * self.itemsize * (self.layers * self.kept + 2 * self.inner)

    def prefix(self, tokens: int, in_flight: int) -> float:
        """Bytes of prefixes that are kept once, and of the one that is read."""
        return 2 * self.itemsize * tokens * (in_flight * self.layers * self.kept + 2 * self.inner)

    def logits(self, rows: int) -> float:
        """Bytes of a chunk of logits: as they come, in float32, and their logarithms."""
        return rows * self.vocabulary * (self.itemsize + 8.0)


def plan_memory(
    decoder: "Decoder",
    *,
    shared: bool,
    window: int | None = None,
    batch_tokens: int | None = None,
    memory_limit: float | None = None,
    in_flight: int = 1,
) -> MemoryPlan:
    """What to score at a time.

    Args:
        decoder: The model.
        shared: Whether a prefix is kept once for all targets, or copied for each.
        window: Most tokens in a sequence; None for the model's own limit, at most 2,048.
        batch_tokens: Most target tokens in a batch whatever the memory; None for the device's own.
        memory_limit: GiB over the loaded model. None takes 1.5 on a CPU, four fifths of what is
            free on a GPU, and more where a single pair needs it.
        in_flight: Prefixes that are kept at a time.

    Raises:
        Refused: not even one pair fits the limit that was given.
    """
    shape, gpu = _Shape.of(decoder), decoder.device.type == "cuda"
    own = int(getattr(decoder.config, "max_position_embeddings", None) or LARGEST_WINDOW)
    window = window or min(own, LARGEST_WINDOW)
    limit = int(GIB * memory_limit) if memory_limit else _own_limit(decoder.device)
    reach, longest = window // 2, window - window // 2
    rows = max((_LOGITS_GPU if gpu else _LOGITS_CPU) // shape.vocabulary, _LEAST_LOGIT_ROWS)
    rows = max(min(rows, int(limit / 4 / shape.logits(1))), 1)
    kept = min(KEPT_BYTES, limit // 6)
    each = SAFETY * shape.token(window, shared=shared, gpu=gpu)
    fixed = RESERVE + _SCRATCH + kept + shape.logits(rows)
    fixed += shape.prefix(reach, in_flight if shared else 1)
    one = longest * each + (0 if shared else window * shape.key())
    if memory_limit and fixed + one > limit:
        raise Refused(_too_small(memory_limit, (fixed + one) / GIB, window))
    room = max(limit - fixed, one)
    wanted = batch_tokens or (BATCH_TOKENS_GPU if gpu else shape.tokens_on_cpu())
    if shared:
        return MemoryPlan(limit, min(wanted, int(room / each)), None, reach, rows, kept)
    # Half for the targets and half for the copies of their prefix, what one leaves to the other.
    tokens = max(min(wanted, int(room / 2 / each)), 1)
    keys = max(int((room - tokens * each) / shape.key()), window)
    return MemoryPlan(limit, tokens, keys, reach, rows, kept)


def keep_freed_pages() -> None:
    """Make the C library keep what a pass has freed for the next pass.

    It gives large blocks back at once, and every fresh page costs a fault: a quarter of the time of
    a tiny model. Once it has freed a large block of up to 32 MiB, glibc keeps blocks of that size
    (mallopt(3), M_MMAP_THRESHOLD). Another library takes no notice.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


def _own_limit(device: torch.device) -> int:
    if device.type == "cuda":
        return int(SHARE_OF_GPU * torch.cuda.mem_get_info(device)[0])
    return int(LIMIT_CPU * GIB)


def _too_small(limit: float, needed: float, window: int) -> Fault:
    return Fault(
        f"{limit:g} GiB is less than the {needed:.2f} GiB that one pair of {window:,} tokens can "
        "take; raise it, or take a smaller window",
        field="memory_limit",
    )
