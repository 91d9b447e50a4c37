"""Losses and answers in batches equal those made one by one, whatever the model's positions."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
)

from delift_pipeline.core.progress import SilentProgress
from delift_pipeline.evaluation.engines import Answer, TransformersEvaluation
from delift_pipeline.evaluation.options import EvaluationOptions
from delift_pipeline.training.batches import Example

VOCABULARY, END = 40, 3
IN_FOURS = EvaluationOptions(batch_size=4)
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GATED: dict[str, Any] = SIZES | {
    "intermediate_size": 48,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**GATED),
    "mistral": lambda: MistralConfig(**GATED, sliding_window=8),
    "qwen2": lambda: Qwen2Config(**GATED),
    "phi3": lambda: Phi3Config(**GATED, pad_token_id=0),
    "opt": lambda: OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32, init_std=0.3),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3
    ),
}


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[request.param]()).eval()


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    draw = np.random.default_rng(0)

    def tokens(length: int) -> np.ndarray:
        return draw.integers(4, VOCABULARY, length).astype(np.int32)

    return [Example(str(i), tokens(3 + 2 * i), tokens(1 + i % 4)) for i in range(9)]


def test_losses(model: torch.nn.Module, examples: list[Example]) -> None:
    found = TransformersEvaluation(model, IN_FOURS).losses(examples, SilentProgress())
    for losses, example in zip(found, examples, strict=True):
        ids = torch.from_numpy(np.concatenate([example.prompt, example.answer])).long()
        with torch.no_grad():
            logits = cast(Any, model)(input_ids=ids[None]).logits[0, :-1].double()
        terms = functional.cross_entropy(logits, ids[1:], reduction="none")
        np.testing.assert_allclose(losses, terms[len(example.prompt) - 1 :], atol=1e-5)


def test_answers(model: torch.nn.Module, examples: list[Example]) -> None:
    prompts = [example.prompt for example in examples]
    found = TransformersEvaluation(model, IN_FOURS).answers(prompts, [END], 12, SilentProgress())
    assert found == [one_by_one(model, prompt, 12) for prompt in prompts]


def one_by_one(model: torch.nn.Module, prompt: np.ndarray, longest: int) -> Answer:
    """The greedy answer by one whole forward pass a token."""
    tokens: list[int] = []
    for _ in range(longest):
        ids = torch.from_numpy(np.concatenate([prompt, tokens])).long()[None]
        with torch.no_grad():
            token = int(cast(Any, model)(input_ids=ids).logits[0, -1].argmax())
        if token == END:
            return Answer(tokens, finished=True)
        tokens.append(token)
    return Answer(tokens, finished=False)
