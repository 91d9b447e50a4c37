"""The options that name a model and how it scores; without torch, so they load quickly."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from delift_pipeline.core.validation import validate

PREFIX = "preset:"
AUTO, CHAT, PLAIN = "auto", "chat", "plain"
"""Names of templates. `auto` is the model's own (`chat`) if that works, else `plain`."""


def _preset(model: str, dtype: str, template: str) -> dict[str, Any]:
    return {"model": model, "dtype": dtype, "template": template}


PRESETS: dict[str, dict[str, Any]] = {
    "llama-3.2-3b": _preset("meta-llama/Llama-3.2-3B", "bfloat16", "paper"),
    "mistral-7b-v0.1": _preset("mistralai/Mistral-7B-v0.1", "bfloat16", "paper"),
    "opt-125m": _preset("facebook/opt-125m", "float32", "paper"),
    # 145 GB of weights in 16 bits: two GPUs of 80 GB would have almost no memory left.
    "qwen2-72b-instruct": _preset("Qwen/Qwen2-72B-Instruct", "bfloat16", "chat")
    | {"engine": "vllm", "tensor_parallel_size": 4},
    # Its rotary positions change beyond 4,096 tokens, and the default window stays below.
    "phi-3-mini-128k-instruct": _preset("microsoft/Phi-3-mini-128k-instruct", "bfloat16", "chat"),
}
"""The models of the DELIFT paper (arXiv 2411.04425): name -> values of `ModelOptions`.

Presets name no hub revision. Set `revision` for work that must be repeated exactly; the
fingerprint differs between revisions in any case.
"""


def expand_preset(values: dict[str, Any]) -> dict[str, Any]:
    """Replace `model: preset:NAME` by the values of the preset; other values that are set win.

    Raises:
        KeyError: there is no such preset; its argument is the message.
    """
    model = values.get("model")
    if not isinstance(model, str) or not model.startswith(PREFIX):
        return values
    name = model.removeprefix(PREFIX).lower()
    if name not in PRESETS:
        raise KeyError(f"there is no preset {name!r}; choose one of: {', '.join(PRESETS)}")
    own = {k: v for k, v in values.items() if v is not None and k != "model"}
    settings = {**PRESETS[name], **own}
    if settings.get("engine") != "vllm" and "tensor_parallel_size" not in own:
        # Only vLLM splits a model over this number of GPUs.
        settings.pop("tensor_parallel_size", None)
    return settings


Dtype = Literal["float32", "bfloat16", "float16"]
MODEL_DEMO = "demo"


