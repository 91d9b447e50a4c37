"""A tiny random Llama, the real tiny model with heads wide enough for vLLM, and records."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from delift_pipeline.demo import DEMO_MODEL
from delift_pipeline.scoring.model import LoadedModel, load_model
from delift_pipeline.scoring.options import ModelOptions

WIDTH = 32
"""The narrowest head that vLLM's CPU attention has."""
WORDS = "one day a little girl saw the big red ball and her dog was happy to play with it".split()


def made_up_records(count: int, seed: int = 0) -> pl.DataFrame:
    """Records of random words; every third has an input."""
    rng = np.random.default_rng(seed)

    def text(most: int) -> str:
        return " ".join(rng.choice(WORDS, rng.integers(1, most + 1)))

    rows = [
        {
            "record_id": f"{seed * 1000 + place + 1:032x}",
            "instruction": text(10),
            "input": text(6) if place % 3 == 0 else "",
            "output": text(8),
        }
        for place in range(count)
    ]
    return pl.DataFrame(rows)


def build_llama(folder: Path, seed: int = 0) -> Path:
    """A random Llama under the demo model's tokenizer, with weights large enough to matter."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=4 * WIDTH,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def widen_heads(source: Path, folder: Path) -> Path:
    """The same function of the same tokens with heads of 32 numbers, of which most are zero.

    Rotary pair i of a narrow head turns as fast as pair i * 32 / width of a wide one.
    """
    small = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    narrow = small.config.head_dim
    config = LlamaConfig(**{**small.config.to_dict(), "head_dim": WIDTH})
    weights = {
        name: _wide(name, tensor, narrow) if "self_attn" in name else tensor
        for name, tensor in small.state_dict().items()
    }
    wide = LlamaForCausalLM(config)
    wide.load_state_dict(weights)
    shutil.copytree(source, folder)
    wide.save_pretrained(folder)
    return folder


def _wide(name: str, tensor: torch.Tensor, narrow: int) -> torch.Tensor:
    step, half = WIDTH // narrow, narrow // 2
    pairs = torch.arange(half) * step
    places = torch.cat([pairs, pairs + WIDTH // 2])
    by_head = tensor.T if "o_proj" in name else tensor
    heads = by_head.reshape(-1, narrow, by_head.shape[1])
    result = torch.zeros(heads.shape[0], WIDTH, heads.shape[2])
    result[:, places] = heads
    if "q_proj" in name:
        # Attention divides by the root of the head's width.
        result *= math.sqrt(step)
    result = result.reshape(-1, heads.shape[2])
    return result.T.contiguous() if "o_proj" in name else result


@pytest.fixture(scope="session")
def made_up() -> Callable[..., pl.DataFrame]:
    """`made_up_records`."""
    return made_up_records


@pytest.fixture(scope="session")
def asked(tmp_path_factory: pytest.TempPathFactory) -> ModelOptions:
    """Options for the tiny Llama by the transformers engine."""
    folder = build_llama(tmp_path_factory.mktemp("models") / "llama")
    return ModelOptions(model=str(folder), device="cpu", threads=1)


@pytest.fixture(scope="session")
def llama(asked: ModelOptions) -> LoadedModel:
    """The tiny Llama."""
    return load_model(asked)


@pytest.fixture(scope="session")
def wide_stories(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real tiny model, with wide heads."""
    return widen_heads(stories, tmp_path_factory.mktemp("wide") / "stories")
