"""A batch without its padding: what does not look at other tokens runs on real tokens only."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from delift_pipeline.scoring.batches import Batch

Segments = list[tuple[int, int]]


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
        seen: The last column that each answer's cell sees, int64 [rows, 1, most answers, 1].
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
    seen: torch.Tensor
    owners: list[int]
    segments: Segments
    asked_segments: Segments
    row_segments: Segments
    start: object | None = None

    def mask(self, dtype: torch.dtype) -> torch.Tensor:
        """0 or -inf, [rows, 1, most answers, width]: what each answer's cell sees."""
        hidden = torch.arange(self.width, device=self.ids.device) > self.seen
        return torch.zeros(hidden.shape, device=hidden.device, dtype=dtype).masked_fill_(
            hidden, float("-inf")
        )

    @property
    def nbytes(self) -> int:
        """Bytes of its index arrays."""
        held = (self.ids, self.steps, self.answers, self.at, self.spread, self.gather, self.seen)
        return sum(array.nbytes for array in held)


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
        seen=put(seen).view(rows, 1, most, 1),
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
