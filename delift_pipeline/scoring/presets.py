"""Named sets of model options: the models of the DELIFT paper (arXiv 2411.04425).

`model: preset:NAME` takes one. Hub revisions are left open: pin one with `revision` for work that
must be repeated, the fingerprint tells two apart in any case.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PREFIX = "preset:"


@dataclass(frozen=True)
class Preset:
    """A model and the options it is run with.

    Attributes:
        model: Its hub id.
        settings: Other values by the names of `ModelOptions`.
    """

    model: str
    settings: Mapping[str, Any] = field(default_factory=dict)


PRESETS: dict[str, Preset] = {
    "llama-3.2-3b": Preset(
        "meta-llama/Llama-3.2-3B",
        {"dtype": "bfloat16", "template": "paper"},
    ),
    "mistral-7b-v0.1": Preset(
        "mistralai/Mistral-7B-v0.1",
        {"dtype": "bfloat16", "template": "paper"},
    ),
    "opt-125m": Preset(
        "facebook/opt-125m",
        {"dtype": "float32", "template": "paper"},
    ),
    # 145 GB of weights in 16 bits: two GPUs of 80 GB would leave next to nothing beside them.
    "qwen2-72b-instruct": Preset(
        "Qwen/Qwen2-72B-Instruct",
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
