"""Read stored dataset versions, compare them with their parents, and find their records."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import polars as pl

from delift_pipeline.core.errors import DeliftError, InputError
from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import Manifest, read_manifest

PARTS = ("pool", "target", "heldout")
MOST_NAMED = 3
"""The largest number of records that a message lists."""


@dataclass(frozen=True)
class DatasetVersion:
    """One immutable version. No record of its pool or target set is in its held-out set."""

    version: str
    manifest: Manifest
    pool: pl.DataFrame
    target: pl.DataFrame | None
    heldout: pl.DataFrame

    @property
    def parents(self) -> tuple[str, ...]:
        """The versions that this one continues."""
        return tuple(self.manifest.details["parents"])

    def stages(self) -> tuple[str, ...]:
        """Return the fine-tuning stages that the version's target set and parents allow."""
        task = ("task_specific",) if self.target is not None else ()
        continual = ("continual",) if self.parents else ()
        return ("instruction_tuning", *task, *continual)

    def new_records(self, home: Home) -> pl.DataFrame:
        """Return the records of the pool that are in no parent's pool, in file order."""
        known = pool_ids(home, self.parents).to_frame()
        return self.pool.join(known, on="record_id", how="anti", maintain_order="left")


def load_version(home: Home, version: str) -> DatasetVersion:
    """Read a stored version.

    Raises:
        InputError: The version is not stored.
        DeliftError: Its files are damaged.
    """
    manifest = version_manifest(home, version)
    pool, heldout = (_read_part(home, version, part) for part in ("pool", "heldout"))
    target = _read_part(home, version, "target") if manifest.details["target_hash"] else None
    return DatasetVersion(version, manifest, pool, target, heldout)


def version_manifest(home: Home, version: str) -> Manifest:
    """Read the manifest of a stored version.

    Raises:
        InputError: The version is not stored.
    """
    manifest = read_manifest(home.dataset(version))
    if manifest is None:
        known = ", ".join(home.versions()) or "none yet"
        raise InputError(f"There is no version {version!r}. Stored: {known}.", field="version")
    return manifest


def newest_versions(home: Home) -> dict[str, str]:
    """Return the newest version of each dataset that is not the parent of another version."""
    manifests = {name: version_manifest(home, name) for name in home.versions()}
    followed = {parent for manifest in manifests.values() for parent in manifest.details["parents"]}
    last = sorted(manifests.keys() - followed, key=lambda name: (manifests[name].created, name))
    return {manifests[name].details["dataset"]: name for name in last}


def pool_ids(home: Home, versions: Iterable[str]) -> pl.Series:
    """Return the record ids in the pools of some versions, without repetitions."""
    tables = (_read_part(home, version, "pool", ["record_id"]) for version in versions)
    columns = [table["record_id"] for table in tables]
    return pl.concat(columns).unique() if columns else pl.Series("record_id", [], pl.String)


def _read_part(
    home: Home, version: str, part: str, columns: list[str] | None = None
) -> pl.DataFrame:
    path = home.dataset(version) / f"{part}.parquet"
    try:
        return pl.read_parquet(path, columns=columns)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DeliftError(f"{path} is damaged ({error}). Ingest the version again") from error


@dataclass(frozen=True)
class VersionChanges:
    """How many records of a version's pool differ from its parents' pools.

    Attributes:
        added: Records that are in no parent, and whose source id is in no parent.
        removed: Records of a parent that are not in the pool and were not changed.
        changed: Records that are in no parent, whose source id has other text in a parent.
        unchanged: Records that are in the pool and in a parent.
    """

    added: int
    removed: int
    changed: int
    unchanged: int


