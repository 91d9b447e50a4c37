"""Presets and the memory table: typed data that agrees with the models it describes."""

import re
import shlex
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
)

from delift_pipeline.cli.options import COMPUTE, ModelFlags
from delift_pipeline.prompts.template import Template, load_template
from delift_pipeline.scoring.model_files import BYTES, GIB, INT8_BYTES, NF4_BYTES
from delift_pipeline.scoring.options import PRESETS, ModelOptions, read_options
from resources import ComputeResource, LanguageModelResource

DOCS = Path(__file__).resolve().parents[2] / "docs"
GUIDES = ("models.md", "vllm.md")
BATCH_TOKENS = 8192
LOGITS_ROWS = 512
WINDOW = 2048


@dataclass(frozen=True)
class ModelShape:
    """The numbers a model's memory follows from.

    Attributes:
        parameters: All weights, a tied head counted once.
        layers: Decoder layers.
        hidden: Width of the residual stream.
        intermediate: Width of the feed-forward part.
        kv_heads: Heads of keys and values.
        head_size: Numbers a head.
        vocabulary: Rows of the embedding.
        tied: Whether embedding and head are one matrix.
    """

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool = False

    @property
    def unquantised(self) -> int:
        """Parameters that 4- and 8-bit loading leaves as they are: embedding and head."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each GPU."""

    weights: float
    cache: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """All of it, in bytes."""
        return self.weights + self.cache + self.activations + self.logits


def estimate(
    shape: ModelShape,
    dtype: str = "float32",
    load_in: str | None = None,
    *,
    window: int = WINDOW,
    batch_tokens: int = BATCH_TOKENS,
    gpus: int = 1,
) -> MemoryEstimate:
    """Memory that scoring takes on each GPU, without what the CUDA context takes itself.

    Args:
        shape: The model's.
        dtype: Number format of activations, and of weights unless they are quantised.
        load_in: `4bit`, `8bit` or None.
        window: Most tokens in a sequence; the prefix takes half.
        batch_tokens: Target tokens in a batch.
        gpus: GPUs that share the model by tensor parallel.
    """
    size = BYTES[dtype]
    tokens = window // 2 + batch_tokens
    cache = 2 * shape.layers * shape.kv_heads * shape.head_size * size * tokens
    activations = batch_tokens * (8 * shape.hidden + 3 * shape.intermediate) * size
    logits = LOGITS_ROWS * shape.vocabulary * (size + 2 * 4)
    weights = _weights(shape, dtype, load_in)
    return MemoryEstimate(weights / gpus, cache / gpus, activations / gpus, logits / gpus)


def _weights(shape: ModelShape, dtype: str, load_in: str | None) -> float:
    size = BYTES[dtype]
    if load_in is None:
        return shape.parameters * size
    linear = {"4bit": NF4_BYTES, "8bit": INT8_BYTES}[load_in]
    kept = min(shape.unquantised, shape.parameters)
    return kept * size + (shape.parameters - kept) * linear


SHAPES = {
    "llama-3.2-3b": ModelShape(3_212_749_824, 28, 3072, 8192, 8, 128, 128_256, tied=True),
    "mistral-7b-v0.1": ModelShape(7_241_732_096, 32, 4096, 14_336, 8, 128, 32_000),
    "opt-125m": ModelShape(125_239_296, 12, 768, 3072, 12, 64, 50_272, tied=True),
    "qwen2-72b-instruct": ModelShape(72_706_203_648, 80, 8192, 29_568, 8, 128, 152_064),
    "phi-3-mini-128k-instruct": ModelShape(3_821_079_552, 32, 3072, 8192, 32, 96, 32_064),
}
CONFIGS: dict[str, Any] = {
    "llama-3.2-3b": lambda s: LlamaConfig(num_attention_heads=24, tie_word_embeddings=True, **s),
    "mistral-7b-v0.1": lambda s: MistralConfig(num_attention_heads=32, **s),
    "qwen2-72b-instruct": lambda s: Qwen2Config(num_attention_heads=64, **s),
    "phi-3-mini-128k-instruct": lambda s: Phi3Config(num_attention_heads=32, **s),
}


def sizes(shape: ModelShape) -> dict[str, int]:
    return {
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_size,
        "vocab_size": shape.vocabulary,
    }


def config_of(name: str) -> Any:
    shape = SHAPES[name]
    if name != "opt-125m":
        return CONFIGS[name](sizes(shape))
    return OPTConfig(
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        word_embed_proj_dim=shape.hidden,
        ffn_dim=shape.intermediate,
        num_attention_heads=shape.kv_heads,
        vocab_size=shape.vocabulary,
    )


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_presets_parameters_are_those_of_a_model_of_its_sizes(name: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(name))
    assert SHAPES[name].parameters == model.num_parameters()


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_is_valid_and_what_is_given_beside_it_wins(name: str) -> None:
    found = ModelOptions(model=f"preset:{name}")
    assert found.model == PRESETS[name]["model"]
    assert load_template(found.template).name == found.template
    own = ModelOptions(model=f"preset:{name}", dtype="float16", template="plain", engine="naive")
    assert (own.dtype, own.template, own.engine) == ("float16", "plain", "naive")
    assert own.tensor_parallel_size == 1


