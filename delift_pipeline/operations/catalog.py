"""`catalog.duckdb`: everything stored in a home as tables and views, derived and rebuildable.

The files of a home are the truth. The catalog copies what queries ask for out of thousands of small
files into one database; each row remembers the folder it came from, so that a refresh replaces
only what changed. It is written under a temporary name and renamed, and holds no absolute path.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
from filelock import FileLock

from delift_pipeline.errors import DeliftError
from delift_pipeline.operations.catalog_rows import PAIRS_LIMIT, Frames, rows_of
from delift_pipeline.operations.catalog_views import FORMAT, TABLES, VIEWS
from delift_pipeline.storage.atomic import sync, temporary_path
from delift_pipeline.storage.home import FINGERPRINT_PATTERN, Home
from delift_pipeline.storage.manifest import MANIFEST, REBUILD

if TYPE_CHECKING:
    import duckdb

_DEPTHS = {"datasets": 1, "plans": 1, "kernels": 2, "subsets": 2, "adapters": 2, "reports": 2}
_STAMPED = (MANIFEST, REBUILD, "tracking.json")


@dataclass(frozen=True)
class Refreshed:
    """What a refresh did.

    Attributes:
        sources: Artifacts in the catalog.
        read: Artifacts read now.
        dropped: Artifacts taken out, for they are gone.
    """

    sources: int
    read: int
    dropped: int


def refresh_catalog(home: Home, *, anew: bool = False, pairs_limit: int = PAIRS_LIMIT) -> Refreshed:
    """Bring the catalog up to date; what did not change is kept.

    Args:
        home: The home.
        anew: Make it from nothing.
        pairs_limit: Kernels and score stores with more pairs are left in their files.

    Raises:
        DeliftError: an artifact is damaged, or another process keeps the catalog for a minute.
    """
    now = stamps(home)
    known = {} if anew else known_stamps(home.catalog)
    changed = [source for source, stamp in now.items() if known.get(source) != stamp]
    gone = [source for source in known if source not in now]
    if known and not changed and not gone:
        return Refreshed(len(now), 0, 0)
    home.root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(home.root / ".catalog.lock", timeout=60):
            _write(home, now, changed, gone, known, pairs_limit)
    except TimeoutError as error:
        raise DeliftError("another process is writing the catalog; try again") from error
    return Refreshed(len(now), len(changed), len(gone))


def stamps(home: Home) -> dict[str, str]:
    """Every artifact's folder, relative to the home, and when it was last written."""
    found: dict[str, str] = {}
    for kind, depth in _DEPTHS.items():
        for folder in _below(home.root / kind, depth):
            _stamp(home, folder, found)
    for store in _below(home.root / "scores", 1):
        if FINGERPRINT_PATTERN.fullmatch(os.path.basename(store)):
            _stamp(home, store, found, f"{store}/shards")
            for part in _below(Path(store) / "versions", 2):
                _stamp(home, part, found)
    return found


def _below(root: Path | str, depth: int) -> Iterator[str]:
    """Folders at a depth, temporary and hidden ones left out."""
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.name.startswith(".") or not entry.is_dir():
            continue
        if depth == 1:
            yield entry.path
        else:
            yield from _below(entry.path, depth - 1)


def _stamp(home: Home, folder: str, found: dict[str, str], *more: str) -> None:
    times = []
    for path in (*(f"{folder}/{name}" for name in _STAMPED), *more):
        try:
            times.append(str(os.stat(path).st_mtime_ns))
        except FileNotFoundError:
            times.append("")
    if times[0]:
        found[folder[len(str(home.root)) + 1 :]] = " ".join(times)


def known_stamps(path: Path) -> dict[str, str]:
    """What the catalog was made of; empty where there is none, or one of another format."""
    import duckdb

    if not path.is_file():
        return {}
    try:
        with duckdb.connect(str(path), read_only=True) as connection:
            (made,) = connection.execute("SELECT version FROM stored.format").fetchone() or (0,)
            rows = connection.execute("SELECT source, stamp FROM stored.sources").fetchall()
            return dict(rows) if made == FORMAT else {}
    except duckdb.Error:
        return {}


def _write(
    home: Home,
    now: dict[str, str],
    changed: list[str],
    gone: list[str],
    known: dict[str, str],
    pairs_limit: int,
) -> None:
    import duckdb

    temporary = temporary_path(home.catalog)
    try:
        if known:
            shutil.copyfile(home.catalog, temporary)
        with duckdb.connect(str(temporary)) as connection:
            if not known:
                _create(connection)
            _forget(connection, [*changed, *gone])
            _insert(connection, rows_of(home, changed, pairs_limit))
            fresh = pl.DataFrame({"source": changed, "stamp": [now[source] for source in changed]})
            _insert(connection, {"sources": [fresh]} if changed else {})
            connection.execute("CHECKPOINT")
        sync(temporary)
        os.replace(temporary, home.catalog)
    finally:
        temporary.unlink(missing_ok=True)


def _create(connection: "duckdb.DuckDBPyConnection") -> None:
    connection.execute("CREATE SCHEMA stored")
    connection.execute("CREATE TABLE stored.format (version INTEGER)")
    connection.execute("INSERT INTO stored.format VALUES (?)", [FORMAT])
    for table, columns in TABLES.items():
        connection.execute(f"CREATE TABLE stored.{table} ({columns})")
    for view, query in VIEWS.items():
        connection.execute(f"CREATE VIEW main.{view} AS {query}")


def _forget(connection: "duckdb.DuckDBPyConnection", sources: Iterable[str]) -> None:
    listed = list(sources)
    if not listed:
        return
    for table in TABLES:
        statement = f"DELETE FROM stored.{table} WHERE list_contains(?, source)"  # noqa: S608
        connection.execute(statement, [listed])


def _insert(connection: "duckdb.DuckDBPyConnection", frames: Frames) -> None:
    for table, found in frames.items():
        rows = pl.concat(found, how="diagonal_relaxed")
        known = [line.split()[0] for line in TABLES[table].replace("\n", " ").split(",")]
        kept = ", ".join(name for name in known if name in rows.columns)
        connection.register("fresh", rows.to_arrow())
        statement = f"INSERT INTO stored.{table} ({kept}) SELECT {kept} FROM fresh"  # noqa: S608
        connection.execute(statement)
        connection.unregister("fresh")
