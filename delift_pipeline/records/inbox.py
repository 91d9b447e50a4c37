"""The inbox: files and folders that are to become dataset versions, and their order.

A folder `inbox/<version>/` holds `pool.*` and optionally `target.*`, `heldout.*` and
`version.yaml`. A single file `inbox/<dataset>-<version>.jsonl` (or another format) is a pool. An
entry is ready when two scans have seen it with the same sizes and times, and no file in it has the
name of an unfinished copy (`.part`, `.tmp`, a leading dot, ...). An ingested entry moves to
`accepted/`, a refused one to `rejected/` with a file of its faults.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from filelock import FileLock
from pydantic import BaseModel, ConfigDict

from delift_pipeline.core.atomic import write_text
from delift_pipeline.core.errors import Fault, InputError
from delift_pipeline.core.hashing import digest_json
from delift_pipeline.core.home import Home, check_version
from delift_pipeline.core.manifest import Manifest, read_manifest
from delift_pipeline.core.validation import parse_yaml, read_text, validate
from delift_pipeline.records.read import Ids
from delift_pipeline.records.stored import PARTS, newest_versions, version_manifest
from delift_pipeline.records.tables import CODECS, file_kind, formats_by_suffix
from delift_pipeline.records.versions import ingest

_LOG = logging.getLogger(__name__)
VERSION_FILE = "version.yaml"
ACCEPTED, REJECTED = "accepted", "rejected"
FAULTS_SUFFIX = ".faults.txt"
INHERITED = {"coverage": "auto", "existing": "subset", "model": None, "template": None, "keep": []}
"""Settings that a version inherits from its first parent, and their values without a parent."""
TEMPORARY_SUFFIXES = (
    ".tmp", ".temp", ".part", ".partial", ".crdownload", ".download", ".filepart", ".swp", "~",
)  # fmt: skip


class VersionFile(BaseModel):
    """The fields of a `version.yaml`: the options of `delift ingest`. All of them are optional.

    `version` has to be the folder's name. The default of `dataset` is the first parent's dataset;
    without a parent it is the folder's name up to its last `-`. See `INHERITED` for the others.
    """

    model_config = ConfigDict(extra="forbid")

    dataset: str | None = None
    version: str | None = None
    parents: list[str] = []
    coverage: str | None = None
    existing: str | None = None
    model: str | None = None
    template: str | None = None
    columns: dict[str, str] | None = None
    keep: list[str] | None = None
    skip_bad: bool = False
    ids: Ids = "keep"


def read_version_file(folder: Path) -> VersionFile:
    """Read a folder's `version.yaml`, or return the defaults if it has none.

    Raises:
        InputError: The file is not YAML, or a field is unknown or of the wrong type.
    """
    path = folder / VERSION_FILE
    if not path.is_file():
        return VersionFile()
    document = parse_yaml(read_text(path, VERSION_FILE), VERSION_FILE)
    return validate(VersionFile, document.value or {}, file=VERSION_FILE)


@dataclass(frozen=True)
class InboxEntry:
    """One file or folder of the inbox, with the version and dataset that its name gives.

    Attributes:
        signature: A digest of the names, sizes and modification times of its files.
        arrived: When it was last moved or changed, in nanoseconds.
        complete: Whether no file in it has the name of an unfinished copy.
    """

    path: Path
    version: str
    dataset: str
    signature: str
    arrived: int
    complete: bool

    def faults(self) -> list[Fault]:
        """Return what is wrong with its name or its files, without reading the files."""
        reason = None
        if self.path.is_dir():
            if part_file(self.path, "pool") is None:
                reason = "The folder has no pool file. Name the file pool.jsonl."
        elif file_kind(self.path).format is None:
            known = ", ".join(formats_by_suffix())
            reason = f"The format is unknown. Use {known}, plain or with .gz or .zst."
        elif self.version.rpartition(".")[2] in PARTS:
            reason = "The file is one of several. Put them in a folder inbox/<version>/."
        elif not all(self.version.rpartition("-")[::2]):
            reason = "The name is not <dataset>-<version>. Use a name such as mydata-v1.jsonl."
        faults = [Fault(reason)] if reason else []
        try:
            check_version(self.version)
        except InputError as refused:
            faults += refused.faults
        return [replace(fault, file=self.path.name) for fault in faults]


@dataclass(frozen=True)
class InboxScan:
    """The state of the inbox at one moment.

    Attributes:
        ready: The entries that can be ingested now, in order.
        waiting: Why other entries have to wait, by name.
        faulty: The entries that cannot become a version, with their faults.
        seen: The signature of every entry by name, for the next scan.
    """

    ready: list[InboxEntry]
    waiting: dict[str, str]
    faulty: list[tuple[InboxEntry, list[Fault]]]
    seen: dict[str, str]


def inbox_entries(home: Home) -> list[InboxEntry]:
    """Return all entries of the inbox, with versions in natural order (v2 before v10)."""
    if not home.inbox.is_dir():
        return []
    paths = [path for path in home.inbox.iterdir() if path.name not in (ACCEPTED, REJECTED)]
    paths = [path for path in paths if not _is_temporary(path.name)]
    unsorted = filter(None, map(_read_entry, paths))
    return sorted(unsorted, key=lambda entry: (_natural_sort_key(entry.version), entry.path.name))


def original_paths(home: Home, version: str) -> list[Path]:
    """Return a version's original files and folders: waiting, accepted or rejected.

    The name begins with a number (`2-<name>`) if the folder already had an entry of that name.
    """
    folders = (home.inbox, home.inbox / ACCEPTED, home.inbox / REJECTED)
    return sorted(
        path
        for folder in folders
        if folder.is_dir()
        for path in folder.iterdir()
        if version in (name := _version_name(path), re.sub(r"^\d+-", "", name))
    )


def _version_name(path: Path) -> str:
    return path.name if path.is_dir() else file_kind(path).stem


def find_entry(home: Home, version: str) -> InboxEntry | None:
    """Return the entry for a version: the folder, or else the first file by name."""
    return next((entry for entry in inbox_entries(home) if entry.version == version), None)


def scan_inbox(home: Home, seen: Mapping[str, str], busy: Mapping[str, str]) -> InboxScan:
    """Find out which entries can be ingested now.

    A version waits for its parents. They are named in its `version.yaml`; for a single file they
    are the earlier versions of its dataset. A parent may still be in the inbox, or in use.

    Args:
        home: The home of the inbox.
        seen: `InboxScan.seen` of the previous scan.
        busy: Why a stored version cannot be a parent yet, by version.
    """
    entries = inbox_entries(home)
    complete = [e for e in entries if e.complete and seen.get(e.path.name) == e.signature]
    faulty = {entry.path: (entry, faults) for entry in complete if (faults := entry.faults())}
    usable = [entry for entry in entries if entry.path not in faulty]
    parents = _parents_by_version(home, usable)
    ready, waiting, versions = list[InboxEntry](), dict[str, str](), set[str]()
    for entry in usable:
        if entry not in complete:
            reason = "it is still being copied, or has just arrived"
        elif entry.version in versions:
            reason = "another entry has the same version"
        else:
            reason = _reason_to_wait(entry, parents, busy)
        versions.add(entry.version)
        if reason:
            waiting[entry.path.name] = reason
        else:
            ready.append(entry)
    signatures = {entry.path.name: entry.signature for entry in entries}
    return InboxScan(ready, waiting, list(faulty.values()), signatures)


def part_file(folder: Path, part: str) -> Path | None:
    """Return a folder's file for `pool`, `target` or `heldout` in any format, or None."""
    names = product(formats_by_suffix(), ("", *CODECS))
    paths = (folder / f"{part}{suffix}{codec}" for suffix, codec in names)
    return next(filter(Path.is_file, paths), None)


