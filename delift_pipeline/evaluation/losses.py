"""Losses of answers, token by token, in batches of near lengths."""

from collections.abc import Sequence

import numpy as np
import torch

from delift_pipeline.progress import Progress
from delift_pipeline.training.batches import Example, answer_losses, collate


@torch.inference_mode()
def token_losses(
    model: torch.nn.Module,
    examples: Sequence[Example],
    batch_size: int,
    progress: Progress,
    title: str = "answer loss",
) -> list[np.ndarray]:
    """Negative log-probability of each answer token, nats, float64 `[answer tokens]` each.

    Args:
        model: A causal language model in evaluation mode.
        examples: Encoded records.
        batch_size: Examples in one forward pass; near lengths share one.
        progress: Where progress is shown.
        title: What progress calls it.

    Returns:
        The losses in the examples' order.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]))
    found: dict[int, np.ndarray] = {}
    with progress.track(title, len(examples), "records") as meter:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = collate([examples[i] for i in chosen]).to(device)
            losses = answer_losses(model, batch).double().cpu().numpy()
            ends = np.cumsum([len(examples[i].answer) for i in chosen])
            found |= dict(zip(chosen, np.split(losses, ends[:-1]), strict=True))
            meter.advance(len(chosen))
    return [found[i] for i in range(len(examples))]
