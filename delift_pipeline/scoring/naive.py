"""The oracle: one plain forward pass a pair, full logits, nothing shared."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from delift_pipeline.prompts.encoded import EncodedRecords
from delift_pipeline.scoring.engine import Job, TokenScores

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class NaiveEngine:
    """Scores each pair by itself; slow, and right for every causal language model."""

    name = "naive"

    def __init__(self, model: "PreTrainedModel", why: str | None = None) -> None:
        """Wrap a model; `why` says why no faster engine could be taken."""
        self.model, self.why = model, why

    @property
    def settings(self) -> dict[str, Any]:
        """The engine's name, and why it was taken where it was not asked for."""
        return {"engine": self.name, **({"why_not_shared": self.why} if self.why else {})}

    def score(self, records: EncodedRecords, jobs: Sequence[Job]) -> list[TokenScores]:
        """Score jobs, pair by pair."""
        return [self._job(records, job) for job in jobs]

    def _job(self, records: EncodedRecords, job: Job) -> TokenScores:
        scored = [
            answer_logprobs(self.model, job.prefix, records.prompt(row), records.answer(row))
            for row in job.rows.tolist()
        ]
        logprobs = np.concatenate(scored) if scored else np.empty(0, dtype=np.float32)
        return TokenScores(logprobs, records.answer_lengths[job.rows])


@torch.inference_mode()
def answer_logprobs(
    model: "PreTrainedModel", prefix: np.ndarray, prompt: np.ndarray, answer: np.ndarray
) -> np.ndarray:
    """Log-probability of each answer token after prefix and prompt, float32 [answer tokens]."""
    ids = torch.from_numpy(np.concatenate([prefix, prompt, answer]).astype(np.int64))
    device = model.get_input_embeddings().weight.device  # pyright: ignore
    logits = model(input_ids=ids[None].to(device), use_cache=False).logits[0].float()  # pyright: ignore
    first = len(prefix) + len(prompt)
    predicted = torch.log_softmax(logits[first - 1 : -1], dim=-1).cpu()
    return predicted.gather(1, ids[first:, None])[:, 0].numpy()
