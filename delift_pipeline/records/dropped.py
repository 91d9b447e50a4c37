"""Taking what was dropped into the inbox: ingested and put aside, or rejected with its faults."""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.records.inbox import (
    ACCEPTED,
    REJECTED,
    VERSION_FILE,
    Entry,
    find,
    part_file,
    read_version_file,
)
from delift_pipeline.records.stored import newest_versions
from delift_pipeline.records.versions import ingest
from delift_pipeline.storage.atomic import write_text
from delift_pipeline.storage.home import Home, checked_version
from delift_pipeline.storage.manifest import Manifest, read_manifest

_LOG = logging.getLogger(__name__)
FAULTS = ".faults.txt"
INHERITED = {"coverage": "auto", "existing": "subset", "model": None, "template": None, "keep": []}
"""Settings that a version takes from its first parent where it gives none, else these."""


def ingest_dropped(home: Home, version: str) -> Manifest:
    """Store the version that lies in the inbox, and move it to `inbox/accepted/`.

    What is refused goes to `inbox/rejected/`, with its faults beside it, one a line. Of several
    runs that take the same version one does, and the others find it stored.

    Raises:
        Refused: nothing there asks for this version and it is not stored, or what does is faulty.
    """
    home.inbox.mkdir(parents=True, exist_ok=True)
    with FileLock(home.inbox / f".{checked_version(version)}.lock"):
        return _take(home, version)


def _take(home: Home, version: str) -> Manifest:
    entry = find(home, version)
    if entry is None:
        stored = read_manifest(home.dataset(version))
        if stored is None:
            raise Refused(Fault(_unknown(home, version), field="version"))
        return stored
    try:
        if faults := entry.faults():
            raise Refused(*faults)
        manifest = _ingest(home, entry)
    except Refused as refused:
        faults = [_portable(home, fault) for fault in refused.faults]
        reject(home, entry, faults)
        raise Refused(*faults) from None
    _move(entry.path, home.inbox / ACCEPTED)
    return manifest


def reject(home: Home, entry: Entry, faults: list[Fault]) -> Path:
    """Move an entry to `inbox/rejected/` and write its faults beside it; the faults' file."""
    moved = _move(entry.path, home.inbox / REJECTED)
    beside = moved.with_name(f"{moved.name}{FAULTS}")
    write_text(beside, "".join(f"{fault}\n" for fault in faults))
    return beside


def _ingest(home: Home, entry: Entry) -> Manifest:
    store = partial(ingest, home, version=entry.version, say=_LOG.warning)
    if entry.path.is_dir():
        about = read_version_file(entry.path)
        if about.version not in (None, entry.version):
            reason = f"is {about.version!r}, but the folder is named {entry.version!r}"
            raise Refused(Fault(reason, file=VERSION_FILE, field="version"))
        pool = part_file(entry.path, "pool")
        assert pool is not None  # `Entry.faults` has refused a folder without one
        return store(
            pool,
            parents=about.parents,
            target=part_file(entry.path, "target"),
            heldout=part_file(entry.path, "heldout"),
            dataset=about.dataset,
            skip_bad=about.skip_bad,
            ids=about.ids,
            mapping=about.columns,
            **_inherited(home, about.parents, about.model_dump(include=set(INHERITED))),
        )
    stored = read_manifest(home.dataset(entry.version))
    if stored is not None:
        # The name is taken: the same records are found again, others are refused.
        settings = {name: stored.details.get(name, new) for name, new in INHERITED.items()}
        return store(entry.path, parents=stored.details["parents"], **settings)
    newest = newest_versions(home).get(entry.dataset)
    parents = [newest] if newest else []
    return store(entry.path, parents=parents, **_inherited(home, parents, {}))


def _inherited(home: Home, parents: list[str], given: dict[str, Any]) -> dict[str, Any]:
    """The settings given, else the first parent's, else the defaults."""
    known = bool(parents) and parents[0] in home.versions()
    parent = read_manifest(home.dataset(parents[0])) if known else None
    before = {**INHERITED, **(parent.details if parent else {})}
    return {name: before[name] if given.get(name) is None else given[name] for name in INHERITED}


def _unknown(home: Home, version: str) -> str:
    known = ", ".join(home.versions()) or "none yet"
    rejected = sorted((home.inbox / REJECTED).glob(f"{version}*{FAULTS}"))
    why = f"; what was dropped is in inbox/{REJECTED}/ ({rejected[-1].name})" if rejected else ""
    return (
        f"no version {version!r} is stored (known are: {known}) and inbox/ holds neither a folder "
        f"{version}/ nor a file of that name{why}: `delift ingest FILE --version V` first"
    )


def _portable(home: Home, fault: Fault) -> Fault:
    """The fault with its file named as it lies in the inbox: a home may be moved."""
    file = Path(fault.file or "")
    if not file.is_relative_to(home.inbox):
        return fault
    return replace(fault, file=file.relative_to(home.inbox).as_posix())


def _move(path: Path, folder: Path) -> Path:
    """Move a file or folder into another, numbered where the name is taken there."""
    folder.mkdir(parents=True, exist_ok=True)
    target, number = folder / path.name, 2
    while target.exists():
        target, number = folder / f"{number}-{path.name}", number + 1
    return path.rename(target)
