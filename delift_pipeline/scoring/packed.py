"""A batch without its padding: what does not look at other tokens runs on real tokens only."""

from dataclasses import dataclass

import numpy as np
import torch

from delift_pipeline.scoring.batches import Batch


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
        spread: Token of every cell [rows * width], padding repeats token 0; None without padding.
        gather: Cell of every token [tokens]; None without padding.
        asked: Answer of every cell of [rows * most answers], padding repeats answer 0.
        asked_back: Cell of every answer in it [answers].
        mask: 0 or -inf, float32 [rows, 1, most answers, width]: what each answer's cell sees.
        first: What the first layer makes of the batch, kept from one prefix to the next.
    """

    ids: torch.Tensor
    steps: torch.Tensor
    answers: torch.Tensor
    at: torch.Tensor
    rows: int
    width: int
    spread: torch.Tensor | None
    gather: torch.Tensor | None
    asked: torch.Tensor
    asked_back: torch.Tensor
    mask: torch.Tensor
    first: tuple[torch.Tensor, ...] | None = None


def packed(batch: Batch, device: torch.device, dtype: torch.dtype) -> Packed:
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
    hidden = np.arange(width) > seen.reshape(rows, 1, most, 1)
    full = len(cells) == rows * width

    def put(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    return Packed(
        ids=batch.ids.reshape(-1)[torch.from_numpy(cells)].to(device),
        steps=put(cells % width),
        answers=batch.answers.to(device),
        at=put(token_of[positions]),
        rows=rows,
        width=width,
        spread=None if full else put(token_of),
        gather=None if full else put(cells),
        asked=put(asked),
        asked_back=put(back),
        mask=torch.zeros(hidden.shape, device=device, dtype=dtype).masked_fill_(
            put(hidden), float("-inf")
        ),
    )
