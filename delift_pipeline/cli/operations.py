"""`delift forget`, `doctor`, `gc`, `verify`, `query`, `catalog` and `plan`: manage a home."""

import csv
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer import Argument, Option

from delift_pipeline.cli import options as shared
from delift_pipeline.core.errors import DeliftError, InputError
from delift_pipeline.core.home import FINGERPRINT_PATTERN, Home
from delift_pipeline.records.tabular import csv_cell

if TYPE_CHECKING:
    from delift_pipeline.operations.cost import Cost
    from delift_pipeline.scoring.options import ModelOptions

MOST_ROWS = 100


def forget(
    records: list[str] = Argument(
        ...,
        metavar="ID",
        help="The record_id of a record, the beginning of its record_id, or its id in the file.",
    ),
    dry_run: bool = Option(False, "--dry-run", help="List what would change, and change nothing."),
    home: Path | None = shared.HOME,
    as_json: bool = shared.AS_JSON,
) -> None:
    """Delete records for good.

    All results that were made from them are marked. The next run makes these results again.

    Example: delift forget ID --dry-run
    """
    from delift_pipeline.operations import forget as operation

    removal = operation.forget(_open_home(home, written=not dry_run), records, dry_run=dry_run)
    done, removed, marked = (
        ("forgotten", "removed", "marked for rebuilding")
        if removal.applied
        else ("would be forgotten (--dry-run)", "would be removed", "would be marked")
    )
    lines = [f"{', '.join(removal.records)}: {done}"]
    lines += [
        f"  {removed} from the {', '.join(parts)} of {v}" for v, parts in removal.versions.items()
    ]
    lines += [f"  {marked}: {one['path']}" for one in removal.artifacts]
    lines += [f"  not cleaned, do it yourself: {line}" for line in removal.beyond]
    lines += [f"next: {run}" for run in removal.runs]
    shared.print_result(as_json, asdict(removal), "\n".join(lines))


def doctor(
    self_test: bool = Option(True, help="Also score and select some records with the demo model."),
    home: Path | None = shared.HOME,
    as_json: bool = shared.AS_JSON,
) -> None:
    """Check packages, GPU, disk, store, databases, runs and ports.

    The exit status is 1 if one of these is broken.

    Example: delift doctor --home ~/delift
    """
    from delift_pipeline.cli.graph import runs
    from delift_pipeline.operations.doctor import examine

    findings = examine(Home.at(home), self_test=self_test, more=[runs])
    broken = any(one.state == "broken" for one in findings)
    lines = [
        f"{one.state:8}{one.name:11}{one.note}{f': {one.todo}' if one.todo else ''}"
        for one in findings
    ]
    value = {"ok": not broken, "findings": [asdict(one) for one in findings]}
    shared.print_result(as_json, value, "\n".join(lines))
    if broken:
        raise typer.Exit(1)


def gc(
    apply: bool = Option(False, "--apply", help="Delete the listed files."),
    home: Path | None = shared.HOME,
    as_json: bool = shared.AS_JSON,
) -> None:
    """List or delete files that nothing needs any more.

    These are remains of killed runs, and results that nothing uses.

    Example: delift gc --apply
    """
    from delift_pipeline.operations.gc import collect_garbage

    garbage = collect_garbage(_open_home(home, written=apply), apply=apply)
    lines = [f"{one.bytes / 1e6:10,.1f} MB  {one.path}: {one.reason}" for one in garbage.waste]
    done = "deleted" if apply else "can be deleted (`delift gc --apply` does it)"
    lines.append(f"{garbage.bytes / 1e6:10,.1f} MB  in {len(garbage.waste):,} places {done}")
    shared.print_result(as_json, asdict(garbage), "\n".join(lines))


def _open_home(home: Path | None, *, written: bool = False) -> Home:
    """Return the home. `written` says whether the command writes to it.

    Raises:
        InputError: there is no home, or it cannot be written.
    """
    place = Home.at(home)
    if not place.root.is_dir():
        reason = f"{place.root} is not a DELIFT home. Pass --home DIR, or run `delift ingest` first"
        raise InputError(reason, field="--home")
    return shared.writable_home(home) if written else place


