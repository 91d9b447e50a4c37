"""What lies in a home and is of no use any more: leftovers of kills, and what nothing names.

Dry by default. Nothing that a live manifest names is ever listed: an artifact is live where its
version is stored, or where a live artifact was made of it.
"""

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from delift_pipeline.lineage.artifacts import (
    ARM_KINDS,
    Artifact,
    all_artifacts,
    arm_artifacts,
    direct_causes,
    folders,
    version_kernels,
)
from delift_pipeline.storage.atomic import TEMPORARY_MARK
from delift_pipeline.storage.home import FINGERPRINT_PATTERN, Home
from delift_pipeline.storage.manifest import MANIFEST

SETTLED_SECONDS = 3600.0
"""A temporary file younger than this may still be written to."""
DERIVED = ("plans", "kernels", *ARM_KINDS.values())


@dataclass(frozen=True)
class Waste:
    """One thing that can go.

    Attributes:
        path: Relative to the home.
        bytes: Its size.
        reason: Why nothing needs it.
    """

    path: str
    bytes: int
    reason: str


@dataclass(frozen=True)
class Collected:
    """What was found, and whether it was removed."""

    waste: list[Waste]
    applied: bool

    @property
    def bytes(self) -> int:
        """How much it takes in all."""
        return sum(one.bytes for one in self.waste)

    def as_json(self) -> dict[str, Any]:
        """The list as plain data."""
        return {**asdict(self), "bytes": self.bytes}


def collect(home: Home, *, apply: bool = False, settled: float = SETTLED_SECONDS) -> Collected:
    """List what can go, and remove it where asked to.

    Args:
        home: The home.
        apply: Remove what is listed.
        settled: Age in seconds below which a temporary file may belong to a running process.

    Raises:
        DeliftError: a manifest is damaged, so that what it names is not known; nothing is removed.
    """
    waste = sorted(_waste(home, settled), key=lambda one: one.path)
    outermost = [one for one in waste if not _inside(one, waste)]
    for one in outermost if apply else ():
        _remove(home.root / one.path)
    return Collected(outermost, apply)


def _waste(home: Home, settled: float) -> Iterator[Waste]:
    live = live_folders(home)
    yield from _temporary(home, settled)
    yield from _unnamed(home, live)
    yield from _superseded_kernels(home)
    yield from _unread_stores(home, live)


def live_folders(home: Home) -> set[Path]:
    """Folders of all artifacts of stored versions, of whatever those name, and their scores."""
    queue = list(all_artifacts(home))
    live: set[Path] = set()
    while queue:
        artifact = queue.pop()
        if artifact.folder in live:
            continue
        live |= {artifact.folder, *_store_of(home, artifact)}
        queue += [edge.stored for edge in direct_causes(home, artifact) if edge.stored]
    return live


def _store_of(home: Home, artifact: Artifact) -> Iterator[Path]:
    """The score store that an artifact's fingerprint names."""
    fingerprint = artifact.manifest.fingerprint
    if fingerprint and FINGERPRINT_PATTERN.fullmatch(fingerprint):
        yield home.scores(fingerprint)


def _temporary(home: Home, settled: float) -> Iterator[Waste]:
    """What kills leave: files and folders under a temporary name, and shards set aside."""
    before = time.time() - settled
    for root, names, files in os.walk(home.root):
        for name in (*names, *files):
            path = Path(root) / name
            if name.startswith(TEMPORARY_MARK) and path.lstat().st_mtime < before:
                yield _waste_of(home, path, "a temporary file of a process that ended")
        names[:] = [n for n in names if not n.startswith(TEMPORARY_MARK) and n != "dagster"]
    for store in folders(home.root / "scores"):
        if (store / "aside").is_dir():
            yield _waste_of(home, store / "aside", "damaged shards that were set aside")


def _unnamed(home: Home, live: set[Path]) -> Iterator[Waste]:
    """Derived artifacts of versions that are not stored, and folders that were never finished."""
    versions = set(home.versions())
    for kind in DERIVED:
        for folder in folders(home.root / kind):
            if folder == home.leaderboard or (folder.name in versions and kind == "plans"):
                continue
            if folder.name in versions:
                yield from _unfinished(home, folder)
            elif not any(one == folder or folder in one.parents for one in live):
                yield _waste_of(home, folder, f"no version {folder.name} is stored")
            else:
                for inner in (one for one in folders(folder) if one not in live):
                    yield _waste_of(home, inner, f"no version {folder.name} is stored")


def _unfinished(home: Home, version: Path) -> Iterator[Waste]:
    for folder in folders(version):
        if not (folder / MANIFEST).is_file():
            yield _waste_of(home, folder, "it has no manifest: its writing was never finished")


def _superseded_kernels(home: Home) -> Iterator[Waste]:
    """Kernels that no subset was chosen from, of versions whose subsets come from another one.

    Their scores are kept: a kernel is made from them again in seconds.
    """
    for version in home.versions():
        kernels = list(version_kernels(home, version))
        used = {one.manifest.fingerprint for one in arm_artifacts(home, "subset", version)}
        if used & {kernel.folder.name for kernel in kernels}:
            for kernel in kernels:
                if kernel.folder.name not in used:
                    yield _waste_of(home, kernel.folder, "no subset was chosen from this kernel")


def _unread_stores(home: Home, live: set[Path]) -> Iterator[Waste]:
    """Score stores that no artifact of a stored version was made with."""
    for store in folders(home.root / "scores"):
        if FINGERPRINT_PATTERN.fullmatch(store.name) and store not in live:
            yield _waste_of(home, store, "no stored artifact was made with these scores")


def _waste_of(home: Home, path: Path, reason: str) -> Waste:
    return Waste(path.relative_to(home.root).as_posix(), size_of(path), reason)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links count as themselves."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(
        (Path(root) / name).lstat().st_size for root, _, files in os.walk(path) for name in files
    )


def _inside(one: Waste, waste: list[Waste]) -> bool:
    return any(one.path.startswith(f"{other.path}/") for other in waste)


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)
