"""`delift forget`, `doctor`, `gc` and `verify`: looking after a home."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from delift_pipeline.cli.options import (
    HomeOption,
    JsonOption,
    print_result,
    writable_home,
)
from delift_pipeline.cli.query import existing
from delift_pipeline.storage.home import FINGERPRINT_PATTERN, Home

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
    from delift_pipeline.cli.interrupted import run_findings
    from delift_pipeline.operations.doctor import examine

    findings = examine(Home.at(home), self_test=self_test, more=[run_findings])
    broken = [finding for finding in findings if finding.state == "broken"]
    lines = [
        f"{one.state:8}{one.name:11}{one.note}{f': {one.todo}' if one.todo else ''}"
        for one in findings
    ]
    value = {"ok": not broken, "findings": [finding.as_json() for finding in findings]}
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
    stores = [folder / name for name in names if FINGERPRINT_PATTERN.fullmatch(name)]
    found = [_checked(store, repair) for store in stores]
    bad = [shard for store in found for shard in store["bad"]]
    value = {"stores": found, "bad": len(bad), "repaired": repair and bool(bad)}
    print_result(as_json, value, "\n".join(_lines(found, repair)))
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


def _lines(stores: list[dict[str, Any]], repair: bool) -> list[str]:
    lines = []
    for store in stores:
        name = store["fingerprint"]
        lines.append(f"{name}: {store['shards']:,} shards, {len(store['bad'])} damaged")
        if store["manifest"]:
            lines.append(f"{name}: {store['manifest']}")
        done = "; set aside, its pairs are scored again" if repair else ""
        lines += [f"{name}/{bad['shard']}: {bad['reason']}{done}" for bad in store["bad"]]
    if any(store["bad"] for store in stores) and not repair:
        lines.append("delift verify --repair sets damaged shards aside")
    return lines or ["no scores are stored here"]
