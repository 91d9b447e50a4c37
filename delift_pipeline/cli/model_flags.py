"""The options that say how a model is run: one group, the same on every command that takes one."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from delift_pipeline.cli.options import TemplateOption

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


@dataclass(frozen=True)
class ModelFlags:
    """What was given of the group; None where nothing was."""

    revision: Annotated[str | None, typer.Option(help="The hub revision to load.")] = None
    template: TemplateOption = None
    window: Annotated[
        int | None, typer.Option(help="Tokens a prompt may take [the model's, <= 2048].")
    ] = None
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16 [the preset's, else float32].")
    ] = None
    load_in: Annotated[str | None, typer.Option(help="4bit or 8bit weights, by bitsandbytes.")] = (
        None
    )
    engine: Annotated[
        str | None, typer.Option(help="transformers, vllm or naive [transformers].")
    ] = None
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N [auto].")] = None
    device_map: Annotated[
        str | None,
        typer.Option(help="Lay one model over several GPUs: auto, balanced or sequential."),
    ] = None
    tensor_parallel: Annotated[
        int | None, typer.Option(help="GPUs that vLLM splits the model over [1].")
    ] = None
    gpu_memory: Annotated[
        float | None, typer.Option(help="Share of each GPU's memory that vLLM takes [0.9].")
    ] = None
    batch_tokens: Annotated[
        int | None, typer.Option(help="Most target tokens in one batch [the device's own].")
    ] = None
    memory_limit: Annotated[
        float | None,
        typer.Option(help="GiB that scoring takes over the model [1.5; 0.8 of a GPU's free]."),
    ] = None
    in_flight: Annotated[
        int | None, typer.Option(help="Demonstrations that share batches [1; 4 on a GPU].")
    ] = None
    threads: Annotated[
        int | None, typer.Option(help="CPU threads of a process [PyTorch's own choice].")
    ] = None
    workers: Annotated[
        int | None, typer.Option(help="Processes that score together, one a GPU [1].")
    ] = None
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let code that comes with the model run.")
    ] = False

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
    hints = get_type_hints(ModelFlags, include_extras=True)
    group = {one.name: (hints[one.name], one.default) for one in fields(ModelFlags)}
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