def verify(
    repair: bool = Option(
        False,
        "--repair",
        help="Move damaged files of scores to the folder `aside`. The next run scores "
        "their pairs again.",
    ),
    home: Path | None = shared.HOME,
    as_json: bool = shared.AS_JSON,
) -> None:
    """Check the checksums of all stored scores.

    The exit status is 1 if a file of scores is damaged.

    Example: delift verify --repair
    """
    folder = Home.at(home).root / "scores"
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    stores = [
        _check_store(folder / one, repair) for one in names if FINGERPRINT_PATTERN.fullmatch(one)
    ]
    bad = sum(len(store["bad"]) for store in stores)
    done = "; moved, the next run scores its pairs again" if repair else ""
    lines = []
    for store in stores:
        name, damaged = store["fingerprint"], store["bad"]
        lines.append(f"{name}: {store['shards']:,} shards, {len(damaged)} damaged")
        lines += [f"{name}: {store['manifest']}"] if store["manifest"] else []
        lines += [f"{name}/{shard['shard']}: {shard['reason']}{done}" for shard in damaged]
    if bad and not repair:
        lines.append("delift verify --repair moves damaged shards to aside/")
    value = {"stores": stores, "bad": bad, "repaired": repair and bad > 0}
    shared.print_result(as_json, value, "\n".join(lines or ["no scores are stored here"]))
    if bad and not repair:
        raise typer.Exit(1)


def _check_store(folder: Path, repair: bool) -> dict[str, Any]:
    from delift_pipeline.core.manifest import read_manifest
    from delift_pipeline.scoring.shards import shard_names
    from delift_pipeline.scoring.store import ScoreStore

    store, problem = ScoreStore(folder), None
    shards, bad = len(shard_names(store.index.folder)), store.verify()
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
    damaged = [{"shard": shard.name, "reason": shard.reason} for shard in bad]
    return {"fingerprint": folder.name, "shards": shards, "manifest": problem, "bad": damaged}


def query(
    sql: str = Argument(..., help="One SELECT statement; docs/queries.md lists the views."),
    as_csv: bool = Option(False, "--csv", help="Print comma-separated values with a header."),
    home: Path | None = shared.HOME,
    as_json: bool = shared.AS_JSON,
) -> None:
    """Query everything in a home with SQL.

    For example: records, scores, utilities, subsets, reasons, metrics and lineage.

    Example: delift query "SELECT version, count(*) FROM records GROUP BY ALL"
    """
    from delift_pipeline.operations.query import run_query

    if as_csv and as_json:
        raise InputError("pass --json or --csv, not both")
    answer = run_query(_open_home(home), sql)
    shared.print_notes(answer.left_out)
    if as_json:
        shared.print_json([dict(zip(answer.columns, row, strict=True)) for row in answer.rows])
        return
    if as_csv:
        writer = csv.writer(sys.stdout)
        writer.writerow(answer.columns)
        writer.writerows([csv_cell(value) for value in row] for row in answer.rows)
        return
    from rich.console import Console
    from rich.text import Text

    table = shared.plain_table()
    for name in answer.columns:
        table.add_column(Text(name), overflow="fold")
    for row in answer.rows[:MOST_ROWS]:
        cells = (csv_cell(value) for value in row)
        table.add_row(*(Text("".join(map(_escape_unprintable, cell))) for cell in cells))
    Console(soft_wrap=not sys.stdout.isatty()).print(table)
    more = len(answer.rows) - MOST_ROWS
    if more > 0:
        print(f"and {more:,} more rows (--csv and --json print all)", file=sys.stderr)


def _escape_unprintable(letter: str) -> str:
    """Return a character, or its escape if a terminal would obey it instead of printing it."""
    return letter if letter.isprintable() else letter.encode("unicode_escape").decode()


def catalog(home: Path | None = shared.HOME, as_json: bool = shared.AS_JSON) -> None:
    """Rebuild catalog.duckdb, which `delift query` reads.

    Example: delift catalog --home ~/delift
    """
    from delift_pipeline.operations.catalog import refresh_catalog

    place = _open_home(home, written=True)
    result = refresh_catalog(place, anew=True)
    size = place.catalog.stat().st_size
    value = {"path": place.catalog.name, "artifacts": result.sources, "bytes": size}
    text = f"{place.catalog.name}: {result.sources:,} artifacts, {size / 1e6:,.1f} MB"
    shared.print_result(as_json, value, text)


