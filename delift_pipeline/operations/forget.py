"""Forgetting a record: out of the data, never back in, and everything it touched made again.

The record's texts leave `datasets/` at once; what was derived from them is marked, and the next
run makes it without the record. `forgotten.json` keeps the ids, so that a later file that holds
the record is ingested without it. Each part of the work can be done again: a kill in the middle is
mended by the same command.
"""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import polars as pl
from filelock import FileLock

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.lineage.artifacts import Artifact, all_artifacts, folders
from delift_pipeline.lineage.record import named_record
from delift_pipeline.lineage.tracked import tracked
from delift_pipeline.lineage.trained_on import trained_on
from delift_pipeline.records.forgotten import forgotten_ids, named_in, note_forgotten
from delift_pipeline.records.identity import content_hash
from delift_pipeline.records.inbox import originals
from delift_pipeline.records.kept_columns import COLUMNS_FILE, kept_hash
from delift_pipeline.records.stored import known_manifest
from delift_pipeline.records.versions import KEPT, PARTS, version_hash
from delift_pipeline.storage.atomic import replacing_folder, write_parquet
from delift_pipeline.storage.hashing import digest_json
from delift_pipeline.storage.home import Home
from delift_pipeline.storage.manifest import (
    MANIFEST,
    Manifest,
    mark_for_rebuilding,
    read_manifest,
)

Ids = frozenset[str]


@dataclass(frozen=True)
class Forgotten:
    """What forgetting some records touches.

    Attributes:
        records: Their record_ids.
        versions: Versions that hold them -> parts they are in.
        artifacts: Everything made of them, by name, with its path: what is marked for rebuilding.
        runs: The commands that make it again, parents before children.
        beyond: What lies outside the files of the home's data and has to be looked after by hand.
        applied: Whether it was done, or only listed.
    """

    records: list[str]
    versions: dict[str, list[str]]
    artifacts: list[dict[str, str]] = field(repr=False)
    runs: list[str]
    beyond: list[str]
    applied: bool = False

    def as_json(self) -> dict[str, Any]:
        """The list as plain data."""
        return asdict(self)


def forget(home: Home, records: Sequence[str], *, dry_run: bool = False) -> Forgotten:
    """Forget records: list what they touched, take them out of the data, mark the rest.

    Args:
        home: The home.
        records: record_ids, beginnings of them, or files' own ids.
        dry_run: Only list.

    Raises:
        Refused: a record is not known, is meant by several, or a version would be left without
            records; nothing is changed then.
        DeliftError: an artifact is damaged.
    """
    ids = frozenset(_named(home, record) for record in records)
    holders = _holders(home, ids)
    _refuse_emptied(home, holders, ids)
    touched = _touched(home, holders, ids)
    found = Forgotten(
        records=sorted(ids),
        versions=holders,
        artifacts=[_listed(home, artifact) for artifact in touched],
        runs=_runs(home, touched),
        beyond=_beyond(home, holders, touched),
        applied=not dry_run,
    )
    if not dry_run:
        _apply(home, ids, holders, touched)
    return found


def _named(home: Home, record: str) -> str:
    """The record_id meant; one that is forgotten already may be given again in full."""
    if record in forgotten_ids(home):
        return record
    return named_record(home, record)


def _holders(home: Home, ids: Ids) -> dict[str, list[str]]:
    """Version -> the parts of it that hold a record."""
    found: dict[str, list[str]] = {}
    for version in home.versions():
        for part in PARTS:
            path = home.dataset(version) / f"{part}.parquet"
            if path.is_file() and named_in(pl.read_parquet(path, columns=["record_id"]), ids):
                found.setdefault(version, []).append(part)
    return found


def _refuse_emptied(home: Home, holders: dict[str, list[str]], ids: Ids) -> None:
    faults = [
        Fault(f"nothing would be left of the {part} of {version}", field="ID")
        for version, parts in holders.items()
        for part in parts
        if _without(home, version, part, ids).is_empty()
    ]
    if faults:
        raise Refused(*faults)


def _without(home: Home, version: str, part: str, ids: Ids) -> pl.DataFrame:
    frame = pl.read_parquet(home.dataset(version) / f"{part}.parquet")
    return frame.filter(~pl.col("record_id").is_in(sorted(ids)))


