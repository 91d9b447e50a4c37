"""Tiny random models of several families, one tokenizer, and made-up records."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from delift_pipeline.scoring.model import LoadedModel, load_model
from delift_pipeline.scoring.options import ModelOptions

WORDS = "one day a little girl saw the big red ball and her dog was happy to play with it".split()
_SMALL = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
FAMILIES: dict[str, Callable[[dict], PretrainedConfig]] = {
    "llama": lambda c: LlamaConfig(**_SMALL, **c),
    "mistral": lambda c: MistralConfig(**_SMALL, sliding_window=None, **c),
    "llama-tied": lambda c: LlamaConfig(
        **_SMALL, tie_word_embeddings=True, attention_bias=True, mlp_bias=True, **c
    ),
    "qwen3": lambda c: Qwen3Config(**_SMALL, head_dim=16, **c),
    "phi3-partial": lambda c: Phi3Config(
        **_SMALL,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
        },
        **c,
    ),
    "gpt2": lambda c: GPT2Config(n_embd=48, n_layer=3, n_head=4, n_positions=256, **c),
    "gemma": lambda c: GemmaConfig(**_SMALL, head_dim=12, **c),
    # Far shorter than any sequence, so that prefixes fall out of the window.
    "mistral-sliding": lambda c: MistralConfig(**_SMALL, sliding_window=7, **c),
    "qwen2": lambda c: Qwen2Config(**_SMALL, tie_word_embeddings=True, **c),
    "phi3": lambda c: Phi3Config(**_SMALL, **c),
    "opt": lambda c: OPTConfig(
        hidden_size=48,
        ffn_dim=96,
        word_embed_proj_dim=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=256,
        **c,
    ),
    "gemma2": lambda c: Gemma2Config(
        **_SMALL, head_dim=12, sliding_window=9, final_logit_softcapping=2.0, **c
    ),
    "mamba": lambda c: MambaConfig(hidden_size=32, state_size=4, num_hidden_layers=2, **c),
    "granite": lambda c: GraniteConfig(**_SMALL, logits_scaling=4.0, **c),
}


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, punctuation and line ends apart, with a few special tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

    listed = ["<unk>", "Task", "Answer", ":", "\n", "\n\n", *WORDS]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(listed)}, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split(Regex(r"\n+|:"), "isolated")]
    )
    core.add_special_tokens([AddedToken(t, special=True) for t in ("<pad>", "<s>", "</s>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )


def build_folder(
    family: str, folder: Path, seed: int = 0, tokenizer: PreTrainedTokenizerFast | None = None
) -> Path:
    """A tiny random model of a family, saved with a tokenizer; by default `word_tokenizer`."""
    tokenizer = tokenizer or word_tokenizer()
    ids = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(FAMILIES[family](ids), dtype=torch.float32)
    spread(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def spread(model: PreTrainedModel) -> None:
    """Larger weights than a fresh model's, so that context and position matter."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)


def made_up_records(count: int, seed: int = 0, longest: int = 9) -> pl.DataFrame:
    """Records of random words; every third has an input, lengths vary."""
    rng = np.random.default_rng(seed)

    def text(least: int, most: int) -> str:
        return " ".join(rng.choice(WORDS, rng.integers(least, most + 1)))

    rows = [
        {
            "record_id": f"{seed * 100_000 + place + 1:032x}",
            "instruction": text(2, longest + 2),
            "input": text(1, longest) if place % 3 == 0 else "",
            "output": text(1, longest),
        }
        for place in range(count)
    ]
    return pl.DataFrame(rows)


@pytest.fixture(scope="session")
def made_up() -> Callable[..., pl.DataFrame]:
    """`made_up_records`."""
    return made_up_records


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Path]:
    """`build_folder`."""
    return build_folder


@pytest.fixture(scope="session")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LoadedModel]:
    """Family -> its tiny model, made once."""
    torch.set_num_threads(1)
    made: dict[str, LoadedModel] = {}

    def get(family: str) -> LoadedModel:
        if family not in made:
            folder = build_folder(family, tmp_path_factory.mktemp("models") / family)
            made[family] = load_model(ModelOptions(model=str(folder), threads=1))
        return made[family]

    return get


@pytest.fixture(scope="session")
def llama(model_of: Callable[[str], LoadedModel]) -> LoadedModel:
    """The tiny Llama."""
    return model_of("llama")
