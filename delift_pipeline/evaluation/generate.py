"""Generated answers in batches of near lengths."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from transformers import GenerationConfig

from delift_pipeline.evaluation.options import Generation
from delift_pipeline.progress import Progress
from delift_pipeline.training.batches import unwrapped


@dataclass(frozen=True)
class Answer:
    """One generated answer.

    Attributes:
        tokens: Token ids in front of the end-of-text token.
        finished: Whether an end-of-text token ended it.
    """

    tokens: list[int]
    finished: bool


SAMPLED: dict[Generation, dict[str, Any]] = {
    "greedy": {"do_sample": False, "num_beams": 1},
    "paper": {"do_sample": True, "temperature": 0.2, "min_p": 0.1, "top_k": 0, "top_p": 1.0},
}
"""What each way of generating asks of `transformers`."""
PAPER_NEW_TOKENS = 150


def generated_answers(
    model: torch.nn.Module,
    prompts: Sequence[np.ndarray],
    stops: Sequence[int],
    max_new_tokens: int,
    batch_size: int,
    progress: Progress,
    generation: Generation = "greedy",
    seed: int = 0,
) -> list[Answer]:
    """The model's continuation of each prompt, token by token.

    Args:
        model: A causal language model, with or without adapters, in evaluation mode.
        prompts: Token ids of each prompt, int32.
        stops: Token ids that end an answer.
        max_new_tokens: Longest answer, its end-of-text token included.
        batch_size: Prompts in one batch; near lengths share one, padded on the left.
        progress: Where progress is shown.
        generation: `greedy` takes the most likely token; `paper` samples as the paper does.
        seed: Of sampled answers, which also depend on the batch size; the caller's random state
            is left as it was.

    Returns:
        The answers in the prompts' order.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: dict[int, Answer] = {}
    with (
        torch.random.fork_rng(),
        _only(unwrapped(model), stops, max_new_tokens, generation) as config,
        progress.track("answer", len(prompts), "records") as meter,
    ):
        torch.manual_seed(seed)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            found = _batch(model, [prompts[i] for i in chosen], config)
            answers |= {i: until_stop(row, stops) for i, row in zip(chosen, found, strict=True)}
            meter.advance(len(chosen))
    return [answers[i] for i in range(len(prompts))]


@torch.inference_mode()
def _batch(
    model: torch.nn.Module, prompts: Sequence[np.ndarray], config: GenerationConfig
) -> list[list[int]]:
    width = max(len(prompt) for prompt in prompts)
    ids = np.full((len(prompts), width), config.pad_token_id, dtype=np.int64)
    mask = np.zeros((len(prompts), width), dtype=np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    device = next(model.parameters()).device
    found = cast(Any, model).generate(
        input_ids=torch.from_numpy(ids).to(device),
        attention_mask=torch.from_numpy(mask).to(device),
        generation_config=config,
    )
    return found[:, width:].tolist()


def until_stop(tokens: list[int], stops: Sequence[int]) -> Answer:
    """The tokens in front of the first stop token."""
    for i, token in enumerate(tokens):
        if token in stops:
            return Answer(tokens[:i], finished=True)
    return Answer(tokens, finished=False)


@contextmanager
def _only(
    model: torch.nn.Module, stops: Sequence[int], max_new_tokens: int, generation: Generation
) -> Iterator[GenerationConfig]:
    """The configuration of a way of generating, with the model's own set aside.

    `generate` fills what a configuration leaves open from the model's own, and many models ship a
    repetition penalty or a temperature there.
    """
    # Padding goes in front of a prompt, masked, or behind an end: any token of the vocabulary does.
    asked = GenerationConfig(
        **SAMPLED[generation],
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stops) or None,
        pad_token_id=stops[0] if stops else 0,
    )
    owner = cast(Any, model)
    before, owner.generation_config = owner.generation_config, asked
    try:
        yield asked
    finally:
        owner.generation_config = before
