"""`catalog.duckdb`: everything stored in a home, as tables and views that can be rebuilt.

The files of a home are the source. Views over thousands of small files are slow, and a query may
not open files, so DuckDB copies the rows into one database. Each row has the folder it comes from,
and a refresh replaces only the rows of folders that changed. The catalog is written under a
temporary name and renamed. It has no absolute paths.
"""

import glob
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl
from filelock import FileLock

from delift_pipeline.core.atomic import replace_file
from delift_pipeline.core.errors import DeliftError
from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import MANIFEST, REBUILD, read_manifest, rebuild_reason
from delift_pipeline.kernel.kernel_files import DISTANCE, KL, read_index, read_matrix
from delift_pipeline.lineage.tracked import read_tracking_note
from delift_pipeline.operations.catalog_views import FORMAT, TABLES, VIEWS
from delift_pipeline.scoring.shards import BASELINE
from delift_pipeline.scoring.store import ScoreStore
from delift_pipeline.selection.run import DROPPED, SUBSET

if TYPE_CHECKING:
    import duckdb

PAIRS_LIMIT = 5_000_000
"""A kernel or score store with more pairs than this is not copied into the catalog."""
FINGERPRINT = "[0-9a-f]" * 32
ARTIFACTS = (
    *("datasets/*", "plans/*", "kernels/*/*", "subsets/*/*", "adapters/*/*", "reports/*/*"),
    *(f"scores/{FINGERPRINT}", f"scores/{FINGERPRINT}/versions/*/*"),
)
STAMPED = (MANIFEST, REBUILD, "tracking.json", "shards")
"""Files and folders whose modification time changes when an artifact changes."""


@dataclass(frozen=True)
class Copy:
    """Rows of a table that DuckDB copies from files.

    Attributes:
        below: The folder of the home that contains the artifacts; empty for all.
        files: Names of the files: all Parquet, or all JSON.
        query: The rows, from `copied`: the files' rows with `folder`, its `parts`, and `file`.
        json: For JSON files, the keys to read with their types.
    """

    table: str
    below: str
    files: tuple[str, ...]
    query: str
    json: str = ""


COPIES = (
    Copy(
        "artifacts",
        "",
        (MANIFEST,),
        """SELECT folder AS source,
            CASE
                WHEN len(parts) = 2 AND parts[1] = 'scores' THEN 'model'
                WHEN parts[1] = 'scores' THEN 'scores:' || parts[4]
                WHEN parts[1] IN ('subsets', 'adapters', 'reports')
                    THEN rtrim(parts[1], 's') || ':' || array_to_string(parts[2:], ':')
                ELSE rtrim(parts[1], 's') || ':' || parts[2]
            END AS artifact,
            kind, CASE WHEN parts[1] <> 'scores' THEN parts[2] ELSE parts[4] END AS version,
            CASE WHEN parts[1] IN ('subsets', 'adapters', 'reports') THEN parts[3] END AS arm,
            content_hash, created, fingerprint, run_id AS dagster_run, mlflow_run, code_version,
            delift_version AS delift, git_commit, rebuild
        FROM copied JOIN notes USING (folder)""",
        """kind: 'VARCHAR', content_hash: 'VARCHAR', created: 'VARCHAR', fingerprint: 'VARCHAR',
        run_id: 'VARCHAR', code_version: 'VARCHAR', delift_version: 'VARCHAR',
        git_commit: 'VARCHAR'""",
    ),
    Copy(
        "edges",
        "",
        (MANIFEST,),
        """SELECT folder AS source, edge.key AS made_of, edge.value AS hash
        FROM (SELECT folder, unnest(map_entries(parents)) AS edge FROM copied)""",
        "parents: 'MAP(VARCHAR, VARCHAR)'",
    ),
    Copy(
        "versions",
        "datasets",
        (MANIFEST,),
        """SELECT folder AS source, parts[2] AS version, details.dataset, content_hash, created,
            details.parents, counts.pool AS records, counts.target AS targets, counts.heldout,
            counts.new, details.model, details.template
        FROM copied""",
        """content_hash: 'VARCHAR', created: 'VARCHAR',
        counts: 'STRUCT(pool UINTEGER, target UINTEGER, heldout UINTEGER, new UINTEGER)',
        details: 'STRUCT(dataset VARCHAR, parents VARCHAR[], model VARCHAR, template VARCHAR)'""",
    ),
    Copy(
        "records",
        "datasets",
        ("pool.parquet", "target.parquet", "heldout.parquet"),
        """SELECT folder AS source, parts[2] AS version, file AS part,
            * RENAME (source AS origin)
        FROM copied""",
    ),
    Copy(
        "picks",
        "subsets",
        (SUBSET, DROPPED),
        "SELECT folder AS source, file = 'subset' AS selected, * FROM copied",
    ),
    Copy(
        "trained",
        "adapters",
        ("trained_on.parquet",),
        """SELECT folder AS source,
            CASE WHEN adapter <> 'adapter:' || parts[2] || ':' || parts[3] THEN adapter END
                AS through,
            *
        FROM copied""",
    ),
    Copy(
        "measured",
        "reports",
        ("report.json",),
        """SELECT folder AS source, version, coalesce(arm, 'initial') AS arm, stage,
            coalesce(selector, 'initial') AS selector, metric, evaluation.metrics[metric] AS value,
            evaluation.metrics[metric || '_se'] AS se, evaluation.counts.records AS records,
            beside['random'].differences[metric].mean AS minus_random,
            beside['random'].differences[metric].se AS minus_random_se,
            beside['initial'].differences[metric].mean AS minus_initial,
            beside['initial'].differences[metric].se AS minus_initial_se, fingerprint
        FROM copied, unnest(map_keys(evaluation.metrics)) AS measured(metric)
        WHERE NOT suffix(metric, '_se')""",
        """version: 'VARCHAR', arm: 'VARCHAR', stage: 'VARCHAR', selector: 'VARCHAR',
        fingerprint: 'VARCHAR',
        evaluation: 'STRUCT(metrics MAP(VARCHAR, DOUBLE), counts STRUCT(records UINTEGER))',
        beside: 'MAP(VARCHAR, STRUCT(differences MAP(VARCHAR, STRUCT(mean DOUBLE, se DOUBLE))))'""",
    ),
)


