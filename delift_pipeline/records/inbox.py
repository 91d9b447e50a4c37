"""What lies in the inbox: files and folders that ask to become versions, and whose turn it is.

A folder `inbox/<version>/` holds `pool.*`, perhaps `target.*`, `heldout.*` and a `version.yaml`; a
lone file `inbox/<dataset>-<version>.jsonl` (or another format that can be read) is a pool. Nothing
is taken before two looks have seen it with the same sizes and times, nor while a name of a copy in
progress (`.part`, `.tmp`, a leading dot, ...) lies in it.
"""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.records.read import Ids
from delift_pipeline.records.stored import newest_versions
from delift_pipeline.records.tables import CODECS, kind_of, suffixes
from delift_pipeline.storage.hashing import digest_json
from delift_pipeline.storage.home import Home, checked_version
from delift_pipeline.storage.yaml_text import parse_yaml, read_text
from delift_pipeline.validation import validated

VERSION_FILE = "version.yaml"
ACCEPTED, REJECTED = "accepted", "rejected"
TEMPORARY_SUFFIXES = (
    ".tmp", ".temp", ".part", ".partial", ".crdownload", ".download", ".filepart", ".swp", "~",
)  # fmt: skip
PARTS = ("pool", "target", "heldout")


class VersionFile(BaseModel):
    """The fields of a `version.yaml`; every one may be left out.

    Attributes:
        dataset: The data set; else the first parent's, else the folder's name up to its last `-`.
        version: The version; it has to be the folder's name.
        parents: Stored versions it follows.
        coverage, existing, model, template: As in `delift ingest`; else the first parent's.
        columns: Field -> column of all its files.
        keep: Further columns of the pool's file to keep; else those the first parent keeps.
        skip_bad: Leave faulty rows out and count them.
        ids: `ignore` drops the files' own ids.
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
    """A folder's `version.yaml`; all defaults where it has none.

    Raises:
        Refused: it is not YAML, or a field is unknown or of the wrong kind.
    """
    path = folder / VERSION_FILE
    if not path.is_file():
        return VersionFile()
    document = parse_yaml(read_text(path, VERSION_FILE), VERSION_FILE)
    return validated(VersionFile, document.value or {}, file=VERSION_FILE)


@dataclass(frozen=True)
class Entry:
    """One file or folder of the inbox.

    Attributes:
        path: Where it lies.
        version: The version it asks to become.
        dataset: The data set, as its name says it.
        signature: Digest of the names, sizes and modification times of its files.
        arrived: When it was last moved or touched, in nanoseconds.
        complete: Whether none of its files is named like a copy in progress.
    """

    path: Path
    version: str
    dataset: str
    signature: str
    arrived: int
    complete: bool

    def faults(self) -> list[Fault]:
        """What is wrong with its name or its choice of files, whose contents are not read."""
        if self.path.is_dir():
            missing = part_file(self.path, "pool") is None
            found = [Fault("holds no pool file: name it pool.jsonl")] if missing else []
        else:
            found = _lone_faults(self.path, self.version)
        try:
            checked_version(self.version)
        except Refused as refused:
            found += refused.faults
        return [Fault(fault.reason, self.path.name, field=fault.field) for fault in found]


@dataclass(frozen=True)
class Look:
    """What one look into the inbox found.

    Attributes:
        ready: Entries whose turn it is, in order.
        waiting: Why the others wait, by name.
        faulty: Entries that can be no version, with the reasons.
        seen: Signature of every entry by name, for the next look.
    """

    ready: list[Entry] = field(default_factory=list)
    waiting: dict[str, str] = field(default_factory=dict)
    faulty: list[tuple[Entry, list[Fault]]] = field(default_factory=list)
    seen: dict[str, str] = field(default_factory=dict)


def entries(home: Home) -> list[Entry]:
    """Everything that lies in the inbox, versions in natural order (v2 before v10)."""
    if not home.inbox.is_dir():
        return []
    paths = (path for path in home.inbox.iterdir() if path.name not in (ACCEPTED, REJECTED))
    found = (_entry(path) for path in paths if not _temporary(path.name))
    present = [entry for entry in found if entry is not None]
    return sorted(present, key=lambda entry: (_natural(entry.version), entry.path.name))


def originals(home: Home, version: str) -> list[Path]:
    """The files and folders a version was dropped as: waiting, accepted or rejected.

    One that was put aside beside another of its name bears a number in front (`2-<name>`).
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
    return path.name if path.is_dir() else kind_of(path).stem


def find(home: Home, version: str) -> Entry | None:
    """The entry that asks to become this version: the folder, else the first file by name."""
    return next((entry for entry in entries(home) if entry.version == version), None)


