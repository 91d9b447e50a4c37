"""Evaluation by vLLM: losses from its prompt log-probabilities, answers from its sampler.

vLLM forms its own batches of whatever lengths. A greedy answer does not depend on them; a sampled
one has a random state of its own, so that it does not either.
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from delift_pipeline.evaluation.generate import Answer, until_stop
from delift_pipeline.evaluation.options import EvaluationOptions, Generation
from delift_pipeline.progress import Progress
from delift_pipeline.scoring.vllm_engine import VllmEngine
from delift_pipeline.training.batches import Example

T = TypeVar("T")
AT_ONCE = 256
"""Records handed to vLLM in one call, between two looks at the progress."""
SAMPLED: dict[Generation, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "paper": {"temperature": 0.2, "min_p": 0.1, "top_k": 0, "top_p": 1.0},
}
"""What each way of generating asks of vLLM."""


class VllmAnswers:
    """A model inside vLLM, with or without an adapter."""

    name = "vllm"

    def __init__(self, engine: VllmEngine, options: EvaluationOptions) -> None:
        self._engine, self._options = engine, options

    def losses(
        self, examples: Sequence[Example], progress: Progress, title: str = "answer loss"
    ) -> list[np.ndarray]:
        """Negative log-probability of each answer token, nats, float64 `[answer tokens]` each."""
        found: list[np.ndarray] = []
        with progress.track(title, len(examples), "records") as meter:
            for part in _parts(examples):
                ids = [np.concatenate([one.prompt, one.answer]).tolist() for one in part]
                logprobs = self._engine.answer_logprobs(ids, [len(one.answer) for one in part])
                found += [-one.astype(np.float64) for one in logprobs]
                meter.advance(len(part))
        return found

    def answers(
        self,
        prompts: Sequence[np.ndarray],
        stops: Sequence[int],
        max_new_tokens: int,
        progress: Progress,
    ) -> list[Answer]:
        """The continuation of each prompt up to a stop token, at most so many tokens."""
        # The model's own end-of-text tokens are set aside, as its sampling settings are.
        shared = {"max_tokens": max_new_tokens, "stop_token_ids": list(stops), "ignore_eos": True}
        how = shared | SAMPLED[self._options.generation]
        found: list[Answer] = []
        with progress.track("answer", len(prompts), "records") as meter:
            for part in _parts(prompts):
                first = len(found)
                samplings = [how | self._seed(first + place) for place in range(len(part))]
                tokens = self._engine.continuations([ids.tolist() for ids in part], samplings)
                found += [until_stop(one, stops) for one in tokens]
                meter.advance(len(part))
        return found

    def _seed(self, place: int) -> dict[str, int]:
        """A seed of its own for each sampled answer; none for greedy ones."""
        if self._options.generation == "greedy":
            return {}
        state = np.random.SeedSequence([self._options.seed, place]).generate_state(1)
        return {"seed": int(state[0])}


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), AT_ONCE):
        yield items[start : start + AT_ONCE]