class RefreshCounts(NamedTuple):
    """How many artifacts the catalog has, how many were read now, and how many were removed."""

    sources: int
    read: int
    dropped: int


def refresh_catalog(
    home: Home, *, anew: bool = False, pairs_limit: int = PAIRS_LIMIT
) -> RefreshCounts:
    """Bring the catalog up to date by reading only artifacts that changed.

    Kernels and score stores with more than `pairs_limit` pairs are not copied.

    Raises:
        DeliftError: an artifact is damaged, or another process locks the catalog for a minute.
    """
    now = _stamps(home)
    known = {} if anew else known_stamps(home.catalog)
    changed = [folder for folder, stamp in now.items() if known.get(folder) != stamp]
    gone = [folder for folder in known if folder not in now]
    if known and not changed and not gone:
        return RefreshCounts(len(now), 0, 0)
    home.root.mkdir(parents=True, exist_ok=True)
    fresh = pl.DataFrame({"source": changed, "stamp": [now[folder] for folder in changed]})
    try:
        with FileLock(home.root / ".catalog.lock", timeout=60):
            _write(home, fresh, [*changed, *gone], bool(known), pairs_limit)
    except TimeoutError as error:
        raise DeliftError("another process is writing the catalog. Try again later.") from error
    return RefreshCounts(len(now), len(changed), len(gone))


def _stamps(home: Home) -> dict[str, str]:
    """Return folder (relative to the home) -> modification times of every artifact."""

    def time_of(path: str) -> str:
        with suppress(FileNotFoundError):
            return str(os.stat(path).st_mtime_ns)
        return ""

    return {
        folder: " ".join(time_of(f"{home.root}/{folder}/{name}") for name in STAMPED)
        for pattern in ARTIFACTS
        for manifest in sorted(glob.glob(f"{pattern}/{MANIFEST}", root_dir=home.root))
        if (folder := os.path.dirname(manifest))
    }


def known_stamps(path: Path) -> dict[str, str]:
    """Return the catalog's folders and stamps; empty if there is no catalog of this format."""
    import duckdb

    if not path.is_file():
        return {}
    try:
        with duckdb.connect(str(path), read_only=True) as connection:
            (version,) = connection.execute("SELECT version FROM stored.format").fetchone() or (0,)
            if version != FORMAT:
                return {}
            return dict(connection.execute("SELECT source, stamp FROM stored.sources").fetchall())
    except duckdb.Error:
        return {}


def _write(
    home: Home, fresh: pl.DataFrame, outdated: list[str], copy: bool, pairs_limit: int
) -> None:
    """Write a new catalog, or a copy without the outdated rows, and add the fresh ones."""
    import duckdb

    folders = fresh["source"].to_list()
    with replace_file(home.catalog) as temporary:
        if copy:
            shutil.copyfile(home.catalog, temporary)
        # The files are small, so more threads would cost more than they save.
        with duckdb.connect(str(temporary), config={"threads": 1}) as connection:
            if not copy:
                connection.execute("CREATE SCHEMA stored")
                connection.execute(f"CREATE TABLE stored.format AS SELECT {FORMAT} AS version")
                for table, columns in TABLES.items():
                    connection.execute(f"CREATE TABLE stored.{table} ({columns})")
                for view, query in VIEWS.items():
                    connection.execute(f"CREATE VIEW main.{view} AS {query}")
            for table in TABLES:
                statement = f"DELETE FROM stored.{table} WHERE list_contains(?, source)"  # noqa: S608
                connection.execute(statement, [outdated])
            _copy_files(connection, home, folders)
            for name, frame in (("sources", fresh), *_pairs(home, folders, pairs_limit)):
                connection.register("fresh", frame.to_arrow())
                connection.execute(f"INSERT INTO stored.{name} BY NAME FROM fresh")
            connection.execute("CHECKPOINT")


