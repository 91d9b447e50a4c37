"""The options that say how a model is run: one group, the same on every command that takes one."""

import inspect
from collections.abc import Callable
from dataclasses import Field, dataclass, fields
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from delift_pipeline.cli.options import TEMPLATE_HELP

if TYPE_CHECKING:
    from delift_pipeline.scoring.options import ModelOptions

COMPUTE = {
    "engine": "engine",
    "device": "device",
    "device_map": "device_map",
    "tensor_parallel": "tensor_parallel_size",
    "gpu_memory": "gpu_memory_utilization",
    "batch_tokens": "batch_tokens",
    "memory_limit": "memory_limit",
    "in_flight": "in_flight",
    "threads": "threads",
    "workers": "workers",
}
"""Flags that belong to the compute resource, and what `ModelOptions` calls them."""


HELP = {
    "revision": "The hub revision to load.",
    "template": TEMPLATE_HELP,
    "window": "Tokens a prompt may take [the model's, <= 2048].",
    "dtype": "float32, bfloat16 or float16 [the preset's, else float32].",
    "load_in": "4bit or 8bit weights, by bitsandbytes.",
    "engine": "transformers, vllm or naive [transformers].",
    "device": "auto, cpu, cuda or cuda:N [auto].",
    "device_map": "Lay one model over several GPUs: auto, balanced or sequential.",
    "tensor_parallel": "GPUs that vLLM splits the model over [1].",
    "gpu_memory": "Share of each GPU's memory that vLLM takes [0.9].",
    "batch_tokens": "Most target tokens in one batch [the device's own].",
    "memory_limit": "GiB that scoring takes over the model [1.5; 0.8 of a GPU's free].",
    "in_flight": "Demonstrations that share batches [1; 4 on a GPU].",
    "threads": "CPU threads of a process [PyTorch's own choice].",
    "workers": "Processes that score together, one a GPU [1].",
    "trust_remote_code": "Let code that comes with the model run.",
}


@dataclass(frozen=True)
class ModelFlags:
    """What was given of the group; None where nothing was. `HELP` explains each."""

    revision: str | None = None
    template: str | None = None
    window: int | None = None
    dtype: str | None = None
    load_in: str | None = None
    engine: str | None = None
    device: str | None = None
    device_map: str | None = None
    tensor_parallel: int | None = None
    gpu_memory: float | None = None
    batch_tokens: int | None = None
    memory_limit: float | None = None
    in_flight: int | None = None
    threads: int | None = None
    workers: int | None = None
    trust_remote_code: bool = False

    def options(self, model: str) -> "ModelOptions":
        """The model's options, validated whole.

        Raises:
            Refused: one fault for each option out of range or at odds with another.
        """
        from delift_pipeline.scoring.options import read_options

        given = {COMPUTE.get(name, name): value for name, value in self.given().items()}
        options = {COMPUTE.get(n, n): f"--{n.replace('_', '-')}" for n in ("model", *vars(self))}
        return read_options({"model": model, **given}, options)

    def given(self) -> dict[str, Any]:
        """What was given, by the names of the flags."""
        # 0 is a value, and equal to False: it is refused where it makes no sense.
        values = vars(self).items()
        return {name: value for name, value in values if value is not None and value is not False}

    def resources(self, model: str | None) -> dict[str, Any]:
        """The run config of the `language_model` and `compute` resources.

        Raises:
            Refused: as `options`.
        """
        self.options(model or "the version's own")
        given = self.given()
        compute = {COMPUTE[name]: value for name, value in given.items() if name in COMPUTE}
        own = {name: value for name, value in given.items() if name not in COMPUTE}
        own |= {"model": model} if model else {}
        config = {"language_model": own, "compute": compute}
        return {name: {"config": values} for name, values in config.items() if values}


NO_FLAGS = ModelFlags()


def _option(flag: Field[Any]) -> Any:
    name = f"--{flag.name.replace('_', '-')}"
    return Annotated[flag.type, typer.Option(name, help=HELP[flag.name])]


def takes_model(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the whole group in the place of its parameter `flags`.

    Typer reads a command's options from its signature and knows no groups of them.
    """
    group = {one.name: (_option(one), one.default) for one in fields(ModelFlags)}
    options: dict[str, tuple[Any, Any]] = {}
    for name, one in inspect.signature(command, eval_str=True).parameters.items():
        options |= group if name == "flags" else {name: (one.annotation, one.default)}

    @wraps(command)
    def with_flags(**given: Any) -> None:
        flags = ModelFlags(**{name: given.pop(name) for name in group})
        command(**given, flags=flags)

    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter(name, kind, default=default, annotation=annotation)
        for name, (annotation, default) in options.items()
    ]
    with_flags.__signature__ = inspect.Signature(parameters)  # pyright: ignore
    with_flags.__annotations__ = {name: annotation for name, (annotation, _) in options.items()}
    return with_flags
