"""`delift forget`, `delift doctor` and `delift gc`: looking after a home."""

from typing import TYPE_CHECKING, Annotated

import typer

from delift_pipeline.cli.options import HomeOption, JsonOption, print_json
from delift_pipeline.cli.query import existing
from delift_pipeline.storage.home import Home

if TYPE_CHECKING:
    from delift_pipeline.operations.forget import Forgotten


def forget(
    records: Annotated[
        list[str], typer.Argument(metavar="ID...", help="record_ids, or the file's own ids.")
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be touched; change nothing.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take records out of the data for ever, and mark everything made of them for rebuilding."""
    from delift_pipeline.operations.forget import forget as forgotten

    found = forgotten(existing(Home.at(home)), records, dry_run=dry_run)
    if as_json:
        print_json(found.as_json())
    else:
        print(_forgotten_text(found))


def _forgotten_text(found: "Forgotten") -> str:
    done = "forgotten" if found.applied else "would be forgotten (--dry-run)"
    marked = "marked for rebuilding" if found.applied else "would be marked"
    lines = [f"{', '.join(found.records)}: {done}"]
    lines += [f"  out of the {', '.join(parts)} of {v}" for v, parts in found.versions.items()]
    lines += [f"  {marked}: {one['path']}" for one in found.artifacts]
    lines += [f"  by hand: {line}" for line in found.beyond]
    return "\n".join([*lines, *(f"next: {run}" for run in found.runs)])