@shared.with_model_flags
def plan(
    files: list[Path] | None = Argument(
        None, metavar="FILE", help="Files of records. Give files or --version, not both."
    ),
    version: str | None = Option(None, help="A stored version."),
    arm: list[str] | None = Option(
        None,
        help="An arm of the planned run; repeatable [all enabled arms that apply to the "
        "version; for FILE: instruction_tuning.delift_trusted].",
    ),
    model: str | None = shared.OWN_MODEL,
    measure: bool = Option(
        True, help="If no scores are stored, run the model on some records to measure its speed."
    ),
    column: list[str] | None = shared.COLUMN,
    ids: str = shared.IDS,
    skip_bad: bool = shared.SKIP_BAD,
    flags: shared.ModelFlags = shared.NO_FLAGS,
    home: Path | None = shared.HOME,
    as_json: bool = shared.AS_JSON,
) -> None:
    """Estimate what a run would cost, before you start it.

    The estimate has the pairs, time, disk space and training steps.

    Example: delift plan data.jsonl --model demo
    """
    from delift_pipeline.operations.cost import cost_of, cost_of_records

    place, names = Home.at(home), arm or []
    if bool(files) == (version is not None):
        raise InputError("pass either FILE or --version V of a stored version")
    if version is not None and version not in place.versions() and Path(version).is_file():
        files = [Path(version)]
    if files:
        options = flags.options(model) if model else None
        read = shared.read_input(files, column, skip_bad, ids)
        name = ", ".join(map(str, files))
        cost = cost_of_records(name, read.frame, place, names, options, measure=measure)
    elif version is not None:
        options = _model_of_version(place, version, model, flags)
        cost = cost_of(place, version, names, options, measure=measure)
    shared.print_result(as_json, asdict(cost), _cost_text(cost))


def _model_of_version(
    home: Home, version: str, model: str | None, flags: shared.ModelFlags
) -> "ModelOptions | None":
    """Return the options of the given model, else of the version's own, with its template."""
    from delift_pipeline.core.home import model_path
    from delift_pipeline.records.stored import version_manifest

    own = version_manifest(home, version).details
    stored = model_path(home, own["model"]) if own.get("model") and not model else None
    name = model or stored or os.environ.get("DELIFT_MODEL")
    return flags.options_for(home, version, name) if name else None


def _cost_text(cost: "Cost") -> str:
    from delift_pipeline.scoring.report import duration_text

    lines = [f"{cost.name}: {cost.records:,} records"]
    for one in cost.blocks:
        pairs = f"{'' if one.exact else 'at most '}{one.pairs:,}"
        kind = "every pair" if one.dense else "near pairs"
        lines.append(f"  pairs     {one.block}: {pairs} ({kind}), {one.missing:,} to score")
    if cost.template is not None:
        lines.append(f"  template  {cost.template}")
    if cost.passes:
        lines.append(f"  support   {cost.passes:,} passes over answers alone, two a record")
    time = "not known" if cost.seconds is None else f"about {duration_text(cost.seconds)}"
    rate = f" ({cost.rate:,.0f} pairs a second by {cost.rate_from})" if cost.rate else ""
    lines += [
        f"  scoring   {time}{rate}"
        if cost.pairs or cost.passes
        else "  scoring   nothing is missing: every score is stored",
        f"  disk      {cost.disk_bytes / 1e6:,.1f} MB more for scores and kernel",
    ]
    for arm in cost.arms:
        took = "time not known" if arm.seconds is None else f"about {duration_text(arm.seconds)}"
        lines.append(f"  training  {arm.arm}: {arm.records:,} records, {arm.steps:,} steps, {took}")
    for arm in cost.disabled:
        took = f", about {duration_text(arm.seconds)}" if arm.seconds is not None else ""
        lines.append(f"  disabled  {arm.arm}: with it, {arm.pairs:,} pairs to score{took}")
    if cost.hours is not None:
        lines.append(f"  in all    {cost.hours:,.2f} {'GPU hours' if cost.gpu else 'hours here'}")
    return "\n".join([*lines, *(f"  note      {note}" for note in cost.notes)])