def _copy_files(
    connection: "duckdb.DuckDBPyConnection", home: Home, folders: Collection[str]
) -> None:
    """Copy the rows of the files in some folders.

    Raises:
        DeliftError: a file cannot be read.
    """
    import duckdb

    notes = [
        {"folder": f, "mlflow_run": note.get("run_id"), "rebuild": rebuild_reason(home.root / f)}
        for f in folders
        for note in (read_tracking_note(home.root / f),)
    ]
    texts: dict[str, Any] = dict.fromkeys(("folder", "mlflow_run", "rebuild"), pl.String)
    connection.register("notes", pl.DataFrame(notes, schema=texts).to_arrow())
    for copy in COPIES:
        below = [folder for folder in folders if folder.startswith(copy.below)]
        paths = [f"{home.root}/{folder}/{file}" for folder in below for file in copy.files]
        paths = [path for path in paths if os.path.exists(path)]
        reader = "read_parquet($files, filename = true, union_by_name = true)"
        if copy.json:
            reader = f"""read_json($files, filename = true, format = 'unstructured',
                columns = {{{copy.json}}}, maximum_object_size = 1073741824)"""
        # Files of older releases may lack columns. The union with the empty table adds them.
        names = ", ".join(column.split()[0] for column in TABLES[copy.table].split(","))
        statement = f"""
            INSERT INTO stored.{copy.table}
            WITH copied AS (
                SELECT * EXCLUDE (filename), parse_dirpath(filename[$start:]) AS folder,
                    split(folder, '/') AS parts, parse_filename(filename, true) AS file
                FROM {reader})
            SELECT {names} FROM ((FROM stored.{copy.table} LIMIT 0) UNION ALL BY NAME {copy.query})
        """  # noqa: S608
        try:
            start = len(str(home.root)) + 2
            if paths:
                connection.execute(statement, {"files": paths, "start": start})
        except duckdb.Error as error:
            for folder in folders:
                read_manifest(home.root / folder)  # raises an error that names a damaged manifest
            raise DeliftError(f"an artifact is damaged: {error}") from error


def _pairs(home: Home, folders: Collection[str], limit: int) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield the ids and pairs of kernels and score stores, as (table, frame)."""
    for folder in folders:
        place, kind, depth = home.root / folder, folder.partition("/")[0], folder.count("/")
        if kind == "kernels" and (manifest := read_manifest(place)):
            blocks = manifest.details["blocks"]
            pairs = sum(entry["pairs"] for entry in blocks.values())
            frames = (frame for block in blocks for frame in _block(place, block))
        elif kind == "scores" and depth == 1:
            store = ScoreStore(place)
            pairs, frames = store.pair_count, _scores(store)
        else:
            continue
        if pairs > limit:
            why = f"more than the {limit:,} pairs the catalog takes in: read its files"
            frames = [("left_out", pl.DataFrame({"pairs": [pairs], "why": [why]}))]
        for table, frame in frames:
            yield table, frame.with_columns(source=pl.lit(folder))


def _block(folder: Path, name: str) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield the ids and pairs of one block of a kernel, as (table, frame)."""
    index = read_index(folder, name)
    for side, ids in (("rows", index.rows), ("columns", index.columns)):
        yield "kernel_ids", _number_ids(ids).with_columns(block=pl.lit(name), side=pl.lit(side))
    utility, kl = (read_matrix(folder, index, form) for form in (DISTANCE, KL))
    everything = np.arange(len(index.rows))
    frames = [pl.DataFrame()]
    for j in range(len(index.columns)):
        rows, values = utility.column(j)
        targets = everything if rows is None else np.asarray(rows)
        frame = pl.DataFrame({"target": targets, "utility": values, "kl": kl.column(j)[1]})
        frames.append(frame.with_columns(demonstration=pl.lit(j), block=pl.lit(name)))
    yield "kernel_pairs", pl.concat(frames, how="diagonal_relaxed")


def _scores(store: ScoreStore) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield the ids and pairs of a score store. For a pair in several shards the oldest counts."""
    yield "score_ids", _number_ids(store.ids.names())
    frames = [pl.DataFrame()]
    for shard in store.shards:
        for place, number in enumerate(shard.demonstrations):
            if number < BASELINE:
                continue  # the two halves of support, which are no scores of a whole answer
            alone = number == BASELINE
            columns = {"target": shard.targets(place), **shard.scores(place)._asdict()}
            columns |= {"tokens": shard.tokens(place)} if alone else {}
            demonstration = pl.lit(None if alone else int(number), dtype=pl.Int32)
            frames.append(pl.DataFrame(columns).with_columns(demonstration=demonstration))
    pairs = pl.concat(frames, how="diagonal")
    if pairs.height:
        yield "score_pairs", pairs.unique(["target", "demonstration"], keep="first")


def _number_ids(ids: Sequence[str]) -> pl.DataFrame:
    schema: dict[str, Any] = {"number": pl.Int32, "record_id": pl.String}
    return pl.DataFrame({"number": range(len(ids)), "record_id": ids}, schema)