def _touched(home: Home, holders: dict[str, list[str]], ids: Ids) -> list[Artifact]:
    """Artifacts made of the records: found along the edges of the manifests, causes before effects.

    An adapter counts only where its own list holds a record (or is lost): a subset that is chosen
    anew without changing trains nothing again.
    """
    everything = list(all_artifacts(home))
    names = {f"dataset:{version}" for version in holders}
    names |= {f"heldout:{v}" for v, parts in holders.items() if "heldout" in parts}
    touched: dict[str, Artifact] = {}
    grew = True
    while grew:
        grew = False
        for one in everything:
            if one.folder.as_posix() in touched or not _is_touched(home, one, names, holders, ids):
                continue
            touched[one.folder.as_posix()] = one
            names.add(one.name)
            grew = True
    order = {one.folder.as_posix(): place for place, one in enumerate(everything)}
    found = sorted(touched.values(), key=lambda one: order[one.folder.as_posix()])
    return [*found, *_base_reports(home, holders)]


def _base_reports(home: Home, holders: dict[str, list[str]]) -> list[Artifact]:
    """The base model's reports of versions that hold a record out: their samples show its texts."""
    return [
        Artifact(f"report:{version}:{folder.name}", folder, manifest)
        for version, parts in holders.items()
        if "heldout" in parts
        for folder in folders(home.root / "reports" / version)
        if folder.name.startswith("initial-") and (manifest := read_manifest(folder))
    ]


def _is_touched(
    home: Home, one: Artifact, names: set[str], holders: dict[str, list[str]], ids: Ids
) -> bool:
    if one.kind == "dataset":
        return False
    if one.kind == "report" and one.version in holders:
        return True
    if one.kind == "adapter":
        subset = home.subset(str(one.version), str(one.arm))
        records = trained_on(one.folder, one.manifest, one.name, subset)
        if records is not None:
            return named_in(records, ids)
    return any(_plain(parent) in names for parent in one.manifest.parents)


def _plain(parent: str) -> str:
    """A parent's name as its artifact has it: a kernel's without the block."""
    kind, *rest = parent.split(":")
    return f"kernel:{rest[0]}" if kind == "kernel" else parent


def _listed(home: Home, artifact: Artifact) -> dict[str, str]:
    return {"name": artifact.name, "path": artifact.folder.relative_to(home.root).as_posix()}


def _runs(home: Home, touched: list[Artifact]) -> list[str]:
    """One `delift run` a version, parents first, naming the arms that are made again."""
    arms: dict[str, list[str]] = {}
    for one in touched:
        listed = arms.setdefault(str(one.version), [])
        if one.arm and one.arm not in listed and not one.arm.startswith("initial"):
            listed.append(one.arm)
    return [
        " ".join(["delift run", "--version", version, *(f"--arm {arm}" for arm in arms[version])])
        for version in _parents_first(home, list(arms))
    ]


def _parents_first(home: Home, versions: list[str]) -> list[str]:
    ordered: list[str] = []

    def take(version: str) -> None:
        if version in ordered:
            return
        manifest = read_manifest(home.dataset(version))
        for parent in manifest.details["parents"] if manifest else ():
            if parent in versions:
                take(parent)
        ordered.append(version)

    for version in versions:
        take(version)
    return ordered


def _beyond(home: Home, holders: dict[str, list[str]], touched: list[Artifact]) -> list[str]:
    """Where texts or weights may lie that no run makes again."""
    lines = [
        f"{path.relative_to(home.root).as_posix()} still holds what {version} was ingested from"
        for version in holders
        for path in originals(home, version)
    ]
    lines += [
        f"{path.relative_to(home.root).as_posix()} holds what a judge wrote about held-out answers"
        for version in holders
        for path in sorted(home.root.glob(f"judgements/*/{version}"))
    ]
    for one in touched:
        known = tracked(one.folder) if one.kind == "adapter" else {}
        if known:
            lines.append(f"MLflow run {known['run_id']} keeps the adapter and report of {one.name}")
    if home.dagster.is_dir():
        lines.append("Dagster's event log keeps previews of at most 20 records a run")
    return lines


