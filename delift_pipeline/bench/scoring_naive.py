"""What others do: every pair whole, some at a time, in file order, padded."""

from collections.abc import Iterator

import numpy as np
import torch

from delift_pipeline.prompts.encoded import EncodedRecords
from delift_pipeline.scoring.engine import Job

BATCH = 16


@torch.inference_mode()
def naive_padded(
    model: torch.nn.Module,
    records: EncodedRecords,
    jobs: list[Job],
    *,
    full_logits: bool,
    batch: int = BATCH,
) -> np.ndarray:
    """Log-probabilities of all answers by padded batches over whole sequences, float32.

    Args:
        model: A causal language model of transformers, its default attention.
        records: The encoded records.
        jobs: The pairs.
        full_logits: Whether logits are made everywhere, or at answer positions only.
        batch: Pairs in a batch.
    """
    pairs = [(job.prefix, int(row)) for job in jobs for row in job.rows]
    chunks = (pairs[start : start + batch] for start in range(0, len(pairs), batch))
    found = [_chunk(model, records, chunk, full_logits) for chunk in chunks]
    return np.concatenate([part for chunk in found for part in chunk])


def _chunk(
    model: torch.nn.Module,
    records: EncodedRecords,
    pairs: list[tuple[np.ndarray, int]],
    full_logits: bool,
) -> Iterator[np.ndarray]:
    rows = [np.concatenate([p, records.prompt(r), records.answer(r)]) for p, r in pairs]
    width = max(map(len, rows))
    ids, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row)], mask[place, : len(row)] = row, 1
    device = next(model.parameters()).device
    inputs = {
        "input_ids": torch.from_numpy(ids).to(device),
        "attention_mask": torch.from_numpy(mask).to(device),
        "use_cache": False,
    }
    asked = model if full_logits else model.base_model
    output = asked(**inputs)  # pyright: ignore
    states = output.logits if full_logits else output.last_hidden_state
    for place, (row, (_, record)) in enumerate(zip(rows, pairs, strict=True)):
        count = int(records.answer_lengths[record])
        chosen = states[place, len(row) - count - 1 : len(row) - 1]
        logits = chosen if full_logits else model.lm_head(chosen)  # pyright: ignore
        true = torch.from_numpy(row[-count:].astype(np.int64)).to(device)
        logprobs = logits.float().log_softmax(-1).gather(1, true[:, None])
        yield logprobs[:, 0].cpu().numpy()
