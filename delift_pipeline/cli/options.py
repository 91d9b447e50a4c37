"""Options that several commands share."""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.progress import Progress, progress_for

HomeOption = Annotated[
    Path | None,
    typer.Option("--home", envvar="DELIFT_HOME", help="The home directory [./delift_home]."),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="One JSON document on standard output, nothing else.")
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        envvar="DELIFT_MODEL",
        help="A model folder, a hub id, preset:NAME, or `demo` (the packaged one).",
    ),
]
TemplateOption = Annotated[
    str | None,
    typer.Option(help="Prompt template: plain, paper, world, chat (the model's own), a file."),
]
SkipBadOption = Annotated[
    bool, typer.Option("--skip-bad", help="Load the good records and say how many were left out.")
]
ColumnOption = Annotated[
    list[str] | None,
    typer.Option(
        "--column", help="FIELD=COLUMN, for a file with columns of other names; repeatable."
    ),
]


def progress() -> Progress:
    """A bar where standard error is a terminal, plain lines elsewhere."""
    return progress_for(sys.stderr.isatty())


def print_json(value: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(value, ensure_ascii=False))


def refuse_overwriting(read: Iterable[Path | None], written: Mapping[str, Path | None]) -> None:
    """Refuse output files that would replace an input file or each other.

    Args:
        read: The input files.
        written: The output files by option.

    Raises:
        Refused: one fault for each such option.
    """
    taken = {path.resolve() for path in read if path is not None}
    faults = []
    for option, path in written.items():
        if path is None:
            continue
        if path.resolve() in taken:
            reason = f"{path} is read or written by this command already: choose another file"
            faults.append(Fault(reason, field=option))
        taken.add(path.resolve())
    if faults:
        raise Refused(*faults)


def column_mapping(columns: list[str] | None) -> dict[str, str] | None:
    """`["instruction=q"]` as `{"instruction": "q"}`.

    Raises:
        typer.BadParameter: an item has no `=`.
    """
    if not columns:
        return None
    pairs = [item.partition("=") for item in columns]
    bad = [field for field, equals, column in pairs if not (field and equals and column)]
    if bad:
        raise typer.BadParameter(f"write --column FIELD=COLUMN, not {', '.join(bad)}")
    return {field: column for field, _, column in pairs}
