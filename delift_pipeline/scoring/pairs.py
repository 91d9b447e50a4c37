"""Which (target, demonstration) pairs are to be scored, block by block."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

BlockName = Literal["self", "target", "existing", "replay"]


@dataclass(frozen=True)
class PairBlock:
    """One block of pairs, demonstration-major.

    `indptr` and `indices` are both None where every pair of the block is wanted; else
    demonstration j is scored on the targets `indices[indptr[j]:indptr[j + 1]]`, sorted
    (compressed sparse columns).

    Attributes:
        name: `self` (D x D), `target` (D_T x D), `existing` (D x D_E) or `replay` (D_E x D_E); rows
            are targets.
        targets: record_ids of the rows.
        demonstrations: record_ids of the columns.
        indptr: int64 [len(demonstrations) + 1] or None.
        indices: int32 [pairs] or None.
    """

    name: BlockName
    targets: tuple[str, ...]
    demonstrations: tuple[str, ...]
    indptr: np.ndarray | None = field(default=None, repr=False)
    indices: np.ndarray | None = field(default=None, repr=False)

    @property
    def dense(self) -> bool:
        """Whether every pair of the block is wanted."""
        return self.indptr is None

    @property
    def pairs(self) -> int:
        """How many pairs are wanted."""
        if self.indices is None:
            return len(self.targets) * len(self.demonstrations)
        return len(self.indices)

    def targets_of(self, demonstration: int) -> np.ndarray:
        """Row numbers (int32, sorted) wanted for column `demonstration`."""
        if self.indptr is None or self.indices is None:
            return np.arange(len(self.targets), dtype=np.int32)
        return self.indices[self.indptr[demonstration] : self.indptr[demonstration + 1]]


@dataclass(frozen=True)
class PairPlan:
    """The blocks of pairs a dataset version's arms need. A pair may stand in several blocks."""

    blocks: tuple[PairBlock, ...]

    @property
    def pairs(self) -> int:
        """How many pairs are wanted, counted block by block."""
        return sum(block.pairs for block in self.blocks)

    def block(self, name: str) -> PairBlock | None:
        """The block of that name, if the plan has it."""
        return next((block for block in self.blocks if block.name == name), None)

    def records(self) -> Iterator[str]:
        """Every record_id the plan mentions, once, in order of first mention."""
        seen = dict.fromkeys(
            record for block in self.blocks for record in (*block.targets, *block.demonstrations)
        )
        return iter(seen)