class ModelOptions(BaseModel):
    """A language model and how it is run.

    `model`, `revision`, `template`, `window`, `dtype` and `load_in` decide the scores and, by
    content, the fingerprint. The others decide speed only. `model: preset:NAME` takes a named set
    of values (`PRESETS`), and values set next to it win. All faults are reported together.

    Attributes:
        model: A local folder, a hub id, `preset:NAME`, or `demo` for the model that comes with the
            package.
        revision: Branch, tag or commit on the hub.
        template: A shipped prompt template's name, `chat` for the model's own, or a YAML file.
            `auto` takes the model's own if it has one that can be used, else `plain`.
        window: Most tokens in one sequence; None for the model's own limit, at most 2,048.
        dtype: Number format of weights and activations.
        load_in: `4bit` (nf4) or `8bit` weights by bitsandbytes; None for those of `dtype`.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        device_map: How accelerate spreads one model over GPUs and memory; None for one device.
        engine: `transformers`; `vllm`; or `naive` for the slow reference.
        batch_tokens: Most target tokens, padding included, in one batch; None: device default.
        memory_limit: Most memory that scoring takes in addition to the loaded model, in GiB
            (engine transformers); None for 1.5 on a CPU and 80 % of what is free on a GPU.
        in_flight: Demonstrations that share batches (engine transformers); None for 1 on a CPU and
            64 on a GPU (4 where pairs are not packed).
        threads: CPU threads for torch; None leaves torch's choice.
        trust_remote_code: Whether code that comes with the model may run.
        tensor_parallel_size: GPUs that vLLM splits the model over.
        gpu_memory_utilization: Share of each GPU's memory that vLLM reserves when it starts.
        workers: Processes that score one plan together, each with GPUs of its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1)
    revision: str | None = None
    template: str = AUTO
    window: int | None = Field(default=None, ge=8)
    dtype: Dtype = "float32"
    load_in: Literal["4bit", "8bit"] | None = None
    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = None
    engine: Literal["transformers", "naive", "vllm"] = "transformers"
    batch_tokens: int | None = Field(default=None, ge=1)
    memory_limit: float | None = Field(default=None, gt=0)
    in_flight: int | None = Field(default=None, ge=1)
    threads: int | None = Field(default=None, ge=1)
    trust_remote_code: bool = False
    tensor_parallel_size: int = Field(default=1, ge=1)
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    workers: int = Field(default=1, ge=1)

    @model_validator(mode="wrap")
    @classmethod
    def _validate(
        cls, values: Any, handler: ModelWrapValidatorHandler["ModelOptions"]
    ) -> "ModelOptions":
        if not isinstance(values, Mapping):
            return handler(values)
        options, settings, faults = None, dict(values), list[tuple[str, str]]()
        try:
            settings = expand_preset(settings)
        except KeyError as error:
            faults.append(("model", str(error.args[0])))
        errors = list[InitErrorDetails]()
        try:
            options = handler(settings)
        except ValidationError as error:
            errors += cast(list[InitErrorDetails], error.errors())
        for field, reason in [*faults, *conflicts(settings)]:
            # The reason is passed as a value: in the template its braces would be placeholders.
            kind = PydanticCustomError("conflict", "{reason}", {"reason": reason})
            errors.append(InitErrorDetails(type=kind, loc=(field,), input=settings[field]))
        if errors or options is None:
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return options


def options_of_other(options: ModelOptions, model: str) -> ModelOptions:
    """Return options that run another model as `options` run theirs.

    The chat template of one model is not that of another, which may have none.
    """
    template = AUTO if options.template == CHAT else options.template
    return options.model_copy(update={"model": model, "revision": None, "template": template})


def conflicts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Find settings that exclude one another: (field, reason) each, whatever else is wrong."""

    def exceeds_one(name: str) -> bool:
        return isinstance(value := values.get(name), int) and value > 1

    engine, device, faults = values.get("engine"), values.get("device") or "auto", []
    if engine == "vllm":
        for field, why in (
            ("load_in", "engine vllm does not quantise weights when it loads them"),
            ("device_map", "engine vllm splits a model by tensor_parallel_size"),
        ):
            if values.get(field):
                faults.append((field, f"{why}; use engine transformers, or remove {field}"))
    elif exceeds_one("tensor_parallel_size"):
        why = "only engine vllm splits a model in this way; use device_map with engine transformers"
        faults.append(("tensor_parallel_size", why))
    if values.get("load_in") == "8bit" and values.get("dtype") != "float16":
        faults.append(("load_in", "8-bit weights are multiplied in float16; use dtype float16"))
    if values.get("device_map") and device != "auto":
        faults.append(("device_map", f"device {device} is one device; remove device or device_map"))
    if exceeds_one("workers") and ":" in str(device):
        faults.append(("device", "each worker has devices of its own; use auto, cpu or cuda"))
    return faults


def read_options(values: Mapping[str, Any], names: Mapping[str, str] | None = None) -> ModelOptions:
    """Make options from settings; those that are None keep their defaults.

    `names` maps settings to what the user calls them, where that differs.

    Raises:
        InputError: one fault for each setting that is out of range or excludes another.
    """
    settings = {name: value for name, value in values.items() if value is not None}
    return validate(ModelOptions, settings, names=names)


def portable_name(model: str) -> str:
    """Return a hub id unchanged, and of a local folder the name without its path.

    Stored files name no path of this machine. The fingerprint identifies the weights.
    """
    path = Path(model).expanduser()
    return path.resolve().name if path.is_absolute() or path.exists() else model