def compare_with_parents(home: Home, version: str) -> VersionChanges:
    """Compare a version's pool with all of its parents' pools together.

    Raises:
        InputError: The version is not stored.
    """
    loaded = load_version(home, version)
    columns = ["record_id", "source_ids"]
    parents = [_read_part(home, parent, "pool", columns) for parent in loaded.parents]
    before = pl.concat(parents).unique("record_id") if parents else loaded.pool[columns].clear()
    new = loaded.pool.select(columns).join(before, on="record_id", how="anti")
    gone = before.join(loaded.pool, on="record_id", how="anti")
    changed = _count_sharing_ids(new, gone)
    return VersionChanges(
        added=new.height - changed,
        removed=gone.height - _count_sharing_ids(gone, new),
        changed=changed,
        unchanged=loaded.pool.height - new.height,
    )


def _count_sharing_ids(frame: pl.DataFrame, other: pl.DataFrame) -> int:
    """Count the records of `frame` that share a source id with a record of `other`."""
    theirs = set(other["source_ids"].explode())
    return sum(not theirs.isdisjoint(names) for names in frame["source_ids"])


def match_records(records: pl.DataFrame, names: Iterable[str]) -> dict[str, list[str]]:
    """Return the record ids that each name stands for: a record id, or else a source id.

    `records` has a column `record_id` and may have `source_ids`.
    """
    matches: dict[str, list[str]] = {name: [] for name in names}
    exact = records.filter(pl.col("record_id").is_in(list(matches)))["record_id"]
    matches |= {record: [record] for record in exact}
    unmatched = [name for name, ids in matches.items() if not ids]
    if unmatched and "source_ids" in records.columns:
        sources = records.select("record_id", "source_ids").explode("source_ids")
        pairs = sources.filter(pl.col("source_ids").is_in(unmatched)).unique(maintain_order=True)
        for record, source in pairs.iter_rows():
            matches[source].append(record)
    return matches


def find_record(
    records: pl.DataFrame,
    name: str,
    none: str = "no record",
    *,
    field: str = "--record",
    prefix: bool = True,
) -> str:
    """Return the one record id that a name stands for.

    Args:
        records: A table with `record_id`; it may have `source_ids`.
        name: A record id, a source id or, with `prefix`, the beginning of a record id.
        none: The subject of the message if nothing matches, such as `no record of the file`.
        field: The option in which the user gave the name.
        prefix: Whether the beginning of a record id is enough.

    Raises:
        InputError: No record matches, or several do.
    """
    matches = match_records(records, [name])[name]
    if not matches and prefix:
        starting = records.filter(pl.col("record_id").str.starts_with(name))
        matches = starting["record_id"].unique(maintain_order=True).to_list()
    if not matches:
        raise InputError(f"{none} has the id {name!r}", field=field)
    if len(matches) > 1:
        first = ", ".join(matches[:MOST_NAMED]) + (", ..." if len(matches) > MOST_NAMED else "")
        reason = f"{name!r} fits {len(matches)} records ({first}): give a record_id"
        raise InputError(reason, field=field)
    return matches[0]


def stored_records(home: Home) -> pl.DataFrame:
    """Return all records of all versions: record_id, source_ids, copies, version and part.

    Raises:
        InputError: The home has no version.
    """
    every = product(map(home.dataset, home.versions()), PARTS)
    files = (folder / f"{part}.parquet" for folder, part in every)
    if not (paths := [path.as_posix() for path in files if path.is_file()]):
        raise InputError("no version is stored in this home: run `delift ingest`", field="--record")
    # One scan reads all files: hundreds of single reads would take seconds.
    scanned = pl.scan_parquet(paths, include_file_paths="path", extra_columns="ignore")
    rows = scanned.select("record_id", "source_ids", "copies", "path").collect()
    place = pl.col("path").str.strip_suffix(".parquet").str.split("/")
    return rows.with_columns(version=place.list.get(-2), part=place.list.get(-1)).drop("path")


def find_stored_record(home: Home, name: str) -> str:
    """Return the id of a stored record from its record id, the beginning of it, or a source id.

    Raises:
        InputError: No stored record matches, or several do.
    """
    return find_record(stored_records(home), name, "no record of any version")
