"""Find and remove what a home no longer needs: leftovers of killed processes, and orphans.

Nothing is removed by default. What a live manifest names is never listed. An artifact is live if
its version is stored, or if it is a parent of a live artifact.
"""

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from delift_pipeline.core.atomic import TEMPORARY_MARK
from delift_pipeline.core.home import FINGERPRINT_PATTERN, Home
from delift_pipeline.core.manifest import MANIFEST
from delift_pipeline.lineage.artifacts import (
    ARM_KINDS,
    all_artifacts,
    arm_artifacts,
    direct_causes,
    folders,
    version_kernels,
)

MINIMUM_AGE_SECONDS = 3600.0
"""A temporary file younger than this may still be written to."""
DERIVED = ("plans", "kernels", *ARM_KINDS.values())


@dataclass(frozen=True)
class Waste:
    """A file or folder that can be removed: its path in the home, its size, and the reason."""

    path: str
    bytes: int
    reason: str


@dataclass(frozen=True)
class GarbageReport:
    """What is no longer needed, and whether it was removed."""

    waste: list[Waste]
    applied: bool
    bytes: int


def collect_garbage(
    home: Home, *, apply: bool = False, minimum_age: float = MINIMUM_AGE_SECONDS
) -> GarbageReport:
    """List what is no longer needed and, with `apply`, remove it.

    A temporary file younger than `minimum_age` seconds may belong to a running process.

    Raises:
        DeliftError: a manifest is damaged, so its parents are not known. Nothing is removed.
    """
    live = _live_folders(home)
    reasons = dict(_temporary(home, minimum_age)) | dict(_orphans(home, live))
    reasons |= dict(_superseded_kernels(home)) | dict(_unread_stores(home, live))
    outermost = [path for path in reasons if not reasons.keys() & set(path.parents)]
    waste = []
    for path in sorted(outermost, key=Path.as_posix):
        waste.append(Waste(path.relative_to(home.root).as_posix(), _size(path), reasons[path]))
        if apply and (path.is_symlink() or path.is_file()):
            path.unlink(missing_ok=True)
        elif apply:
            shutil.rmtree(path, ignore_errors=True)
    return GarbageReport(waste, apply, sum(one.bytes for one in waste))


def _live_folders(home: Home) -> set[Path]:
    """Folders of all artifacts of stored versions, of whatever those name, and their scores."""
    queue = list(all_artifacts(home))
    live: set[Path] = set()
    while queue:
        artifact = queue.pop()
        if artifact.folder in live:
            continue
        live.add(artifact.folder)
        fingerprint = artifact.manifest.fingerprint
        if fingerprint and FINGERPRINT_PATTERN.fullmatch(fingerprint):
            live.add(home.scores(fingerprint))
        queue += [edge.stored for edge in direct_causes(home, artifact) if edge.stored]
    return live


def _temporary(home: Home, minimum_age: float) -> Iterator[tuple[Path, str]]:
    """Yield files and folders with a temporary name, and damaged shards."""
    before = time.time() - minimum_age
    for root, names, files in os.walk(home.root):
        for name in (*names, *files):
            path = Path(root) / name
            if name.startswith(TEMPORARY_MARK) and path.lstat().st_mtime < before:
                yield path, "a temporary file of a process that ended"
        names[:] = [n for n in names if not n.startswith(TEMPORARY_MARK) and n != "dagster"]
    for store in folders(home.root / "scores"):
        if (store / "aside").is_dir():
            yield store / "aside", "damaged shards that verify --repair moved"


def _orphans(home: Home, live: set[Path]) -> Iterator[tuple[Path, str]]:
    """Yield derived artifacts of versions that are not stored, and unfinished folders."""
    versions = set(home.versions())
    for kind in DERIVED:
        for folder in folders(home.root / kind):
            if folder == home.leaderboard or (kind == "plans" and folder.name in versions):
                continue
            if folder.name in versions:
                for inner in folders(folder):
                    if not (inner / MANIFEST).is_file():
                        yield inner, "it has no manifest: its writing was never finished"
            else:
                lost = f"no version {folder.name} is stored"
                if any(one == folder or folder in one.parents for one in live):
                    yield from ((inner, lost) for inner in folders(folder) if inner not in live)
                else:
                    yield folder, lost


def _superseded_kernels(home: Home) -> Iterator[tuple[Path, str]]:
    """Yield kernels that no subset was chosen from, if the version's subsets have another kernel.

    Their scores stay, and a kernel can be made from them again in seconds.
    """
    for version in home.versions():
        kernels = {one.folder.name: one.folder for one in version_kernels(home, version)}
        used = {one.manifest.fingerprint for one in arm_artifacts(home, "subset", version)}
        for fingerprint in kernels.keys() - used if kernels.keys() & used else ():
            yield kernels[fingerprint], "no subset was chosen from this kernel"


def _unread_stores(home: Home, live: set[Path]) -> Iterator[tuple[Path, str]]:
    """Yield score stores that no artifact of a stored version was made with."""
    for store in folders(home.root / "scores"):
        if FINGERPRINT_PATTERN.fullmatch(store.name) and store not in live:
            yield store, "no stored artifact was made with these scores"


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder. Links are not followed."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(
        os.lstat(f"{root}/{one}").st_size for root, _, names in os.walk(path) for one in names
    )
