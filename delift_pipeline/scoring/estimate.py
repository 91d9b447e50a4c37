"""How much memory a model takes to score with, by arithmetic; free of torch.

    weights      = parameters x bytes a weight
    cache        = 2 x layers x key-value heads x head size x bytes a number x tokens
    activations  = batch tokens x (8 x hidden + 3 x intermediate) x bytes a number
    logits       = answer tokens at once x vocabulary x (bytes a number + 2 x 4)

each divided by the GPUs of a tensor parallel. Tokens are those of a prefix (half the window) and of
a batch. A layer holds its input, normed input, queries, keys, values, attention output, residual
and their sum (8 x hidden, fewer with grouped keys) and three arrays of the feed-forward part;
log-softmax makes a float32 copy of the logits and one of the result. In 4 bits (nf4, doubly
quantised) a weight takes 4.127 bits (Dettmers et al., arXiv 2305.14314), in 8 bits a byte;
embeddings and head stay as they are.
"""

import json
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
NF4_BYTES = 4.127 / 8
INT8_BYTES = 1.0
BATCH_TOKENS = 8192
LOGITS_ROWS = 512
WINDOW = 2048


@dataclass(frozen=True)
class ModelShape:
    """The numbers a model's memory follows from.

    Attributes:
        parameters: All weights, a tied head counted once.
        layers: Decoder layers.
        hidden: Width of the residual stream.
        intermediate: Width of the feed-forward part.
        kv_heads: Heads of keys and values.
        head_size: Numbers a head.
        vocabulary: Rows of the embedding.
        tied: Whether embedding and head are one matrix.
    """

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool = False

    @property
    def unquantised(self) -> int:
        """Parameters that 4- and 8-bit loading leaves as they are: embedding and head."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each GPU."""

    weights: float
    cache: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """All of it, in bytes."""
        return self.weights + self.cache + self.activations + self.logits


def estimate(
    shape: ModelShape,
    dtype: str = "float32",
    load_in: str | None = None,
    *,
    window: int = WINDOW,
    batch_tokens: int = BATCH_TOKENS,
    gpus: int = 1,
) -> MemoryEstimate:
    """Memory that scoring takes on each GPU, without what the CUDA context takes itself.

    Args:
        shape: The model's.
        dtype: Number format of activations, and of weights unless they are quantised.
        load_in: `4bit`, `8bit` or None.
        window: Most tokens in a sequence; the prefix takes half.
        batch_tokens: Target tokens in a batch.
        gpus: GPUs that share the model by tensor parallel.
    """
    size = BYTES[dtype]
    tokens = window // 2 + batch_tokens
    cache = 2 * shape.layers * shape.kv_heads * shape.head_size * size * tokens
    activations = batch_tokens * (8 * shape.hidden + 3 * shape.intermediate) * size
    logits = LOGITS_ROWS * shape.vocabulary * (size + 2 * 4)
    weights = _weights(shape, dtype, load_in)
    return MemoryEstimate(weights / gpus, cache / gpus, activations / gpus, logits / gpus)


def _weights(shape: ModelShape, dtype: str, load_in: str | None) -> float:
    size = BYTES[dtype]
    if load_in is None:
        return shape.parameters * size
    linear = {"4bit": NF4_BYTES, "8bit": INT8_BYTES}[load_in]
    kept = min(shape.unquantised, shape.parameters)
    return kept * size + (shape.parameters - kept) * linear


def stored_parameters(files: Iterable[Path]) -> int:
    """Numbers in safetensors files, read from their headers alone."""
    total = 0
    for path in files:
        with path.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(length))
        total += sum(
            math.prod(one["shape"]) for name, one in header.items() if name != "__metadata__"
        )
    return total
