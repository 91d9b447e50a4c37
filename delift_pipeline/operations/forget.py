"""Forgetting a record: remove it from the data for good, and mark what was made of it.

The record's texts are removed from `datasets/` at once. Artifacts that were made of them are
marked, and the next run makes them without the record. `forgotten.json` has the ids, so a later
file with the record is ingested without it. If the process is killed, the same command completes
the work.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, product
from pathlib import Path

import polars as pl
from filelock import FileLock

from delift_pipeline.core.atomic import replace_folder, write_parquet
from delift_pipeline.core.errors import InputError
from delift_pipeline.core.hashing import digest_json
from delift_pipeline.core.home import BASE_MODEL, Home
from delift_pipeline.core.manifest import MANIFEST, mark_for_rebuilding, read_manifest
from delift_pipeline.lineage.adapter import training_records
from delift_pipeline.lineage.artifacts import Artifact, all_artifacts, folders
from delift_pipeline.lineage.tracked import read_tracking_note
from delift_pipeline.records.extra_columns import COLUMNS_FILE, extra_columns_hash
from delift_pipeline.records.inbox import original_paths
from delift_pipeline.records.left_out import add_forgotten, forgotten_ids, has_records
from delift_pipeline.records.schema import content_hash
from delift_pipeline.records.stored import find_stored_record, version_manifest
from delift_pipeline.records.versions import EXTRA_COLUMNS, PARTS, version_hash


@dataclass(frozen=True)
class Forgotten:
    """What forgetting some records affects.

    Attributes:
        versions: Version with such records -> its parts that have them.
        artifacts: `name` and `path` of artifacts made of them, which are marked for rebuilding.
        runs: The commands that make these again, parents before children.
        beyond: Other places that may have their texts and need care by hand.
        applied: Whether the records were removed, or only listed.
    """

    records: list[str]
    versions: dict[str, list[str]]
    artifacts: list[dict[str, str]]
    runs: list[str]
    beyond: list[str]
    applied: bool


def forget(home: Home, records: Sequence[str], *, dry_run: bool = False) -> Forgotten:
    """Remove records from the data, and mark the artifacts that were made of them.

    `records` are record_ids, beginnings of them, or source ids. `dry_run` only lists.

    Raises:
        InputError: a record is not known, several match, or a part of a version would be left
            empty. Nothing is changed then.
        DeliftError: an artifact is damaged.
    """
    known = forgotten_ids(home)  # forgotten records can be named again by their full ids
    ids = frozenset(one if one in known else find_stored_record(home, one) for one in records)
    holders = _holders(home, ids)
    touched = _affected_artifacts(home, holders, ids)
    artifacts = [{"name": one.name, "path": _path_in(home, one.folder)} for one in touched]
    runs, beyond = _runs(home, touched), list(_beyond(home, holders, touched))
    if not dry_run:
        _apply(home, ids, holders, touched)
    return Forgotten(sorted(ids), holders, artifacts, runs, beyond, applied=not dry_run)


def _path_in(home: Home, path: Path) -> str:
    return path.relative_to(home.root).as_posix()


def _holders(home: Home, ids: frozenset[str]) -> dict[str, list[str]]:
    """Return version -> its parts that have one of the records.

    Raises:
        InputError: a part would be left empty.
    """
    parts: dict[str, list[str]] = {}
    faults = []
    for version, part in product(home.versions(), PARTS):
        path = home.dataset(version) / f"{part}.parquet"
        stored = pl.read_parquet(path, columns=["record_id"]) if path.is_file() else None
        if stored is not None and has_records(stored, ids):
            parts.setdefault(version, []).append(part)
            if _without(stored, ids).is_empty():
                faults.append(f"nothing would be left of the {part} of {version}")
    if faults:
        raise InputError(*faults, field="ID")
    return parts


def _without(frame: pl.DataFrame, ids: frozenset[str]) -> pl.DataFrame:
    return frame.filter(~pl.col("record_id").is_in(sorted(ids)))


def _affected_artifacts(
    home: Home, holders: dict[str, list[str]], ids: frozenset[str]
) -> list[Artifact]:
    """Return the artifacts made of the records, by the edges in manifests, causes before effects.

    An adapter counts only if its own list has a record (or is lost), because a subset that is
    chosen again without a change needs no new training. The last are the base model's reports of
    versions with such held-out records, because their samples show the texts.
    """
    heldout = [version for version, parts in holders.items() if "heldout" in parts]
    names = {f"dataset:{v}" for v in holders} | {f"heldout:{v}" for v in heldout}

    def is_affected(one: Artifact) -> bool:
        if one.kind == "dataset" or (one.kind == "report" and one.version in holders):
            return one.kind == "report"
        if one.kind == "adapter" and (records := training_records(home, one)) is not None:
            return has_records(records, ids)
        # Manifests name a kernel's block, so the block is cut off.
        kernels = {p.rpartition(":")[0] for p in one.manifest.parents if p.startswith("kernel:")}
        return not names.isdisjoint(kernels | one.manifest.parents.keys())

    everything = list(all_artifacts(home))
    touched: set[Path] = set()
    before = -1
    while len(touched) != before:
        before = len(touched)
        for one in everything:
            if one.folder not in touched and is_affected(one):
                touched.add(one.folder)
                names.add(one.name)
    return [one for one in everything if one.folder in touched] + [
        Artifact(f"report:{version}:{folder.name}", folder, manifest)
        for version in heldout
        for folder in folders(home.root / "reports" / version)
        if folder.name.startswith("initial-") and (manifest := read_manifest(folder))
    ]


def _runs(home: Home, touched: list[Artifact]) -> list[str]:
    """Return one `delift run` for each version, parents first, with the affected arms."""
    arms: dict[str, dict[str, None]] = {}
    for one in touched:
        named = arms.setdefault(str(one.version), {})
        if one.arm and not one.arm.startswith(BASE_MODEL):
            named[f" --arm {one.arm}"] = None
    ordered = _parents_first(home, list(arms))
    return [f"delift run --version {version}{''.join(arms[version])}" for version in ordered]


def _parents_first(home: Home, versions: list[str]) -> list[str]:
    ordered: list[str] = []

    def take(version: str) -> None:
        manifest = read_manifest(home.dataset(version))
        for parent in manifest.details["parents"] if manifest else ():
            if parent in versions and parent not in ordered:
                take(parent)
        ordered.append(version)

    for version in versions:
        if version not in ordered:
            take(version)
    return ordered


def _beyond(home: Home, holders: dict[str, list[str]], touched: list[Artifact]) -> Iterator[str]:
    """Yield the places that may have texts or weights and that no run makes again."""
    for version in holders:
        for path in original_paths(home, version):
            yield f"{_path_in(home, path)} still holds what {version} was ingested from"
    for version in holders:
        for path in sorted(home.root.glob(f"judgements/*/{version}")):
            yield f"{_path_in(home, path)} holds what a judge wrote about held-out answers"
    for one in touched:
        if one.kind == "adapter" and (known := read_tracking_note(one.folder)):
            yield f"MLflow run {known['run_id']} keeps the adapter and report of {one.name}"
    if home.dagster.is_dir():
        yield "Dagster's event log keeps the first 20 rows of each table that a run showed"


def _apply(
    home: Home, ids: frozenset[str], holders: dict[str, list[str]], touched: list[Artifact]
) -> None:
    """Block the records, mark the artifacts, then remove the data.

    The data is removed last, because it shows which artifacts to mark if the work is repeated.
    """
    add_forgotten(home, ids)
    few = ", ".join(sorted(ids)[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
    for artifact in touched:
        mark_for_rebuilding(artifact.folder, f"it was made from records that were forgotten: {few}")
    for version in _parents_first(home, list(holders)):
        with FileLock(home.datasets / f".{version}.lock"):
            _rewrite(home, version, holders[version], ids)
    _renew_parents(home)
    home.catalog.unlink(missing_ok=True)


def _rewrite(home: Home, version: str, parts: list[str], ids: frozenset[str]) -> None:
    """Write a version's folder again without the records, with the hash of the rest."""
    folder, manifest = home.dataset(version), version_manifest(home, version)
    details, counts, frames = dict(manifest.details), dict(manifest.counts), {}
    counts.setdefault("forgotten", 0)
    for part in parts:
        before = pl.read_parquet(folder / f"{part}.parquet")
        after = frames[part] = _without(before, ids)
        details[f"{part}_hash"] = _new_hash(before, after, manifest.details[f"{part}_hash"], ids)
        counts[part] = after.height
        counts["forgotten"] += before.height - after.height
    if "pool" in frames and (folder / COLUMNS_FILE).is_file():
        columns, left = pl.read_parquet(folder / COLUMNS_FILE), frames["pool"].select("record_id")
        frames[EXTRA_COLUMNS] = columns.join(
            left, on="record_id", how="semi", maintain_order="left"
        )
        details[f"{EXTRA_COLUMNS}_hash"] = extra_columns_hash(frames[EXTRA_COLUMNS])
    changed = {"details": details, "content_hash": version_hash(details), "counts": counts}
    with replace_folder(folder) as temporary:
        for path in folder.iterdir():
            if path.name != MANIFEST and path.stem not in parts and path.is_file():
                shutil.copy2(path, temporary / path.name)
        for part, frame in frames.items():
            write_parquet(temporary / f"{part}.parquet", frame)
        manifest.model_copy(update=changed).write(temporary)


