"""A batch without its padding: what does not look at other tokens runs on real tokens only."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch

from delift_pipeline.scoring.batches import Batch

Segments = list[tuple[int, int]]


@dataclass(frozen=True)
class Seen:
    """How many keys each query sees, from the first on.

    Attributes:
        counts: int64 [patterns, queries]; a batch of queries repeats the patterns.
        keys: Keys there are.
    """

    counts: torch.Tensor
    keys: int

    @cached_property
    def hidden(self) -> torch.Tensor:
        """0, or -inf for a key that a query does not see, float32 [patterns, keys, queries]."""
        places = torch.arange(self.keys, device=self.counts.device)
        hidden = places[:, None] >= self.counts[:, None]
        return torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, float("-inf"))


@dataclass
class Packed:
    """Targets end to end, and how to lay them out in rows where tokens look at each other.

    Attributes:
        ids: Input ids, int64 [tokens].
        steps: Each token's place in its target, int64 [tokens].
        answers: The true answer tokens, int64 [answers].
        at: Tokens that predict an answer token, int64 [answers].
        rows: Targets.
        width: Tokens of the longest.
        full: Whether there is no padding: every cell is its own token.
        spread: Token of every cell [rows * width], padding repeats token 0.
        gather: Cell of every token [tokens].
        asked: Answer of every cell of [rows * most answers], padding repeats answer 0.
        asked_back: Cell of every answer in it [answers].
        seen: Tokens of its target that each answer's cell sees, [rows, most answers].
        owners: Prefix of each segment, its place among the prefixes of the batch's jobs.
        segments: First token of each owner's targets and the one after the last.
        asked_segments: The same of answers.
        row_segments: The same of rows.
        start: What the first layer makes of the batch, kept from one prefix to the next.
    """

    ids: torch.Tensor
    steps: torch.Tensor
    answers: torch.Tensor
    at: torch.Tensor
    rows: int
    width: int
    full: bool
    spread: torch.Tensor
    gather: torch.Tensor
    asked: torch.Tensor
    asked_back: torch.Tensor
    seen: Seen
    owners: list[int]
    segments: Segments
    asked_segments: Segments
    row_segments: Segments
    start: object | None = None

    def mask(self, dtype: torch.dtype) -> torch.Tensor:
        """0 or -inf, [rows, 1, most answers, width]: what each answer's cell sees."""
        return self.seen.hidden.transpose(1, 2)[:, None].to(dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of its index arrays and of the mask."""
        mask = 4 * self.seen.counts.numel() * self.width
        held = (self.ids, self.steps, self.answers, self.at, self.spread, self.gather)
        return mask + sum(array.nbytes for array in held)


def packed(batch: Batch, device: torch.device) -> Packed:
    """Take the padding out of a batch."""
    rows, width = batch.ids.shape
    cells = np.flatnonzero(np.arange(width) < batch.lengths[:, None])
    token_of = np.zeros(rows * width, dtype=np.int64)
    token_of[cells] = np.arange(len(cells))
    positions = batch.positions.cpu().numpy()
    line, column = np.divmod(positions, width)
    counts = np.bincount(line, minlength=rows)
    most = int(counts.max())
    back = line * most + np.arange(len(line)) - (np.cumsum(counts) - counts)[line]
    asked, seen = np.zeros(rows * most, dtype=np.int64), np.zeros(rows * most, dtype=np.int64)
    asked[back], seen[back] = np.arange(len(line)), column

    def put(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    owners, first = np.unique(batch.owners, return_index=True)
    return Packed(
        ids=batch.ids.reshape(-1)[torch.from_numpy(cells)].to(device),
        steps=put(cells % width),
        answers=batch.answers.to(device),
        at=put(token_of[positions]),
        rows=rows,
        width=width,
        full=len(cells) == rows * width,
        spread=put(token_of),
        gather=put(cells),
        asked=put(asked),
        asked_back=put(back),
        seen=Seen(put(seen + 1).view(rows, most), width),
        owners=owners.tolist(),
        segments=_segments(first, batch.lengths),
        asked_segments=_segments(first, counts),
        row_segments=_segments(first, np.ones(rows, dtype=np.int64)),
    )


def _segments(first: np.ndarray, sizes: np.ndarray) -> Segments:
    """Where the rows from each of `first` begin and end, counted in `sizes`."""
    ends = np.concatenate([[0], np.cumsum(sizes)])
    bounds = ends[[*first.tolist(), len(sizes)]].tolist()
    return list(pairwise(bounds))
