"""Seeded random projection of long vectors by signs that are never held.

    R[i, k] = +-1,   z = x R / sqrt(dims)

keeps inner products up to an error of about 1 / sqrt(dims) of the norms' product (Johnson and
Lindenstrauss; Rademacher signs: Achlioptas 2003). Sign (i, k) is a bit of a hash of seed, i and
k (splitmix64, Steele et al. 2014), so that every device, batch and restart sees the same matrix.
"""

import torch

from delift_pipeline.errors import Refused

BITS = 64
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
ROWS = 2048
"""Rows of signs made at a time: 64 MiB at 8,192 dimensions."""


def project(vectors: torch.Tensor, dims: int, seed: int) -> torch.Tensor:
    """Project rows to `dims` numbers.

    Args:
        vectors: float32 [n, size].
        dims: A multiple of 64.
        seed: Decides the signs.

    Returns:
        float32 [n, dims].

    Raises:
        Refused: `dims` is no multiple of 64.
    """
    table = _byte_signs(vectors.device)
    result = torch.zeros(len(vectors), dims, device=vectors.device)
    for start in range(0, vectors.shape[1], ROWS):
        part = vectors[:, start : start + ROWS]
        result += part @ _expanded(_words(start, part.shape[1], dims, seed, vectors.device), table)
    return result / dims**0.5


def signs(start: int, rows: int, dims: int, seed: int, device: torch.device) -> torch.Tensor:
    """Rows `start` to `start + rows` of the matrix of signs, float32 [rows, dims]."""
    return _expanded(_words(start, rows, dims, seed, device), _byte_signs(device))


def _words(start: int, rows: int, dims: int, seed: int, device: torch.device) -> torch.Tensor:
    """64 signs a number, int64 [rows, dims / 64]."""
    if dims < BITS or dims % BITS:
        raise Refused(f"dims is {dims:,}: projections have a multiple of {BITS} dimensions")
    words = dims // BITS
    first = torch.arange(start, start + rows, dtype=torch.int64, device=device)[:, None]
    counters = first * words + torch.arange(words, dtype=torch.int64, device=device)
    offset = _mixed(torch.tensor([seed], dtype=torch.int64, device=device))
    return _mixed(counters ^ offset)


def _mixed(numbers: torch.Tensor) -> torch.Tensor:
    """The finaliser of splitmix64, in integers that wrap around."""
    x = numbers + _signed(_GOLDEN)
    x = (x ^ _shifted(x, 30)) * _signed(_FIRST)
    x = (x ^ _shifted(x, 27)) * _signed(_SECOND)
    return x ^ _shifted(x, 31)


def _shifted(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """A shift to the right that fills with zeros, which torch has for no signed type."""
    return (numbers >> bits) & ((1 << (BITS - bits)) - 1)


def _signed(number: int) -> int:
    return number - (1 << BITS) if number >> (BITS - 1) else number


def _byte_signs(device: torch.device) -> torch.Tensor:
    """The eight signs of every byte, least bit first, float32 [256, 8]."""
    bytes_ = torch.arange(256, device=device)[:, None]
    return ((bytes_ >> torch.arange(8, device=device)) & 1).float() * 2 - 1


def _expanded(words: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    found = torch.nn.functional.embedding(words.view(torch.uint8).int(), table)
    return found.reshape(len(words), -1)
