"""How much memory a model's weights take, by arithmetic; free of torch.

In 4 bits (nf4, doubly quantised) a weight takes 4.127 bits (Dettmers et al., arXiv 2305.14314), in
8 bits a byte; embeddings and head stay as they are.
"""

import json
import math
import struct
from collections.abc import Iterable
from pathlib import Path

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
NF4_BYTES = 4.127 / 8
INT8_BYTES = 1.0


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
