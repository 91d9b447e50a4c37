"""Options that several commands share, and the group of options of a model."""

import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import typer
from typer import Option

from delift_pipeline.core import output
from delift_pipeline.core.errors import Fault, InputError
from delift_pipeline.core.home import Home
from delift_pipeline.core.progress import BarProgress, LineProgress, Progress

if TYPE_CHECKING:
    from rich.table import Table

    from delift_pipeline.records.read import Ids, RecordsFile
    from delift_pipeline.scoring.options import ModelOptions

# Options that commands share. Each command declares their type.
HOME: Any = Option(
    None, "--home", envvar="DELIFT_HOME", help="The folder that holds all results [./delift_home]."
)
SCORES_HOME: Any = Option(
    None,
    "--home",
    envvar="DELIFT_HOME",
    help="The folder in which scores are stored and reused [./delift_home].",
)
AS_JSON: Any = Option(False, "--json", help="Print the result as one JSON document.")
MODEL_HELP = (
    "The model: a folder, a hub id, preset:NAME, or `demo` (the demo model, inside the package)."
)
MODEL: Any = Option(..., "--model", envvar="DELIFT_MODEL", help=MODEL_HELP)
OWN_MODEL: Any = Option(
    None,
    "--model",
    envvar="DELIFT_MODEL",
    help="The model: a folder, a hub id, preset:NAME, or `demo` [the model of the version].",
)
TARGET: Any = Option(
    None,
    "--target",
    help="A file with the target set: example records of the task that the model must learn.",
)
TEMPLATE_HELP = (
    "The prompt template: auto, chat (the chat template of the model), plain, paper, world, or a "
    "file [the stored template if the command is about a version, else that of the preset, else "
    "auto: chat if the model has a chat template that works, else plain]."
)
TEMPLATE: Any = Option(None, help=TEMPLATE_HELP)
SKIP_BAD: Any = Option(False, "--skip-bad", help="Leave faulty records out, and list their faults.")
IDS: Any = Option("keep", "--ids", help="What to do with the ids in the file: keep or ignore.")
COLUMN: Any = Option(
    None,
    "--column",
    help="FIELD=COLUMN: read a field from this column of the file, e.g. "
    "instruction=question; repeatable.",
)

DEBUG_VARIABLE = "DELIFT_DEBUG"
"""If this environment variable is set, errors are printed with their traceback."""


def is_debugging() -> bool:
    """Whether the user asked for tracebacks and all messages."""
    return os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0")


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables inside the block, and restore them afterwards."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def progress() -> Progress:
    """Return a progress bar if standard error is a terminal, else plain progress lines."""
    return BarProgress() if sys.stderr.isatty() else LineProgress()


def parse_ids_option(ids: str) -> "Ids":
    """Return the value of `--ids`.

    Raises:
        typer.BadParameter: the value is neither `keep` nor `ignore`.
    """
    if ids in ("keep", "ignore"):
        return ids
    raise typer.BadParameter(f"write --ids keep or --ids ignore, not {ids}")


def print_notes(notes: Iterable[str]) -> None:
    """Print lines to standard error."""
    for note in notes:
        print(note, file=sys.stderr)


def print_json(value: Any) -> None:
    """Print one JSON document."""
    print(output.json_text(value, sys.stdout.encoding or "utf-8"))


def print_result(as_json: bool, value: Any, text: str, stream: TextIO | None = None) -> None:
    """Print the result of a command: as one JSON document, or as text for people."""
    if as_json:
        print_json(value)
    else:
        print(text, file=stream)


def plain_table() -> "Table":
    """Return an empty table without borders."""
    from rich.table import Table

    return Table(box=None, pad_edge=False)


