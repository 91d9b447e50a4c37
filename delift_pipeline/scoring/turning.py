"""Rotary positions: how far each token's place in its whole sequence turns its heads."""

from dataclasses import dataclass
from functools import cached_property

import torch

NARROW = 128
"""Numbers of a token's heads up to which its turn is written down for every head."""


@dataclass(frozen=True)
class Angles:
    """Cosines and sines of positions.

    Attributes:
        cos: [positions, turned width].
        sin: The same; the lower half of a head turns by minus the sine, and has its sign here.
        copies: Heads that a position is written down for in `wide`.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    copies: int = 1

    @classmethod
    def of(cls, cos: torch.Tensor, sin: torch.Tensor, heads: int) -> "Angles":
        """Take cosines and sines as a model has them, for some heads."""
        low, high = sin.chunk(2, dim=-1)
        copies = heads if heads * cos.shape[-1] <= NARROW else 1
        return cls(cos.contiguous(), torch.cat([-low, high], dim=-1), copies)

    def __len__(self) -> int:
        return len(self.cos)

    @cached_property
    def wide(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Both, [positions, heads or 1, turned width]."""
        cos, sin = (part[:, None].repeat(1, self.copies, 1) for part in (self.cos, self.sin))
        return cos, sin


@dataclass(frozen=True)
class Turn:
    """The turns of some tokens.

    Attributes:
        angles: Of all positions.
        places: Each token's position, int64 [tokens].
    """

    angles: Angles
    places: torch.Tensor

    def at(self, tokens: torch.Tensor | None) -> "Turn":
        """The turns of some of the tokens; of all for None."""
        return self if tokens is None else Turn(self.angles, self.places[tokens])

    @cached_property
    def _rows(self) -> tuple[torch.Tensor, ...]:
        return tuple(part.index_select(0, self.places) for part in self.angles.wide)

    def __call__(self, heads: torch.Tensor) -> torch.Tensor:
        """Heads [tokens, heads, width] turned, in as much of their width as positions turn."""
        cos, sin = self._rows
        turned, many = cos.shape[-1], min(cos.shape[1], heads.shape[1])
        part, rest = heads[..., :turned], heads[..., turned:]
        low, high = part.chunk(2, dim=-1)
        other = torch.cat([high, low], dim=-1)
        found = torch.addcmul(part * cos[:, :many], other, sin[:, :many])
        return found if not rest.shape[-1] else torch.cat([found, rest], dim=-1)
