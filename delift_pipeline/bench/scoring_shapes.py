"""The models and records that scoring is measured on, and the operations they cannot do without."""

from typing import Any

import numpy as np
import torch

from delift_pipeline.prompts.encoded import EncodedRecords
from delift_pipeline.scoring.engine import Job

_LLAMA = {"max_position_embeddings": 4096, "tie_word_embeddings": True}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-10m": {
        "vocab_size": 16_000,
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        **_LLAMA,
    },
    "llama-3.2-1b": {
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        **_LLAMA,
    },
    "llama-3.2-3b": {
        "vocab_size": 128_256,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        **_LLAMA,
    },
    "qwen2.5-0.5b": {
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        **_LLAMA,
    },
    "demo": {
        "vocab_size": 365,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    },
    "wide-vocabulary": {
        "vocab_size": 150_000,
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        **_LLAMA,
    },
}
LENGTHS = {"short": (35, 10), "realistic": (210, 40), "tiny": (12, 5)}
"""Prompt and answer tokens; each record's vary by 30 % either way."""
USUAL_LENGTHS = ("short", "realistic")


def random_model(shape: str, dtype: torch.dtype, device: torch.device) -> Any:
    """A random Llama (or Qwen2) of a shape; the same weights each time."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    qwen = shape.startswith("qwen")
    config, kind = (Qwen2Config, Qwen2ForCausalLM) if qwen else (LlamaConfig, LlamaForCausalLM)
    with torch.device(device):
        model = kind(config(**SHAPES[shape]))  # pyright: ignore
    return model.to(dtype).eval().requires_grad_(False)  # pyright: ignore


def random_records(count: int, prompt: int, answer: int, vocabulary: int) -> EncodedRecords:
    """Records of random tokens, each both target and demonstration."""
    rng = np.random.default_rng(0)
    prompts = rng.uniform(0.7 * prompt, 1.3 * prompt, count).astype(np.int32).clip(1)
    answers = rng.uniform(0.7 * answer, 1.3 * answer, count).astype(np.int32).clip(1)
    starts = np.concatenate([[0], np.cumsum(prompts + answers)]).astype(np.int64)
    tokens = rng.integers(5, vocabulary, starts[-1]).astype(np.int32)
    begin = np.asarray([1], dtype=np.int32)
    return EncodedRecords(
        ids=tuple(f"{place:032x}" for place in range(count)),
        head=begin,
        start=begin,
        target_tokens=tokens,
        target_starts=starts,
        prompt_lengths=prompts,
        demonstration_tokens=tokens,
        demonstration_starts=starts,
        unscorable={},
        cuts={},
    )


def useful_operations(config: Any, records: EncodedRecords, jobs: list[Job]) -> float:
    """The floating-point operations that the jobs cannot do without.

    A product of an [a, b] and a [b, c] matrix counts 2abc. Each prefix is read once and each target
    once a prefix; logits and the last layer's queries, attention and MLP count at answer positions
    only; attention counts the keys a query may see. Norms, rotations and softmax count nothing.
    """
    width, layers = config.hidden_size, config.num_hidden_layers
    head = getattr(config, "head_dim", None) or width // config.num_attention_heads
    inner, kept = config.num_attention_heads * head, config.num_key_value_heads * head
    heavy = 2 * (2 * width * inner + 3 * width * config.intermediate_size)
    keys = 2 * 2 * width * kept
    lengths = np.diff(records.target_starts).astype(np.float64) - 1
    answers = records.answer_lengths.astype(np.float64)
    total = 0.0
    for job in jobs:
        n, a, p = lengths[job.rows], answers[job.rows], float(len(job.prefix))
        seen = n * p + n * (n + 1) / 2
        seen_last = a * (p + n - (a - 1) / 2)
        total += (n.sum() + p) * keys * layers
        total += heavy * ((layers - 1) * (n.sum() + p) + a.sum())
        total += 4 * inner * ((layers - 1) * (seen.sum() + p * (p + 1) / 2) + seen_last.sum())
        total += 2 * width * config.vocab_size * a.sum()
    return total
