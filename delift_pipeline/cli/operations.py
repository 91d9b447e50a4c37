"""`delift forget`, `delift doctor` and `delift gc`: looking after a home."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from delift_pipeline.cli.options import (
    HomeOption,
    JsonOption,
    print_json,
    print_result,
    writable_home,
)
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

    found = forgotten(_existing(home, written=not dry_run), records, dry_run=dry_run)
    print_result(as_json, found.as_json(), _forgotten_text(found))


def doctor(
    self_test: Annotated[
        bool, typer.Option(help="Score and select a few records with the packaged model.")
    ] = True,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look at versions, GPU, disk, store, databases, runs and ports; status 1 if one is broken."""
    from delift_pipeline.cli.run_findings import runs
    from delift_pipeline.operations.doctor import examine

    findings = examine(Home.at(home), self_test=self_test, more=[runs])
    broken = [finding for finding in findings if finding.state == "broken"]
    if as_json:
        print_json({"ok": not broken, "findings": [finding.as_json() for finding in findings]})
    else:
        for finding in findings:
            todo = f": {finding.todo}" if finding.todo else ""
            print(f"{finding.state:8}{finding.name:11}{finding.note}{todo}")
    if broken:
        raise typer.Exit(1)


def gc(
    apply: Annotated[bool, typer.Option("--apply", help="Remove what is listed.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what nothing needs any more: leftovers of kills, and artifacts that nothing names."""
    from delift_pipeline.operations.gc import collect

    found = collect(_existing(home, written=apply), apply=apply)
    if as_json:
        print_json(found.as_json())
        return
    for one in found.waste:
        print(f"{one.bytes / 1e6:10,.1f} MB  {one.path}: {one.reason}")
    done = "removed" if apply else "can go (delift gc --apply removes it)"
    print(f"{found.bytes / 1e6:10,.1f} MB  in {len(found.waste):,} places {done}")


def _existing(home: Path | None, *, written: bool) -> Home:
    """The home, if there is one and it can be written where that is needed."""
    place = existing(Home.at(home))
    return writable_home(home) if written else place


def _forgotten_text(found: "Forgotten") -> str:
    done = "forgotten" if found.applied else "would be forgotten (--dry-run)"
    marked = "marked for rebuilding" if found.applied else "would be marked"
    lines = [f"{', '.join(found.records)}: {done}"]
    lines += [f"  out of the {', '.join(parts)} of {v}" for v, parts in found.versions.items()]
    lines += [f"  {marked}: {one['path']}" for one in found.artifacts]
    lines += [f"  by hand: {line}" for line in found.beyond]
    return "\n".join([*lines, *(f"next: {run}" for run in found.runs)])