def _is_temporary(name: str) -> bool:
    return name.startswith(".") or name.lower().endswith(TEMPORARY_SUFFIXES)


def _read_entry(path: Path) -> InboxEntry | None:
    """Return the entry at a path, or None if it is an empty folder or no longer exists."""
    try:
        files = sorted(filter(Path.is_file, path.rglob("*"))) if path.is_dir() else [path]
        stats = [(file.relative_to(path.parent).as_posix(), file.stat()) for file in files]
        # A move changes only this time, and only that of the moved file or folder itself.
        arrived = path.stat().st_ctime_ns
    except OSError:
        return None
    if not stats:
        return None
    version = _version_name(path)
    dataset = version.rpartition("-")[0] or version
    signature = digest_json([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats])
    complete = not any(_is_temporary(file.name) for file in files)
    return InboxEntry(path, version, dataset, signature, arrived, complete)


def _parents_by_version(home: Home, entries: Iterable[InboxEntry]) -> dict[str, list[str]]:
    """Return the parents of each entry's version: stored ones, and earlier ones of the inbox."""
    newest, stored = newest_versions(home), set(home.versions())
    earlier = defaultdict[str, list[str]](list)
    parents: dict[str, list[str]] = {}
    for entry in entries:
        siblings = earlier[entry.dataset]
        parents[entry.version] = []
        if entry.path.is_dir():
            with suppress(InputError):  # `ingest_from_inbox` reports its faults
                parents[entry.version] = read_version_file(entry.path).parents
        elif entry.version not in stored:
            parents[entry.version] = [*siblings, *filter(None, [newest.get(entry.dataset)])]
        if entry.version not in stored:
            siblings.append(entry.version)
    return parents


