"""Stored dataset versions: how they are read, and what they changed."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import polars as pl

from delift_pipeline.errors import DeliftError, Fault, Refused
from delift_pipeline.storage.home import Home
from delift_pipeline.storage.manifest import Manifest, read_manifest


@dataclass(frozen=True)
class DatasetVersion:
    """One immutable version.

    Attributes:
        version: Its name.
        manifest: Its manifest (kind `dataset`).
        pool: Records to choose from, in file order.
        target: Records of the target task, or None.
        heldout: Records for evaluation only.
    """

    version: str
    manifest: Manifest
    pool: pl.DataFrame
    target: pl.DataFrame | None
    heldout: pl.DataFrame

    @property
    def parents(self) -> tuple[str, ...]:
        """The versions this one follows."""
        return tuple(self.manifest.details["parents"])

    def stages(self) -> tuple[str, ...]:
        """The stages that apply: with a target set the task's, with parents the continual one."""
        task = ("task_specific",) if self.target is not None else ()
        continual = ("continual",) if self.parents else ()
        return ("instruction_tuning", *task, *continual)

    def new_records(self, home: Home) -> pl.DataFrame:
        """The pool's records that are in no parent's pool, in file order."""
        known = pool_ids(home, self.parents)
        return self.pool.filter(~pl.col("record_id").is_in(known.implode()))


def load_version(home: Home, version: str) -> DatasetVersion:
    """Read a stored version.

    Raises:
        Refused: there is no such version.
        DeliftError: its files are damaged.
    """
    manifest = known_manifest(home, version)
    return DatasetVersion(
        version=version,
        manifest=manifest,
        pool=_part(home, version, "pool"),
        target=_part(home, version, "target") if manifest.details["target_hash"] else None,
        heldout=_part(home, version, "heldout"),
    )


def known_manifest(home: Home, version: str) -> Manifest:
    """The manifest of a stored version.

    Raises:
        Refused: there is no such version.
    """
    manifest = read_manifest(home.dataset(version))
    if manifest is None:
        known = ", ".join(home.versions()) or "none yet"
        raise Refused(Fault(f"no version {version!r}; known are: {known}", field="version"))
    return manifest


def newest_versions(home: Home) -> dict[str, str]:
    """Data set -> its newest version: the last one made that no other version follows."""
    manifests = {name: known_manifest(home, name) for name in home.versions()}
    followed = {parent for manifest in manifests.values() for parent in manifest.details["parents"]}
    newest: dict[str, str] = {}
    for name, manifest in sorted(manifests.items(), key=lambda item: (item[1].created, item[0])):
        if name not in followed:
            newest[manifest.details["dataset"]] = name
    return newest


def pool_ids(home: Home, versions: Iterable[str]) -> pl.Series:
    """The record ids in the pools of some versions, each once."""
    columns = [_part(home, version, "pool", ["record_id"])["record_id"] for version in versions]
    return pl.concat(columns).unique() if columns else pl.Series("record_id", [], pl.String)


def _part(home: Home, version: str, part: str, columns: list[str] | None = None) -> pl.DataFrame:
    path = home.dataset(version) / f"{part}.parquet"
    try:
        return pl.read_parquet(path, columns=columns)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DeliftError(f"{path}: damaged ({error}); ingest the version again") from error


@dataclass(frozen=True)
class Changes:
    """What a version's pool changed against its parents' pools, in records.

    Attributes:
        added: In no parent, under a source id that no parent has.
        removed: In a parent, not in the pool, and no changed record has its source id.
        changed: In no parent, under a source id that a parent has on other content.
        unchanged: In the pool and in a parent.
    """

    added: int
    removed: int
    changed: int
    unchanged: int


def changes(home: Home, version: str) -> Changes:
    """Compare a version with its parents (all of them together).

    Raises:
        Refused: there is no such version.
    """
    loaded = load_version(home, version)
    columns = ["record_id", "source_ids"]
    parents = [_part(home, parent, "pool", columns) for parent in loaded.parents]
    before = pl.concat(parents).unique("record_id") if parents else loaded.pool[columns].clear()
    new = loaded.pool.select(columns).join(before, on="record_id", how="anti")
    gone = before.join(loaded.pool, on="record_id", how="anti")
    changed = _sharing_ids(new, gone)
    return Changes(
        added=new.height - changed,
        removed=gone.height - _sharing_ids(gone, new),
        changed=changed,
        unchanged=loaded.pool.height - new.height,
    )


def _sharing_ids(frame: pl.DataFrame, other: pl.DataFrame) -> int:
    """How many records of `frame` have a source id that `other` has too."""
    theirs: set[Any] = {name for names in other["source_ids"] for name in names}
    return sum(not theirs.isdisjoint(names) for names in frame["source_ids"])
