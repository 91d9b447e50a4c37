"""Presets and the memory table: typed data that agrees with the models it describes."""

import re
import shlex
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

from delift_pipeline.cli.model_flags import COMPUTE, ModelFlags
from delift_pipeline.prompts.template import Template, load_template
from delift_pipeline.scoring.estimate import GIB, ModelShape, estimate
from delift_pipeline.scoring.options import ModelOptions, read_options
from delift_pipeline.scoring.presets import PRESETS
from resources.compute import ComputeResource
from resources.language_model import LanguageModelResource

DOCS = Path(__file__).resolve().parents[2] / "docs"
GUIDES = ("models.md", "vllm.md")
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
    shape = PRESETS[name].shape
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
    assert PRESETS[name].shape.parameters == model.num_parameters()


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_is_valid_and_what_is_given_beside_it_wins(name: str) -> None:
    found = ModelOptions(model=f"preset:{name}")
    assert found.model == PRESETS[name].model
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
        shape = PRESETS[name].shape
        assert parameters == f"{shape.parameters / 1e9:.2f} B"
        assert gib == [f"{estimate(shape, *kind).total / GIB:.1f}" for kind in kinds]
    assert [row[0] for row in table] == list(PRESETS)
    large = PRESETS["qwen2-72b-instruct"].shape
    shares = [f"{estimate(large, 'bfloat16', gpus=gpus).total / GIB:.1f}" for gpus in (2, 4, 8)]
    assert "{} on two, {} on four,\n{} on eight".format(*shares) in text


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


def test_every_option_and_field_in_the_table_exists() -> None:
    table = rows((DOCS / "models.md").read_text("utf-8"), "| option | resource field")
    fields = {
        "language_model": set(LanguageModelResource.model_fields),
        "compute": set(ComputeResource.model_fields),
    }
    for option, field, *_ in table[:-1]:
        name = option.removeprefix("--").replace("-", "_")
        resource, _, own = field.partition(".")
        assert own in fields[resource]
        assert name == "model" or COMPUTE.get(name, name) == own
