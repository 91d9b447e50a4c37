"""How much is scored at a time, from how much memory it may take over the loaded model.

The sizes are those of the tensors that live at the same moment, counted by hand from the passes in
`layers` and `decoder` and rounded up; the tests hold real peaks below them.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.scoring.estimate import GIB

if TYPE_CHECKING:
    from delift_pipeline.scoring.decoder import Decoder

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
RESERVE = 80 << 20
"""For buffers inside the libraries."""
SAFETY = 1.1
# A chunk of logits holds this many numbers: few enough for a CPU's cache, many enough for a GPU.
_LOGITS_CPU, _LOGITS_GPU = 1 << 21, 1 << 26
_LEAST_LOGIT_ROWS = 128


@dataclass(frozen=True)
class MemoryPlan:
    """What a limit allows.

    Attributes:
        limit: Bytes over the loaded model.
        tokens: Most target tokens, padding included, in one batch.
        keys: Most tokens, a prefix counted once for each target, in one batch; None for no bound.
        reach: Longest prefix that is planned for.
        logit_rows: Answer tokens whose logits are made at a time.
        spare: Bytes for batches that are kept.
    """

    limit: int
    tokens: int
    keys: int | None
    reach: int
    logit_rows: int
    spare: int


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
    config: Any = decoder.config
    gpu, itemsize = decoder.device.type == "cuda", decoder.model.dtype.itemsize
    # Models without attention have no heads; their cache is found not to be shareable later.
    hidden, heads = int(config.hidden_size), getattr(config, "num_attention_heads", None) or 1
    width = getattr(config, "head_dim", None) or hidden // heads
    kept, inner = (getattr(config, "num_key_value_heads", None) or heads) * width, heads * width
    sizes = [getattr(config, name, None) for name in ("intermediate_size", "ffn_dim")]
    middle = next((size for size in sizes if size), 4 * hidden)
    vocabulary = int(decoder.head.weight.shape[0])  # pyright: ignore
    own = int(getattr(config, "max_position_embeddings", None) or LARGEST_WINDOW)
    window = window or min(own, LARGEST_WINDOW)
    limit = int(GIB * memory_limit) if memory_limit else _own_limit(decoder.device)
    reach, longest = window // 2, window - window // 2

    # A chunk of logits: as they come, in float32, and their logarithms.
    logits = vocabulary * (itemsize + 8.0)
    rows = max((_LOGITS_GPU if gpu else _LOGITS_CPU) // vocabulary, _LEAST_LOGIT_ROWS)
    rows = max(min(rows, int(limit / 4 / logits)), 1)
    # One target token in the layer that takes most.
    token = itemsize * (6 * hidden + max(9 * inner + 6 * kept, 4 * middle)) + 12 * hidden
    if not shared:
        # The mask over prefix and target, as booleans and as numbers.
        token += (1 + itemsize) * window
    else:
        # Scores that are written down in the last layer: where no kernel takes a mask, or the mask.
        token += 12 * heads * (window // 2) if gpu else 140 * heads
    each = SAFETY * token
    # One token of a prefix in all layers, and in the layer that is read.
    key = 2 * itemsize * (config.num_hidden_layers * kept + 2 * inner)
    prefixes = key + 2 * itemsize * (in_flight - 1) * config.num_hidden_layers * kept
    fixed = RESERVE + rows * logits + reach * (prefixes if shared else key)
    one = longest * each + (0 if shared else window * key)
    if memory_limit and fixed + one > limit:
        raise Refused(
            Fault(
                f"{memory_limit:g} GiB is less than the {(fixed + one) / GIB:.2f} GiB that one "
                f"pair of {window:,} tokens can take; raise it, or take a smaller window",
                field="memory_limit",
            )
        )
    room = max(limit - fixed, one)
    narrow = max(hidden, inner, middle) <= NARROW_LAYER
    on_cpu = BATCH_TOKENS_NARROW if narrow else BATCH_TOKENS_CPU
    wanted = batch_tokens or (BATCH_TOKENS_GPU if gpu else on_cpu)
    if shared:
        tokens = min(wanted, int(room / each))
        return MemoryPlan(limit, tokens, None, reach, rows, max(int(room - tokens * each) // 2, 0))
    # Half for the targets and half for the copies of their prefix, what one leaves to the other.
    tokens = max(min(wanted, int(room / 2 / each)), 1)
    keys = max(int((room - tokens * each) / key), window)
    return MemoryPlan(limit, tokens, keys, reach, rows, spare=0)


def _own_limit(device: torch.device) -> int:
    if device.type == "cuda":
        return int(SHARE_OF_GPU * torch.cuda.mem_get_info(device)[0])
    return int(LIMIT_CPU * GIB)