def check_outputs(
    written: Mapping[str, Path | None], *, read: Iterable[Path | None] = (), as_json: bool = False
) -> None:
    """Refuse output files that cannot be written, replace an input, or are in an input folder.

    Commands call this before any work, because the work may take hours. With `as_json`, the JSON
    document uses standard output.

    Raises:
        InputError: an option names such a file. Each such option is one fault.
    """
    used = {os.path.realpath(one) for one in read if one not in (None, output.STANDARD_OUTPUT)}
    folders = {path for path in used if os.path.isdir(path)}
    faults = []
    for option, path in written.items():
        if path is None:
            continue
        real, reason = os.path.realpath(path), output.reason_unwritable(path)
        if real in used:
            reason = f"this command already reads or writes {path}. Choose another file"
        elif as_json and output.is_standard_output(path):
            reason = "--json already uses standard output. Name a file"
        elif not output.is_standard_output(path) and os.path.dirname(real) in folders:
            reason = f"{path} is in a folder that this command reads. Choose another folder"
        faults += [Fault(reason, field=option)] if reason else []
        used.add(real)
    if faults:
        raise InputError(*faults)


def writable_home(path: Path | None) -> Home:
    """Return the home for a command that writes to it.

    Raises:
        InputError: the home cannot be written.
    """
    home = Home.at(path)
    output.refuse_unwritable_folder(home.root, "--home")
    return home


def message_stream(*outputs: Path | None) -> TextIO:
    """Return the stream for a summary: standard error if a result goes to standard output."""
    is_used = any(path is not None and output.is_standard_output(path) for path in outputs)
    return sys.stderr if is_used else sys.stdout


def column_mapping(columns: list[str] | None) -> dict[str, str] | None:
    """Read `["instruction=q"]` as `{"instruction": "q"}`."""
    return parse_assignments(columns, "--column FIELD=COLUMN") or None


def parse_assignments(items: list[str] | None, form: str) -> dict[str, str]:
    """Read `["a=b"]` as `{"a": "b"}`.

    Raises:
        typer.BadParameter: an item has another form. `form` is the right one, for the message.
    """
    pairs = [item.partition("=") for item in items or ()]
    bad = [name or "?" for name, equals, value in pairs if not (name and equals and value)]
    if bad:
        raise typer.BadParameter(f"write {form}, not {', '.join(bad)}")
    return {name: value for name, _, value in pairs}


def read_input(
    files: list[Path],
    column: list[str] | None,
    skip_bad: bool,
    ids: str,
    faults_file: Path | None = None,
) -> "RecordsFile":
    """Read records from files. The arguments are the values of the options of their names.

    Notes about the files go to standard error. They name `faults_file`, the file that will list
    every fault, if there is one.
    """
    from delift_pipeline.records.left_out import left_out_notes
    from delift_pipeline.records.read import read_records
    from delift_pipeline.stages.announce import announce_reading

    announce_reading([files], progress())
    mapping, chosen = column_mapping(column), parse_ids_option(ids)
    records = read_records(files, mapping=mapping, skip_bad=skip_bad, ids=chosen)
    print_notes([*left_out_notes(records.faults, records.left_out, faults_file), *records.notes])
    return records


COMPUTE = {
    **{own: own for own in ("engine", "device", "device_map", "batch_tokens", "memory_limit")},
    **{own: own for own in ("in_flight", "threads", "workers")},
    "tensor_parallel": "tensor_parallel_size",
    "gpu_memory": "gpu_memory_utilization",
}
"""Flags of the compute resource, with their names in `ModelOptions`."""


def _flag(help: str) -> Any:
    return field(default=None, metadata={"help": help})


