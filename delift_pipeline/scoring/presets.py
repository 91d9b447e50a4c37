"""Named sets of model options: the models of the DELIFT paper (arXiv 2411.04425).

`model: preset:NAME` takes one. Hub revisions are left open: pin one with `revision` for work that
must be repeated, the fingerprint tells two apart in any case.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from delift_pipeline.scoring.estimate import ModelShape

PREFIX = "preset:"


@dataclass(frozen=True)
class Preset:
    """A model, the options it is run with, and its size.

    Attributes:
        model: Its hub id.
        shape: What its memory follows from.
        settings: Other values by the names of `ModelOptions`.
    """

    model: str
    shape: ModelShape
    settings: Mapping[str, Any] = field(default_factory=dict)


PRESETS: dict[str, Preset] = {
    "llama-3.2-3b": Preset(
        "meta-llama/Llama-3.2-3B",
        ModelShape(3_212_749_824, 28, 3072, 8192, 8, 128, 128_256, tied=True),
        {"dtype": "bfloat16", "template": "paper"},
    ),
    "mistral-7b-v0.1": Preset(
        "mistralai/Mistral-7B-v0.1",
        ModelShape(7_241_732_096, 32, 4096, 14_336, 8, 128, 32_000),
        {"dtype": "bfloat16", "template": "paper"},
    ),
    "opt-125m": Preset(
        "facebook/opt-125m",
        ModelShape(125_239_296, 12, 768, 3072, 12, 64, 50_272, tied=True),
        {"dtype": "float32", "template": "paper"},
    ),
    # 145 GB of weights in 16 bits: two GPUs of 80 GB would leave next to nothing beside them.
    "qwen2-72b-instruct": Preset(
        "Qwen/Qwen2-72B-Instruct",
        ModelShape(72_706_203_648, 80, 8192, 29_568, 8, 128, 152_064),
        {
            "dtype": "bfloat16",
            "template": "chat",
            "engine": "vllm",
            "tensor_parallel_size": 4,
        },
    ),
    # Its rotary positions change beyond 4,096 tokens, and the default window stays below.
    "phi-3-mini-128k-instruct": Preset(
        "microsoft/Phi-3-mini-128k-instruct",
        ModelShape(3_821_079_552, 32, 3072, 8192, 32, 96, 32_064),
        {"dtype": "bfloat16", "template": "chat"},
    ),
}


def expanded(given: dict[str, Any]) -> dict[str, Any]:
    """Settings with `model: preset:NAME` replaced by what it stands for; given values win.

    Raises:
        KeyError: there is no such preset; its argument is the sentence.
    """
    model = given.get("model")
    if not isinstance(model, str) or not model.startswith(PREFIX):
        return given
    name = model.removeprefix(PREFIX).lower()
    if name not in PRESETS:
        raise KeyError(f"there is no preset {name!r}; there are: {', '.join(PRESETS)}")
    preset, own = PRESETS[name], {k: v for k, v in given.items() if v is not None}
    settings = dict(preset.settings)
    if own.get("engine", settings.get("engine")) != "vllm":
        # Without vLLM the GPUs it would split the model over mean nothing.
        settings.pop("tensor_parallel_size", None)
    return {**settings, **own, "model": preset.model}