def _new_hash(before: pl.DataFrame, after: pl.DataFrame, old: str, ids: frozenset[str]) -> str:
    """Return the hash that the set would have if it had been ingested without the records.

    Columns that were derived from the file's name are not part of the hash. The combination that
    gives the stored hash shows which they are. If none does, the old hash and the removed ids are
    hashed.
    """
    columns = ("source", "source_ids")
    for derived in chain.from_iterable(combinations(columns, n) for n in range(3)):
        if content_hash(before, derived) == old:
            return content_hash(after, derived)
    return digest_json([old, sorted(ids)])


def _renew_parents(home: Home) -> None:
    """Update the parents' hashes and the counts of new records in all versions."""

    def ids_of(version: str) -> pl.Series:
        path = home.dataset(version) / "pool.parquet"
        return pl.read_parquet(path, columns=["record_id"])["record_id"]

    for version in (versions := home.versions()):
        manifest = version_manifest(home, version)
        parents = {
            name: version_manifest(home, parent).content_hash
            for name in manifest.parents
            if (parent := name.partition(":")[2]) in versions
        }
        known = {record for one in manifest.details["parents"] for record in ids_of(one)}
        counts = manifest.counts | {"new": sum(one not in known for one in ids_of(version))}
        update = {"parents": manifest.parents | parents, "counts": counts}
        fresh = manifest.model_copy(update=update)
        if fresh != manifest:
            fresh.write(home.dataset(version))