@dataclass(frozen=True)
class ModelFlags:
    """The group of options of a model. None stands for an option that the user did not set."""

    revision: str | None = _flag("The branch, tag or commit to load from the Hugging Face hub.")
    template: str | None = _flag(TEMPLATE_HELP)
    window: int | None = _flag(
        "How many tokens the model reads at once: demonstration, prompt and answer "
        "[the model's limit, at most 2048]."
    )
    dtype: str | None = _flag(
        "The number format: float32, bfloat16 or float16 [the format of the preset, else float32]."
    )
    load_in: str | None = _flag("Quantize the weights with bitsandbytes: 4bit or 8bit.")
    engine: str | None = _flag(
        "The scoring engine: transformers, vllm, or naive (slow, for checks) "
        "[the engine of the preset, else transformers]."
    )
    device: str | None = _flag("The device that runs the model: auto, cpu, cuda or cuda:N [auto].")
    device_map: str | None = _flag(
        "Spread one model over several GPUs: auto, balanced, balanced_low_0 or sequential."
    )
    tensor_parallel: int | None = _flag(
        "How many GPUs share one model in vLLM [the number of the preset, else 1]."
    )
    gpu_memory: float | None = _flag("The share of each GPU's memory that vLLM may use [0.9].")
    batch_tokens: int | None = _flag(
        "How many tokens of targets one batch may have [CPU: 2048, or 4096 for tiny "
        "models; GPU: 65536; vllm: the default of vLLM]."
    )
    memory_limit: float | None = _flag(
        "How many GiB scoring may use in addition to the loaded model [CPU: 1.5; GPU: "
        "80 % of the free memory]."
    )
    in_flight: int | None = _flag(
        "How many demonstrations may share a batch [CPU: 1; GPU: 64, or 4 in float32]."
    )
    threads: int | None = _flag("How many CPU threads each process uses [the default of PyTorch].")
    workers: int | None = _flag("How many processes score pairs [1]. Use one process for each GPU.")
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Allow the Python code in the model's folder or hub repository to run."},
    )

    def options(self, model: str) -> "ModelOptions":
        """Return the validated options of a model.

        Raises:
            InputError: an option is out of range or contradicts another. Each is one fault.
        """
        from delift_pipeline.scoring.options import read_options

        values = {COMPUTE.get(name, name): value for name, value in self.values().items()}
        options = {COMPUTE.get(n, n): f"--{n.replace('_', '-')}" for n in ("model", *vars(self))}
        return read_options({"model": model, **values}, options)

    def options_for(self, home: Home, version: str | None, model: str) -> "ModelOptions":
        """Return the options of a model; without --template it gets that of the version, if any.

        Raises:
            InputError: as `options`.
        """
        from delift_pipeline.stages.version_model import with_version_template

        options = self.options(model)
        if self.template or not version:
            return options
        return with_version_template(home, version, options)

    def values(self) -> dict[str, Any]:
        """Return the flags that the user set, by name."""
        # Compare with `is`, because 0 equals False but is a value that validation has to see.
        values = vars(self).items()
        return {name: value for name, value in values if value is not None and value is not False}

    def resources(self, model: str | None) -> dict[str, Any]:
        """Return the run config of the `language_model` and `compute` resources.

        Raises:
            InputError: as `options`.
        """
        self.options(model or "the version's own")
        flags = self.values().items()
        compute = {COMPUTE[name]: value for name, value in flags if name in COMPUTE}
        language_model = {name: value for name, value in flags if name not in COMPUTE}
        language_model |= {"model": model} if model else {}
        config = {"language_model": language_model, "compute": compute}
        return {name: {"config": values} for name, values in config.items() if values}


NO_FLAGS = ModelFlags()


def with_model_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Replace a command's parameter `flags` by one option for each field of `ModelFlags`.

    A field that the command has as its own option is left out. Typer reads options from the
    signature of a command and has no groups of options.
    """
    kind, group = inspect.Parameter.KEYWORD_ONLY, {}
    own = inspect.signature(command).parameters
    for one in (one for one in fields(ModelFlags) if one.name not in own):
        name = f"--{one.name.replace('_', '-')}"
        option = Option(one.default, name, help=one.metadata["help"])
        group[one.name] = inspect.Parameter(one.name, kind, default=option, annotation=one.type)
    options: dict[str, inspect.Parameter] = {}
    for name, one in inspect.signature(command, eval_str=True).parameters.items():
        options |= group if name == "flags" else {name: one.replace(kind=kind)}

    @wraps(command)
    def run_command(**values: Any) -> None:
        flags = ModelFlags(**{name: values.pop(name) for name in group})
        command(**values, flags=flags)

    run_command.__signature__ = inspect.Signature(list(options.values()))  # pyright: ignore
    run_command.__annotations__ = {name: one.annotation for name, one in options.items()}
    return run_command
