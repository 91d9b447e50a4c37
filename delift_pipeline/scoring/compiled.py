"""Steps of a layer that take several passes, and as many arrays, as operations on arrays.

On a CPU with few threads they are compiled loops on one of them (`loops`), which take a third to a
half of the time; elsewhere torch's operations, which are shared out. numba is imported by the first
loop.
"""

from typing import Any

import numpy as np
import torch

from delift_pipeline.scoring.turning import Turn

THREADS = 2
"""Threads up to which a loop on one of them is as fast as operations shared out to all."""


HELD = (torch.float32, torch.bfloat16)
"""Numbers that the loops can read; exponentials of attention scores keep their digits in both."""


def by_loops(tensor: torch.Tensor) -> bool:
    """Whether compiled loops do the work on such a tensor."""
    return (
        tensor.dtype in HELD and tensor.device.type == "cpu" and torch.get_num_threads() <= THREADS
    )


def normed(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    """A model's root-mean-square norm of [..., width], rounded where its own module rounds."""
    if not by_loops(hidden):
        return norm(hidden)
    from delift_pipeline.scoring.loops.rows import norm_rows

    rows = hidden.reshape(-1, hidden.shape[-1])
    out = torch.empty_like(rows)
    epsilon = np.float32(norm.variance_epsilon)
    norm_rows(_array(rows), _array(norm.weight), epsilon, _array(out))
    return out.view(hidden.shape)


def added_and_normed(norm: Any, hidden: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
    """Add `more` to `hidden` in place, both [rows, width], and return the norm of the sum."""
    if not by_loops(hidden):
        return norm(hidden.add_(more))
    from delift_pipeline.scoring.loops.rows import add_and_norm_rows

    out = torch.empty_like(hidden)
    epsilon = np.float32(norm.variance_epsilon)
    arrays = (_array(hidden), _array(more), _array(norm.weight))
    add_and_norm_rows(*arrays, epsilon, _array(out))
    return out


def laid_out(
    heads: torch.Tensor, spread: torch.Tensor, many: int, turn: Turn | None = None
) -> torch.Tensor:
    """Heads by head and cell, [many, cells, width].

    Args:
        heads: [tokens, heads, width]; each serves `many` / heads of those returned.
        spread: The token of each cell, int64 [cells].
        many: Heads that are returned.
        turn: The tokens' positions; None leaves the heads as they are.
    """
    if not by_loops(heads):
        found = (turn(heads) if turn else heads).index_select(0, spread).transpose(0, 1)
        times = many // heads.shape[1]
        return found.repeat_interleave(times, dim=0) if times > 1 else found.contiguous()
    from delift_pipeline.scoring.loops.heads import lay_out, turn_out

    out = heads.new_empty(many, len(spread), heads.shape[2])
    first = (_array(heads.contiguous()), spread.numpy())
    if turn is None:
        lay_out(*first, _array(out))
    else:
        angles = (turn.places.numpy(), _array(turn.angles.cos), _array(turn.angles.sin))
        turn_out(*first, *angles, _array(out))
    return out


def taken_back(values: torch.Tensor, sums: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """Values [heads, cells, width] over sums [heads, cells], by token: [tokens, heads, width].

    Args:
        values: Numerators.
        sums: What they are divided by, float32.
        cells: The cell of each token, int64 [tokens].
    """
    if not by_loops(values):
        return (values / sums[..., None]).to(values.dtype).transpose(0, 1).index_select(0, cells)
    from delift_pipeline.scoring.loops.heads import take_back

    out = values.new_empty(len(cells), values.shape[0], values.shape[2])
    take_back(_array(values), sums.numpy(), cells.numpy(), _array(out))
    return out


def powers_and_sums(
    scores: torch.Tensor, factor: float, seen: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """2^(factor score) in place, 0 for keys not seen, and its sums, float32 [..., queries].

    Only by loops.

    Args:
        scores: bfloat16 [..., queries, keys].
        factor: Factor of the scores.
        seen: How many keys each query sees, int64; as often over as there are queries.
    """
    from delift_pipeline.scoring.loops.powers import powers

    sums = scores.new_empty(scores.shape[:-1], dtype=torch.float32)
    rows = _array(scores.view(-1, scores.shape[-1]))
    powers(rows, np.float32(factor), seen.flatten().numpy(), sums.view(-1).numpy())
    return scores, sums


def _array(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's memory; numpy has no bfloat16, so that is handed over as its bits."""
    tensor = tensor.detach()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