def test_memory_adds_up_by_hand() -> None:
    shape = ModelShape(1000, 2, 8, 16, 2, 4, 10)
    found = estimate(shape, "bfloat16", window=4, batch_tokens=3, gpus=2)
    assert found.weights == 1000 * 2 / 2
    assert found.cache == 2 * 2 * 2 * 4 * 2 * (2 + 3) / 2
    assert found.activations == 3 * (8 * 8 + 3 * 16) * 2 / 2
    assert found.logits == 512 * 10 * (2 + 8) / 2
    assert found.total == sum((1000, 160, 336, 25_600))
    four = estimate(shape, "bfloat16", "4bit").weights
    assert four == 160 * 2 + 840 * 4.127 / 8


def rows(text: str, header: str) -> list[list[str]]:
    """The cells of the table under a header."""
    lines = text[text.index(header) :].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]


def test_the_memory_table_in_the_docs_is_what_the_formula_gives() -> None:
    text = (DOCS / "models.md").read_text("utf-8")
    table = rows(text, "| model | parameters | float32")
    kinds = (("float32", None), ("bfloat16", None), ("float16", "8bit"), ("bfloat16", "4bit"))
    for name, parameters, *gib in table:
        shape = SHAPES[name]
        assert parameters == f"{shape.parameters / 1e9:.2f} B"
        assert gib == [f"{estimate(shape, *kind).total / GIB:.1f}" for kind in kinds]
    assert [row[0] for row in table] == list(PRESETS)
    large = SHAPES["qwen2-72b-instruct"]
    shares = [f"{estimate(large, 'bfloat16', gpus=gpus).total / GIB:.1f}" for gpus in (2, 4, 8)]
    (sentence,) = re.findall(r"`qwen2-72b-instruct` needs [^|]*? of eight", text)
    assert re.findall(r"\d+\.\d", sentence) == shares


def test_the_table_of_presets_in_the_docs_is_the_presets() -> None:
    table = rows((DOCS / "models.md").read_text("utf-8"), "| preset | hub id")
    for name, model, dtype, template, engine in table:
        found = ModelOptions(model=f"preset:{name}")
        assert (found.model, found.dtype, found.template) == (model, dtype, template)
        own = "" if found.tensor_parallel_size == 1 else f", {found.tensor_parallel_size} GPUs"
        assert f"{found.engine}{own}" == engine
    assert [row[0] for row in table] == list(PRESETS)


def snippets(start: str) -> list[str]:
    """Indented blocks of the guides that begin with `start`."""
    found = []
    for guide in GUIDES:
        text = (DOCS / guide).read_text("utf-8")
        blocks = re.findall(r"(?:^ {4,}.*\n?)+", text, re.MULTILINE)
        found += [block for block in blocks if block.strip().startswith(start)]
    return found


@pytest.mark.parametrize("snippet", snippets("resources:"))
def test_every_config_in_the_guides_is_accepted(snippet: str) -> None:
    config = yaml.safe_load(snippet)["resources"]
    own = config["language_model"]["config"]
    LanguageModelResource(**own)
    compute = ComputeResource(**config["compute"]["config"])
    assert read_options({**compute.model_settings(), **own})


@pytest.mark.parametrize("snippet", snippets("name:"))
def test_every_template_in_the_guides_is_valid(snippet: str) -> None:
    assert Template.model_validate(yaml.safe_load(snippet)).chat


@pytest.mark.parametrize("snippet", snippets("delift"))
def test_every_command_in_the_guides_has_valid_model_options(snippet: str) -> None:
    for line in snippet.strip().splitlines():
        words = shlex.split(line)
        given = {
            name.removeprefix("--").replace("-", "_"): value
            for name, value in pairwise(words)
            if name.startswith("--")
        }
        model = given.pop("model")
        known = {name: given[name] for name in given if name in ModelFlags.__dataclass_fields__}
        numbers = {name: int(value) for name, value in known.items() if value.isdigit()}
        assert set(given) - set(known) <= {"out", "budget", "target", "demonstration"}
        assert ModelFlags(**{**known, **numbers}).options(model)


def test_the_tables_of_options_in_the_docs_list_every_option() -> None:
    text = (DOCS / "models.md").read_text("utf-8")
    fields = {
        "language_model": set(LanguageModelResource.model_fields),
        "compute": set(ComputeResource.model_fields),
    }
    listed = re.findall(r"^\| `--([a-z-]+)` \| `(\w+)\.(\w+)` \|", text, re.MULTILINE)
    for option, resource, own in listed:
        name = option.replace("-", "_")
        assert own in fields[resource]
        assert name == "model" or COMPUTE.get(name, name) == own
    flags = {name.replace("_", "-") for name in ModelFlags.__dataclass_fields__}
    assert sorted(option for option, _, _ in listed) == sorted(flags | {"model"})
