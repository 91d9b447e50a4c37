"""The options that say how a model is run: one group, the same on every command that takes one."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from delift_pipeline.cli.options import TEMPLATE_HELP

if TYPE_CHECKING:
    from delift_pipeline.scoring.options import ModelOptions

COMPUTE = {
    **{own: own for own in ("engine", "device", "device_map", "batch_tokens", "memory_limit")},
    **{own: own for own in ("in_flight", "threads", "workers")},
    "tensor_parallel": "tensor_parallel_size",
    "gpu_memory": "gpu_memory_utilization",
}
"""Flags that belong to the compute resource, and what `ModelOptions` calls them."""


def _flag(help: str) -> Any:
    return field(default=None, metadata={"help": help})


@dataclass(frozen=True)
class ModelFlags:
    """What was given of the group; None where nothing was."""

    revision: str | None = _flag("The hub revision to load.")
    template: str | None = _flag(TEMPLATE_HELP)
    window: int | None = _flag("Tokens a prompt may take [the model's, <= 2048].")
    dtype: str | None = _flag("float32, bfloat16 or float16 [the preset's, else float32].")
    load_in: str | None = _flag("4bit or 8bit weights, by bitsandbytes.")
    engine: str | None = _flag("transformers, vllm or naive [transformers].")
    device: str | None = _flag("auto, cpu, cuda or cuda:N [auto].")
    device_map: str | None = _flag("Lay one model over several GPUs: auto, balanced or sequential.")
    tensor_parallel: int | None = _flag("GPUs that vLLM splits the model over [1].")
    gpu_memory: float | None = _flag("Share of each GPU's memory that vLLM takes [0.9].")
    batch_tokens: int | None = _flag("Most target tokens in one batch [the device's own].")
    memory_limit: float | None = _flag(
        "GiB that scoring takes over the model [1.5; 0.8 of a GPU's free]."
    )
    in_flight: int | None = _flag("Demonstrations that share batches [1; 4 on a GPU].")
    threads: int | None = _flag("CPU threads of a process [PyTorch's own choice].")
    workers: int | None = _flag("Processes that score together, one a GPU [1].")
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Let code that comes with the model run."}
    )

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


def takes_model(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the whole group in the place of its parameter `flags`.

    Typer reads a command's options from its signature and knows no groups of them.
    """
    group: dict[str, tuple[Any, Any]] = {}
    for one in fields(ModelFlags):
        option = typer.Option(f"--{one.name.replace('_', '-')}", help=one.metadata["help"])
        group[one.name] = (Annotated[one.type, option], one.default)
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
    with_flags.__annotations__ = {one.name: one.annotation for one in parameters}
    return with_flags