def look(home: Home, seen: Mapping[str, str], busy: Mapping[str, str]) -> Look:
    """Sort out whose turn it is.

    A version waits for those it follows: the parents its `version.yaml` names, and for a lone file
    the earlier versions of its data set. Those may lie in the inbox too, or be at work.

    Args:
        home: The home.
        seen: `Look.seen` of the look before.
        busy: Why stored versions cannot be followed yet, by version.
    """
    found = entries(home)
    result = Look(seen={entry.path.name: entry.signature for entry in found})
    good: list[Entry] = []
    for entry in found:
        if not entry.complete or seen.get(entry.path.name) != entry.signature:
            result.waiting[entry.path.name] = "it is still being copied, or was just seen"
        elif faults := entry.faults():
            result.faulty.append((entry, faults))
            continue
        good.append(entry)
    parents, asked = _parents(home, good), set[str]()
    for entry in good:
        twice = "another entry asks for the same version" if entry.version in asked else None
        why = result.waiting.get(entry.path.name) or twice or _held(entry, parents, busy)
        asked.add(entry.version)
        if why:
            result.waiting[entry.path.name] = why
        else:
            result.ready.append(entry)
    return result


def part_file(folder: Path, part: str) -> Path | None:
    """A folder's file for `pool`, `target` or `heldout`, whatever its format; None without one."""
    for suffix in suffixes():
        for codec in ("", *CODECS):
            path = folder / f"{part}{suffix}{codec}"
            if path.is_file():
                return path
    return None


def _temporary(name: str) -> bool:
    return name.startswith(".") or name.lower().endswith(TEMPORARY_SUFFIXES)


def _entry(path: Path) -> Entry | None:
    """The entry at a path; None for an empty folder, and for what vanished meanwhile."""
    whole = path.is_dir()
    try:
        files = sorted(file for file in path.rglob("*") if file.is_file()) if whole else [path]
        stats = [(file.relative_to(path.parent).as_posix(), file.stat()) for file in files]
        # The only time that a move changes, and only that of what is moved itself.
        arrived = path.stat().st_ctime_ns
    except OSError:
        return None
    if not stats:
        return None
    version = _version_name(path)
    return Entry(
        path=path,
        version=version,
        dataset=version.rpartition("-")[0] or version,
        signature=digest_json([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]),
        arrived=arrived,
        complete=not any(_temporary(file.name) for file in files),
    )


def _lone_faults(path: Path, version: str) -> list[Fault]:
    if kind_of(path).format is None:
        known = ", ".join(suffixes())
        return [Fault(f"is no format that can be read: use {known}, plain, .gz or .zst")]
    if version.rpartition(".")[2] in PARTS:
        return [Fault("a file that is one of several belongs into a folder inbox/<version>/")]
    dataset, _, name = version.rpartition("-")
    if not (dataset and name):
        return [Fault("a lone file is named <dataset>-<version>, such as mydata-v1.jsonl")]
    return []


def _parents(home: Home, found: Iterable[Entry]) -> dict[str, list[str]]:
    """The versions each entry follows, stored ones and earlier ones of the inbox, by version."""
    newest, stored = newest_versions(home), set(home.versions())
    earlier: dict[str, list[str]] = {}
    parents: dict[str, list[str]] = {}
    for entry in found:
        line = earlier.setdefault(entry.dataset, [])
        if entry.path.is_dir():
            parents[entry.version] = []
            with suppress(Refused):  # its faults are found when its turn comes
                parents[entry.version] = read_version_file(entry.path).parents
        elif entry.version in stored:
            parents[entry.version] = []
        else:
            parents[entry.version] = [*line, *filter(None, [newest.get(entry.dataset)])]
        if entry.version not in stored:
            line.append(entry.version)
    return parents


def _held(entry: Entry, parents: Mapping[str, list[str]], busy: Mapping[str, str]) -> str | None:
    """Why an entry has to wait for one it follows; None where it need not."""
    for name in parents[entry.version]:
        # Versions that name each other would wait for ever: they go on, and are refused.
        if name in parents and entry.version not in {name, *_ancestors(name, parents)}:
            return f"it follows {name}, which lies in the inbox before it"
        if name in busy:
            return f"it follows {name}: {busy[name]}"
    return None


def _ancestors(version: str, parents: Mapping[str, list[str]]) -> set[str]:
    """The versions that a version of the inbox follows, directly or through others."""
    queue, found = [version], set[str]()
    while queue:
        new = set(parents.get(queue.pop(), [])) - found
        found |= new
        queue += new
    return found


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key in which numbers count by their value."""
    parts = re.findall(r"\d+|\D+", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