def _apply(home: Home, ids: Ids, holders: dict[str, list[str]], touched: list[Artifact]) -> None:
    """First what stops the record, then the marks, then the data that they were found by."""
    note_forgotten(home, ids)
    for artifact in touched:
        mark_for_rebuilding(artifact.folder, f"a record it was made of was forgotten: {_few(ids)}")
    for version in _parents_first(home, list(holders)):
        with FileLock(home.datasets / f".{version}.lock"):
            _rewrite(home, version, holders[version], ids)
    _renew_parents(home)
    home.catalog.unlink(missing_ok=True)


def _few(ids: Ids) -> str:
    shown = sorted(ids)
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


def _rewrite(home: Home, version: str, parts: list[str], ids: Ids) -> None:
    """Write a version's folder anew without the records; its hash is that of what is left."""
    folder, manifest = home.dataset(version), known_manifest(home, version)
    frames = {part: pl.read_parquet(folder / f"{part}.parquet") for part in parts}
    kept = {part: _without(home, version, part, ids) for part in parts}
    hashes = {f"{p}_hash": _new_hash(frames[p], kept[p], manifest, p, ids) for p in parts}
    columns = _kept_columns(folder, kept)
    if columns is not None:
        hashes[f"{KEPT}_hash"] = kept_hash(columns)
    details = {**manifest.details, **hashes}
    gone = sum(frames[part].height - kept[part].height for part in parts)
    fresh = manifest.model_copy(
        update={
            "details": details,
            "content_hash": version_hash(details),
            "counts": {
                **manifest.counts,
                **{part: kept[part].height for part in parts},
                "forgotten": manifest.counts.get("forgotten", 0) + gone,
            },
        }
    )
    with replacing_folder(folder) as temporary:
        for path in folder.iterdir():
            if path.name != MANIFEST and path.stem not in parts and path.is_file():
                shutil.copy2(path, temporary / path.name)
        for part, frame in {**kept, **({KEPT: columns} if columns is not None else {})}.items():
            write_parquet(temporary / f"{part}.parquet", frame)
        fresh.write(temporary)


def _kept_columns(folder: Path, kept: dict[str, pl.DataFrame]) -> pl.DataFrame | None:
    """The columns kept of the records that stay in the pool; None where that does not change."""
    path = folder / COLUMNS_FILE
    if "pool" not in kept or not path.is_file():
        return None
    left = kept["pool"].select("record_id")
    return pl.read_parquet(path).join(left, on="record_id", how="semi", maintain_order="left")


def _new_hash(
    before: pl.DataFrame, after: pl.DataFrame, manifest: Manifest, part: str, ids: Ids
) -> str:
    """The set's hash as if it had been ingested without the records.

    Which columns were derived from the file's name is found by what gives the stored hash; where
    nothing does, the hash is that of the old one and the ids that left.
    """
    old = manifest.details[f"{part}_hash"]
    columns = ("source", "source_ids")
    for derived in chain.from_iterable(combinations(columns, n) for n in range(3)):
        if content_hash(before, derived) == old:
            return content_hash(after, derived)
    return digest_json([old, sorted(ids)])


def _renew_parents(home: Home) -> None:
    """Have every version name the hashes that its parents have now, and count what is new in it."""
    for version in home.versions():
        manifest = known_manifest(home, version)
        parents = {
            name: known_manifest(home, name.partition(":")[2]).content_hash
            for name in manifest.parents
            if name.partition(":")[2] in home.versions()
        }
        counts = manifest.counts | {"new": _new_records(home, version, manifest)}
        fresh = manifest.model_copy(
            update={"parents": manifest.parents | parents, "counts": counts}
        )
        if fresh != manifest:
            fresh.write(home.dataset(version))


def _new_records(home: Home, version: str, manifest: Manifest) -> int:
    known: set[str] = set()
    for parent in manifest.details["parents"]:
        known |= set(_ids(home, parent))
    return sum(record not in known for record in _ids(home, version))


def _ids(home: Home, version: str) -> Iterable[str]:
    path = home.dataset(version) / "pool.parquet"
    return pl.read_parquet(path, columns=["record_id"])["record_id"].to_list()
