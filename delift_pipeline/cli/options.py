"""Options that several commands share, and the group of those that say how a model is run."""

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
from delift_pipeline.core.errors import Fault, Refused
from delift_pipeline.core.home import Home
from delift_pipeline.core.progress import BarProgress, LineProgress, Progress

if TYPE_CHECKING:
    from rich.table import Table

    from delift_pipeline.records.read import Ids, RecordsFile
    from delift_pipeline.scoring.options import ModelOptions

# Options that commands share; a command gives them their type.
HOME: Any = Option(None, "--home", envvar="DELIFT_HOME", help="The home directory [./delift_home].")
AS_JSON: Any = Option(
    False, "--json", help="Print one JSON document on standard output and nothing else."
)
MODEL_HELP = "A model folder, a hub id, preset:NAME, or `demo` (the packaged one)."
MODEL: Any = Option(..., "--model", envvar="DELIFT_MODEL", help=MODEL_HELP)
OWN_MODEL: Any = Option(
    None, "--model", envvar="DELIFT_MODEL", help="The model [the version's own]."
)
TARGET: Any = Option(None, "--target", help="Example records of the task to select for.")
TEMPLATE_HELP = "Prompt template: plain, paper, world, chat (the model's own) or a file."
TEMPLATE: Any = Option(None, help=TEMPLATE_HELP)
SKIP_BAD: Any = Option(
    False,
    "--skip-bad",
    help="Leave faulty records out, count them by reason and list their faults.",
)
IDS: Any = Option("keep", "--ids", help="keep, or ignore (do not use the ids of the file).")
COLUMN: Any = Option(
    None, "--column", help="FIELD=COLUMN, if the file names its columns otherwise; repeatable."
)

DEBUG_VARIABLE = "DELIFT_DEBUG"
"""Where it is set, an error is shown with its traceback."""


def debugging() -> bool:
    """Whether the user wants tracebacks and every message."""
    return os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0")


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for what runs inside; afterwards they are as they were."""
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
    """A bar where standard error is a terminal, plain lines elsewhere."""
    return BarProgress() if sys.stderr.isatty() else LineProgress()


def ids_choice(ids: str) -> "Ids":
    """What `--ids` says.

    Raises:
        typer.BadParameter: it is neither of the choices.
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
    """Print what a command found: one JSON document, or the text for people."""
    if as_json:
        print_json(value)
    else:
        print(text, file=stream)


def plain_table() -> "Table":
    """A table without borders."""
    from rich.table import Table

    return Table(box=None, pad_edge=False)


def check_outputs(
    written: Mapping[str, Path | None], *, read: Iterable[Path | None] = (), as_json: bool = False
) -> None:
    """Refuse output files that cannot be written, would replace an input, or join its folder.

    Called before any work, since the work may take hours. With `as_json` a document takes
    standard output.

    Raises:
        Refused: one fault for each such option.
    """
    taken = {os.path.realpath(one) for one in read if one not in (None, output.STANDARD_OUTPUT)}
    folders = {path for path in taken if os.path.isdir(path)}
    faults = []
    for option, path in written.items():
        if path is None:
            continue
        real, reason = os.path.realpath(path), output.reason_unwritable(path)
        if real in taken:
            reason = f"{path} is read or written by this command already: choose another file"
        elif as_json and output.is_standard_output(path):
            reason = "standard output holds the document of --json already: name a file"
        elif not output.is_standard_output(path) and os.path.dirname(real) in folders:
            reason = f"{path} is in a folder that this command reads: choose another folder"
        faults += [Fault(reason, field=option)] if reason else []
        taken.add(real)
    if faults:
        raise Refused(*faults)


def writable_home(path: Path | None) -> Home:
    """The home, for a command that writes to it.

    Raises:
        Refused: nothing can be written there.
    """
    home = Home.at(path)
    output.refuse_unwritable_folder(home.root, "--home")
    return home


def message_stream(*outputs: Path | None) -> TextIO:
    """Where a command prints its summary: standard error where a result takes standard output."""
    taken = any(path is not None and output.is_standard_output(path) for path in outputs)
    return sys.stderr if taken else sys.stdout


def column_mapping(columns: list[str] | None) -> dict[str, str] | None:
    """`["instruction=q"]` as `{"instruction": "q"}`."""
    return named_values(columns, "--column FIELD=COLUMN") or None


def named_values(items: list[str] | None, form: str) -> dict[str, str]:
    """`["a=b"]` as `{"a": "b"}`.

    Raises:
        typer.BadParameter: an item is not of that form, such as `--option NAME=VALUE`.
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
    listed: Path | None = None,
) -> "RecordsFile":
    """The records of files, read as the options of these names say.

    What there is to know of their reading goes to standard error; it names the file that lists
    every fault, if there is to be one.
    """
    from delift_pipeline.records.left_out import left_out_notes
    from delift_pipeline.records.read import read_records
    from delift_pipeline.stages.announce import announce_reading

    announce_reading([files], progress())
    mapping, chosen = column_mapping(column), ids_choice(ids)
    records = read_records(files, mapping=mapping, skip_bad=skip_bad, ids=chosen)
    print_notes([*left_out_notes(records.faults, records.left_out, listed), *records.notes])
    return records


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
    window: int | None = _flag("Most tokens of a prompt [the model's, at most 2048].")
    dtype: str | None = _flag("float32, bfloat16 or float16 [the preset's, else float32].")
    load_in: str | None = _flag("Load weights in 4bit or 8bit with bitsandbytes.")
    engine: str | None = _flag("transformers, vllm, or naive (slow, for checks) [transformers].")
    device: str | None = _flag("auto, cpu, cuda or cuda:N [auto].")
    device_map: str | None = _flag(
        "Spread one model over several GPUs: auto, balanced, balanced_low_0 or sequential."
    )
    tensor_parallel: int | None = _flag("GPUs that vLLM splits the model over [1].")
    gpu_memory: float | None = _flag("Share of each GPU's memory for vLLM [0.9].")
    batch_tokens: int | None = _flag("Most target tokens in one batch [depends on the device].")
    memory_limit: float | None = _flag(
        "Most GiB for scoring besides the model [CPU: 1.5; GPU: 0.8 of the free]."
    )
    in_flight: int | None = _flag("Demonstrations scored in one batch [CPU: 1; GPU: 4].")
    threads: int | None = _flag("CPU threads of each process [PyTorch's default].")
    workers: int | None = _flag("Scoring processes; use one for each GPU [1].")
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
    kind, group = inspect.Parameter.KEYWORD_ONLY, {}
    for one in fields(ModelFlags):
        name = f"--{one.name.replace('_', '-')}"
        option = Option(one.default, name, help=one.metadata["help"])
        group[one.name] = inspect.Parameter(one.name, kind, default=option, annotation=one.type)
    options: dict[str, inspect.Parameter] = {}
    for name, one in inspect.signature(command, eval_str=True).parameters.items():
        options |= group if name == "flags" else {name: one.replace(kind=kind)}

    @wraps(command)
    def with_flags(**given: Any) -> None:
        flags = ModelFlags(**{name: given.pop(name) for name in group})
        command(**given, flags=flags)

    with_flags.__signature__ = inspect.Signature(list(options.values()))  # pyright: ignore
    with_flags.__annotations__ = {name: one.annotation for name, one in options.items()}
    return with_flags
