"""`delift forget`, `doctor`, `gc`, `verify`, `query` and `catalog`: looking after a home."""

import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from delift_pipeline.cli.options import (
    HomeOption,
    JsonOption,
    print_json,
    print_result,
    writable_home,
)
from delift_pipeline.errors import Fault, Refused
from delift_pipeline.records.csv_rows import csv_cell
from delift_pipeline.storage.home import FINGERPRINT_PATTERN, Home

if TYPE_CHECKING:
    from delift_pipeline.operations.query import Answer

ROWS_SHOWN = 100


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
    done = "forgotten" if found.applied else "would be forgotten (--dry-run)"
    marked = "marked for rebuilding" if found.applied else "would be marked"
    lines = [f"{', '.join(found.records)}: {done}"]
    lines += [f"  out of the {', '.join(parts)} of {v}" for v, parts in found.versions.items()]
    lines += [f"  {marked}: {one['path']}" for one in found.artifacts]
    lines += [f"  by hand: {line}" for line in found.beyond]
    lines += [f"next: {run}" for run in found.runs]
    print_result(as_json, found.as_json(), "\n".join(lines))


def doctor(
    self_test: Annotated[
        bool, typer.Option(help="Score and select a few records with the packaged model.")
    ] = True,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look at versions, GPU, disk, store, databases, runs and ports; status 1 if one is broken."""
    from delift_pipeline.cli.graph import run_findings
    from delift_pipeline.operations.doctor import examine

    findings = examine(Home.at(home), self_test=self_test, more=[run_findings])
    broken = any(one.state == "broken" for one in findings)
    lines = [
        f"{one.state:8}{one.name:11}{one.note}{f': {one.todo}' if one.todo else ''}"
        for one in findings
    ]
    value = {"ok": not broken, "findings": [one.as_json() for one in findings]}
    print_result(as_json, value, "\n".join(lines))
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
    lines = [f"{one.bytes / 1e6:10,.1f} MB  {one.path}: {one.reason}" for one in found.waste]
    done = "removed" if apply else "can go (delift gc --apply removes it)"
    lines.append(f"{found.bytes / 1e6:10,.1f} MB  in {len(found.waste):,} places {done}")
    print_result(as_json, found.as_json(), "\n".join(lines))


def _existing(home: Path | None, *, written: bool = False) -> Home:
    """The home, if there is one and it can be written where that is needed.

    Raises:
        Refused: there is none, or nothing can be written there.
    """
    place = Home.at(home)
    if not place.root.is_dir():
        reason = f"{place.root} is no home: give --home DIR, or ingest a version first"
        raise Refused(Fault(reason, field="--home"))
    return writable_home(home) if written else place


def verify(
    repair: Annotated[
        bool, typer.Option("--repair", help="Set bad shards aside, so that they are scored again.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read every byte of every score shard; exit status 1 where a damaged one is left."""
    folder = Home.at(home).root / "scores"
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    stores = [_checked(folder / one, repair) for one in names if FINGERPRINT_PATTERN.fullmatch(one)]
    bad = sum(len(store["bad"]) for store in stores)
    done = "; set aside, its pairs are scored again" if repair else ""
    lines = []
    for store in stores:
        name = store["fingerprint"]
        lines.append(f"{name}: {store['shards']:,} shards, {len(store['bad'])} damaged")
        if store["manifest"]:
            lines.append(f"{name}: {store['manifest']}")
        lines += [f"{name}/{shard['shard']}: {shard['reason']}{done}" for shard in store["bad"]]
    if bad and not repair:
        lines.append("delift verify --repair sets damaged shards aside")
    value = {"stores": stores, "bad": bad, "repaired": repair and bad > 0}
    print_result(as_json, value, "\n".join(lines or ["no scores are stored here"]))
    if bad and not repair:
        raise typer.Exit(1)


def _checked(folder: Path, repair: bool) -> dict[str, Any]:
    from delift_pipeline.errors import DeliftError
    from delift_pipeline.scoring.index import shard_names
    from delift_pipeline.scoring.store import ScoreStore
    from delift_pipeline.storage.manifest import read_manifest

    store = ScoreStore(folder)
    shards, bad, problem = len(shard_names(store.index.folder)), store.verify(), ""
    try:
        manifest = read_manifest(folder)
        if manifest is None:
            problem = "it has no manifest"
        elif manifest.content_hash != folder.name:
            problem = f"its manifest is that of {manifest.content_hash}"
    except DeliftError as error:
        problem = str(error)
    for shard in bad if repair else []:
        store.set_aside(shard.name)
    return {
        "fingerprint": folder.name,
        "shards": shards,
        "manifest": problem or None,
        "bad": [{"shard": shard.name, "reason": shard.reason} for shard in bad],
    }


def query(
    sql: Annotated[str, typer.Argument(help="One SELECT; docs/queries.md lists the views.")],
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Comma-separated values with a header.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask about records, scores, utilities, subsets, reasons, metrics and lineage in SQL."""
    from delift_pipeline.operations.query import run_query

    if as_csv and as_json:
        raise Refused(Fault("give --json or --csv, not both"))
    answer = run_query(_existing(home), sql)
    for line in answer.left_out:
        print(line, file=sys.stderr)
    if as_json:
        print_json(answer.as_json())
    elif as_csv:
        writer = csv.writer(sys.stdout)
        writer.writerow(answer.columns)
        writer.writerows([csv_cell(value) for value in row] for row in answer.rows)
    else:
        _print_table(answer)


def catalog(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Make catalog.duckdb anew from the files of the home."""
    from delift_pipeline.operations.catalog import refresh_catalog

    place = _existing(home, written=True)
    made = refresh_catalog(place, anew=True)
    size = place.catalog.stat().st_size
    value = {"path": place.catalog.name, "artifacts": made.sources, "bytes": size}
    text = f"{place.catalog.name}: {made.sources:,} artifacts, {size / 1e6:,.1f} MB"
    print_result(as_json, value, text)


def _print_table(answer: "Answer") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in answer.columns:
        table.add_column(Text(name), overflow="fold")
    for row in answer.rows[:ROWS_SHOWN]:
        cells = (csv_cell(value) for value in row)
        table.add_row(*(Text("".join(map(_visible, cell))) for cell in cells))
    Console(soft_wrap=not sys.stdout.isatty()).print(table)
    more = len(answer.rows) - ROWS_SHOWN
    if more > 0:
        print(f"and {more:,} more rows (--csv and --json give all)", file=sys.stderr)


def _visible(letter: str) -> str:
    """A character, or an escape for one that a terminal would obey."""
    return letter if letter.isprintable() else letter.encode("unicode_escape").decode()
