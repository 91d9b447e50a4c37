"""The models and records that scoring is measured on, and the operations they cannot do without."""

from typing import Any

import numpy as np
import torch

from delift_pipeline.prompts.encode import EncodedRecords
from delift_pipeline.scoring.engine import Job

_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)
_SIZES = {
    "llama-10m": (16_000, 256, 688, 8, 8, 8, 4096),
    "llama-3.2-1b": (128_256, 2048, 8192, 16, 32, 8, 4096),
    "llama-3.2-3b": (128_256, 3072, 8192, 28, 24, 8, 4096),
    "qwen2.5-0.5b": (151_936, 896, 4864, 24, 14, 2, 4096),
    "demo": (365, 64, 192, 3, 4, 4, 1024),
    "wide-vocabulary": (150_000, 256, 688, 4, 8, 8, 4096),
}
SHAPES: dict[str, dict[str, Any]] = {
    name: {**dict(zip(_FIELDS, sizes, strict=True)), "tie_word_embeddings": True}
    for name, sizes in _SIZES.items()
}
"""The configuration of each model that can be measured."""
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