def _reason_to_wait(
    entry: InboxEntry, parents: Mapping[str, list[str]], busy: Mapping[str, str]
) -> str | None:
    for name in parents[entry.version]:
        # Versions that name each other as parents do not wait for ever: ingestion refuses them.
        if name in parents and entry.version not in _ancestors(name, parents):
            return f"its parent {name} is still in the inbox"
        if name in busy:
            return f"its parent is {name}: {busy[name]}"
    return None


def _ancestors(version: str, parents: Mapping[str, list[str]]) -> list[str]:
    """Return a version of the inbox, its parents, their parents, and so on."""
    versions = [version]
    for name in versions:
        versions += set(parents.get(name, [])).difference(versions)
    return versions


def _natural_sort_key(name: str) -> list[tuple[int, str]]:
    """Return a sort key that compares numbers by their value."""
    parts = re.findall(r"\d+|\D+", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def ingest_from_inbox(home: Home, version: str) -> Manifest:
    """Ingest a version from the inbox and move its entry to `inbox/accepted/`.

    A refused entry moves to `inbox/rejected/`, with a file that lists its faults. If several runs
    ingest the same version, the first one stores it and the others return what it stored.

    Raises:
        InputError: The version is neither in the inbox nor stored, or its entry is faulty.
    """
    home.inbox.mkdir(parents=True, exist_ok=True)
    with FileLock(home.inbox / f".{check_version(version)}.lock"):
        entry = find_entry(home, version)
        if entry is None:
            if stored := read_manifest(home.dataset(version)):
                return stored
            raise InputError(_unknown_version_message(home, version), field="version")
        try:
            if faults := entry.faults():
                raise InputError(*faults)
            manifest = _ingest(home, entry)
        except InputError as refused:
            # Homes can be moved, so faults name files relative to the inbox.
            inside = f"{home.inbox}/"
            faults = [
                replace(fault, file=fault.file and fault.file.removeprefix(inside))
                for fault in refused.faults
            ]
            reject_entry(home, entry, faults)
            raise InputError(*faults) from None
        _move(entry.path, home.inbox / ACCEPTED)
        return manifest


def reject_entry(home: Home, entry: InboxEntry, faults: list[Fault]) -> Path:
    """Move an entry to `inbox/rejected/` and return the file there that lists its faults."""
    moved = _move(entry.path, home.inbox / REJECTED)
    beside = moved.with_name(f"{moved.name}{FAULTS_SUFFIX}")
    write_text(beside, "".join(f"{fault}\n" for fault in faults))
    return beside


def _ingest(home: Home, entry: InboxEntry) -> Manifest:
    pool, target, heldout, inherited_from = entry.path, None, None, None
    if entry.path.is_dir():
        settings = read_version_file(entry.path)
        if settings.version not in (None, entry.version):
            reason = (
                f"It is {settings.version!r}, but the folder is {entry.version!r}. Make them equal."
            )
            raise InputError(Fault(reason, file=VERSION_FILE, field="version"))
        pool, target, heldout = (part_file(entry.path, part) for part in PARTS)
        assert pool is not None  # `InboxEntry.faults` has refused a folder without one
    elif inherited_from := read_manifest(home.dataset(entry.version)):
        # The version exists. `ingest` accepts the same records again and refuses others.
        settings = VersionFile(parents=inherited_from.details["parents"])
    else:
        newest = newest_versions(home).get(entry.dataset)
        settings = VersionFile(parents=[newest] if newest else [])
    if inherited_from is None and settings.parents and settings.parents[0] in home.versions():
        inherited_from = version_manifest(home, settings.parents[0])
    # A template that was stored for a model is not inherited: the model may be another one.
    defaults = INHERITED | (inherited_from.request if inherited_from else {})
    values = settings.model_dump()
    return ingest(
        home,
        pool,
        version=entry.version,
        target=target,
        heldout=heldout,
        mapping=settings.columns,
        say=_LOG.warning,
        **{name: values[name] for name in ("parents", "dataset", "skip_bad", "ids")},
        **{n: defaults[n] if values[n] is None else values[n] for n in INHERITED},
    )


def _unknown_version_message(home: Home, version: str) -> str:
    known = ", ".join(home.versions()) or "none yet"
    rejected = sorted((home.inbox / REJECTED).glob(f"{version}*{FAULTS_SUFFIX}"))
    where = f". It was refused: see inbox/{REJECTED}/{rejected[-1].name}" if rejected else ""
    return (
        f"There is no version {version!r} (stored: {known}), and inbox/ has neither a folder "
        f"{version}/ nor a file of that name{where}. Run `delift ingest FILE --version V` first"
    )


def _move(path: Path, folder: Path) -> Path:
    """Move a file or folder into a folder; if its name exists there, put a number before it."""
    folder.mkdir(parents=True, exist_ok=True)
    target, number = folder / path.name, 2
    while target.exists():
        target, number = folder / f"{number}-{path.name}", number + 1
    return path.rename(target)
