"""`catalog.duckdb`: everything stored in a home as tables and views, derived and rebuildable.

The files of a home are the truth. Views over thousands of small files are slow, and a query may not
open files, so DuckDB copies what queries ask for into one database. Each row names the folder it
comes from, and a refresh replaces only the rows of folders that changed. The catalog is written
under a temporary name and renamed, and holds no absolute path.
"""

import glob
import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from filelock import FileLock

from delift_pipeline.errors import DeliftError
from delift_pipeline.scoring.shards import BASELINE
from delift_pipeline.scoring.store import ScoreStore
from delift_pipeline.storage.atomic import replacing
from delift_pipeline.storage.home import Home
from delift_pipeline.storage.manifest import MANIFEST, REBUILD, read_manifest
from delift_pipeline.utility.kernel_files import DISTANCE, KL, read_index, read_matrix

if TYPE_CHECKING:
    import duckdb

PAIRS_LIMIT = 5_000_000
"""Pairs of one kernel or score store that the catalog copies; larger ones stay in their files."""
FORMAT = 2
"""Counted up when a table or view changes; a catalog of another format is made anew."""
FINGERPRINT = "[0-9a-f]" * 32
ARTIFACTS = (
    *("datasets/*", "plans/*", "kernels/*/*", "subsets/*/*", "adapters/*/*", "reports/*/*"),
    *(f"scores/{FINGERPRINT}", f"scores/{FINGERPRINT}/versions/*/*"),
)
STAMPED = (MANIFEST, REBUILD, "tracking.json", "shards")
"""What changes when an artifact does."""


@dataclass(frozen=True)
class Table:
    """A table of the catalog, whose rows are copied from files.

    Attributes:
        columns: The columns that are copied, with their types; `folder` and `file` are added.
        files: Names of the files: all Parquet, or all JSON.
        below: The folder of the home that the artifacts lie in; empty for all.
    """

    columns: dict[str, str]
    files: tuple[str, ...] = ()
    below: str = ""

    def reader(self) -> str:
        """The table function that reads a list of the files; `filename` names each row's file."""
        if self.files[0].endswith(".parquet"):
            return "read_parquet($files, filename = true, union_by_name = true)"
        columns = ", ".join(f"{name}: '{kind}'" for name, kind in self.columns.items())
        return (
            f"read_json($files, filename = true, format = 'unstructured', columns = {{{columns}}},"
            " maximum_object_size = 1073741824)"
        )


def _text(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "VARCHAR")


TABLES = {
    "manifests": Table(
        _text("kind", "content_hash", "created", "fingerprint", "run_id", "code_version")
        | _text("delift_version", "git_commit")
        | {"parents": "MAP(VARCHAR, VARCHAR)"},
        (MANIFEST,),
    ),
    "versions": Table(
        {
            "counts": "STRUCT(pool UINTEGER, target UINTEGER, heldout UINTEGER, new UINTEGER)",
            "details": "STRUCT(dataset VARCHAR, parents VARCHAR[], model VARCHAR, "
            "template VARCHAR)",
        },
        (MANIFEST,),
        "datasets",
    ),
    "marks": Table(_text("reason"), (REBUILD,)),
    "tracking": Table(_text("run_id"), ("tracking.json",), "adapters"),
    "records": Table(
        _text("record_id", "instruction", "input", "output", "source", "task")
        | {"copies": "UINTEGER", "source_ids": "VARCHAR[]"},
        ("pool.parquet", "target.parquet", "heldout.parquet"),
        "datasets",
    ),
    "picks": Table(
        _text("record_id", "source_id", "covered_by")
        | {"rank": "UINTEGER", "gain": "DOUBLE", "trust": "DOUBLE", "self_share": "DOUBLE"}
        | {"replayed": "BOOLEAN", "near_duplicates": "UINTEGER", "covers": "VARCHAR[]"}
        | {"coverage": "DOUBLE"},
        ("subset.parquet", "dropped.parquet"),
        "subsets",
    ),
    "trained": Table(
        _text("record_id", "adapter", "left_out") | {"rank": "UINTEGER"},
        ("trained_on.parquet",),
        "adapters",
    ),
    "reports": Table(
        _text("version", "arm", "stage", "selector", "fingerprint")
        | {
            "evaluation": "STRUCT(metrics MAP(VARCHAR, DOUBLE), counts STRUCT(records UINTEGER))",
            "beside": "MAP(VARCHAR, STRUCT(differences MAP(VARCHAR, "
            "STRUCT(mean DOUBLE, se DOUBLE))))",
        },
        ("report.json",),
        "reports",
    ),
    # The files of these are no tables: Python reads them.
    "utilities": Table(
        _text("block", "target", "demonstration") | {"utility": "FLOAT", "kl": "FLOAT"}
    ),
    "scores": Table(
        _text("target", "demonstration")
        | {"squared_distance": "FLOAT", "sum_logprob": "FLOAT", "tokens": "INTEGER"}
    ),
    "left_out": Table({"pairs": "UBIGINT", "why": "VARCHAR"}),
    "stamps": Table(_text("stamp")),
}

VIEWS = {
    "versions": """
        SELECT split_part(folder, '/', 2) AS version, details.dataset, content_hash, created,
            details.parents, counts.pool AS records, counts.target AS targets, counts.heldout,
            counts.new, details.model, details.template
        FROM stored.versions JOIN stored.manifests USING (folder)""",
    "records": """
        SELECT split_part(folder, '/', 2) AS version, file AS part, * EXCLUDE (folder, file)
        FROM stored.records""",
    "subsets": """
        SELECT split_part(folder, '/', 2) AS version, split_part(folder, '/', 3) AS arm,
            split_part(arm, '.', 1) AS stage, record_id, source_id, rank, gain, trust, self_share,
            replayed, near_duplicates, len(covers) AS covers
        FROM stored.picks WHERE file = 'subset'""",
    "reasons": """
        SELECT split_part(folder, '/', 2) AS version, split_part(folder, '/', 3) AS arm,
            record_id, source_id, file = 'subset' AS selected, rank, gain, trust, covered_by,
            coverage,
            CASE
                WHEN replayed THEN 'replayed from existing records'
                WHEN selected AND len(covers) > 0
                    THEN 'taken, standing for ' || len(covers) || ' records'
                WHEN selected THEN 'taken'
                WHEN covered_by IS NOT NULL THEN 'left out: ' || covered_by || ' stands for it'
                ELSE 'left out: beyond the budget, and no chosen record covers it'
            END AS reason
        FROM stored.picks""",
    "trained_on": """
        SELECT split_part(folder, '/', 2) AS version, split_part(folder, '/', 3) AS arm,
            record_id,
            CASE WHEN adapter <> 'adapter:' || version || ':' || arm THEN adapter END AS through,
            rank, left_out
        FROM stored.trained""",
    "metrics": """
        SELECT version, coalesce(arm, 'initial') AS arm, stage,
            coalesce(selector, 'initial') AS selector, metric, evaluation.metrics[metric] AS value,
            evaluation.metrics[metric || '_se'] AS se, evaluation.counts.records AS records,
            beside['random'].differences[metric].mean AS minus_random,
            beside['random'].differences[metric].se AS minus_random_se,
            beside['initial'].differences[metric].mean AS minus_initial,
            beside['initial'].differences[metric].se AS minus_initial_se, fingerprint
        FROM stored.reports, unnest(map_keys(evaluation.metrics)) AS measured(metric)
        WHERE NOT suffix(metric, '_se')""",
    "artifacts": """
        SELECT folder AS path,
            CASE
                WHEN len(parts) = 2 AND parts[1] = 'scores' THEN 'model'
                WHEN parts[1] = 'scores' THEN 'scores:' || parts[4]
                WHEN parts[1] IN ('subsets', 'adapters', 'reports')
                    THEN rtrim(parts[1], 's') || ':' || array_to_string(parts[2:], ':')
                ELSE rtrim(parts[1], 's') || ':' || parts[2]
            END AS artifact,
            kind, CASE WHEN parts[1] <> 'scores' THEN parts[2] ELSE parts[4] END AS version,
            CASE WHEN parts[1] IN ('subsets', 'adapters', 'reports') THEN parts[3] END AS arm,
            content_hash, created, fingerprint, m.run_id AS dagster_run, t.run_id AS mlflow_run,
            code_version, delift_version AS delift, git_commit, reason AS rebuild
        FROM (SELECT *, split(folder, '/') AS parts FROM stored.manifests) m
        LEFT JOIN stored.tracking t USING (folder) LEFT JOIN stored.marks USING (folder)""",
    "lineage": """
        SELECT artifact, kind, version, arm, edge.key AS made_of, edge.value AS hash, created,
            dagster_run, mlflow_run, git_commit
        FROM (SELECT folder, unnest(map_entries(parents)) AS edge FROM stored.manifests)
        JOIN artifacts ON path = folder""",
    "utilities": """
        SELECT split_part(folder, '/', 2) AS version, split_part(folder, '/', 3) AS fingerprint,
            * EXCLUDE (folder, file)
        FROM stored.utilities""",
    "scores": """
        SELECT split_part(folder, '/', 2) AS fingerprint, * EXCLUDE (folder, file)
        FROM stored.scores""",
    "left_out": "SELECT folder AS source, pairs, why FROM stored.left_out",
}


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
    changed = [folder for folder, stamp in now.items() if known.get(folder) != stamp]
    gone = [folder for folder in known if folder not in now]
    if known and not changed and not gone:
        return Refreshed(len(now), 0, 0)
    home.root.mkdir(parents=True, exist_ok=True)
    fresh = pl.DataFrame({"folder": changed, "stamp": [now[folder] for folder in changed]})
    try:
        with FileLock(home.root / ".catalog.lock", timeout=60):
            _write(home, fresh, [*changed, *gone], bool(known), pairs_limit)
    except TimeoutError as error:
        raise DeliftError("another process is writing the catalog; try again") from error
    return Refreshed(len(now), len(changed), len(gone))


def stamps(home: Home) -> dict[str, str]:
    """Every artifact's folder, relative to the home, and when it was last written."""
    found = {}
    for pattern in ARTIFACTS:
        for manifest in sorted(glob.glob(f"{pattern}/{MANIFEST}", root_dir=home.root)):
            folder = manifest.removesuffix(f"/{MANIFEST}")
            found[folder] = " ".join(_time(f"{home.root}/{folder}/{name}") for name in STAMPED)
    return found


def _time(path: str) -> str:
    try:
        return str(os.stat(path).st_mtime_ns)
    except FileNotFoundError:
        return ""


def known_stamps(path: Path) -> dict[str, str]:
    """What the catalog was made of; empty where there is none, or one of another format."""
    import duckdb

    if not path.is_file():
        return {}
    try:
        with duckdb.connect(str(path), read_only=True) as connection:
            (made,) = connection.execute("SELECT version FROM stored.format").fetchone() or (0,)
            if made != FORMAT:
                return {}
            return dict(connection.execute("SELECT folder, stamp FROM stored.stamps").fetchall())
    except duckdb.Error:
        return {}


def _write(
    home: Home, fresh: pl.DataFrame, outdated: list[str], copy: bool, pairs_limit: int
) -> None:
    import duckdb

    folders = fresh["folder"].to_list()
    with replacing(home.catalog) as temporary:
        if copy:
            shutil.copyfile(home.catalog, temporary)
        # The files are small: further threads cost more than they save.
        with duckdb.connect(str(temporary), config={"threads": 1}) as connection:
            if not copy:
                _create(connection)
            for table in TABLES:
                statement = f"DELETE FROM stored.{table} WHERE list_contains(?, folder)"  # noqa: S608
                connection.execute(statement, [outdated])
            try:
                for name, table in TABLES.items():
                    _copy_files(connection, home, name, table, folders)
            except duckdb.Error as error:
                for folder in folders:
                    read_manifest(home.root / folder)  # says which one is damaged
                raise DeliftError(f"an artifact is damaged: {error}") from error
            for name, frame in (("stamps", fresh), *_pairs(home, folders, pairs_limit)):
                connection.register("fresh", frame.to_arrow())
                connection.execute(f"INSERT INTO stored.{name} BY NAME FROM fresh")
            connection.execute("CHECKPOINT")


def _create(connection: "duckdb.DuckDBPyConnection") -> None:
    connection.execute("CREATE SCHEMA stored")
    connection.execute(f"CREATE TABLE stored.format AS SELECT {FORMAT} AS version")
    for name, table in TABLES.items():
        columns = {"folder": "VARCHAR", "file": "VARCHAR", **table.columns}
        declared = ", ".join(f"{column} {kind}" for column, kind in columns.items())
        connection.execute(f"CREATE TABLE stored.{name} ({declared})")
    for view, query in VIEWS.items():
        connection.execute(f"CREATE VIEW main.{view} AS {query}")


def _copy_files(
    connection: "duckdb.DuckDBPyConnection",
    home: Home,
    name: str,
    table: Table,
    folders: Collection[str],
) -> None:
    """Copy a table's rows out of the files that there are in some folders."""
    paths = [
        path
        for folder in folders
        if folder.startswith(table.below)
        for file in table.files
        if os.path.exists(path := f"{home.root}/{folder}/{file}")
    ]
    if not paths:
        return
    # Files of an older release lack columns. The empty table in front names all of them.
    names = ", ".join(("folder", "file", *table.columns))
    statement = f"""
        INSERT INTO stored.{name} SELECT {names} FROM (
            (FROM stored.{name} LIMIT 0) UNION ALL BY NAME
            SELECT *, parse_dirpath(filename[$start:]) AS folder,
                parse_filename(filename, true) AS file
            FROM {table.reader()})"""  # noqa: S608
    connection.execute(statement, {"files": paths, "start": len(str(home.root)) + 2})


def _pairs(home: Home, folders: Collection[str], limit: int) -> Iterator[tuple[str, pl.DataFrame]]:
    """The pairs of kernels and score stores: (table, frame)."""
    for folder in folders:
        kind, _, rest = folder.partition("/")
        manifest = read_manifest(home.root / folder) if kind == "kernels" else None
        if manifest:
            blocks = manifest.details["blocks"]
            table, pairs = "utilities", sum(entry["pairs"] for entry in blocks.values())
            frames = (_block(home.root / folder, block) for block in blocks)
        elif kind == "scores" and "/" not in rest:
            store = ScoreStore(home.root / folder)
            table, pairs, frames = "scores", store.pairs_stored, _scores(store)
        else:
            continue
        if pairs > limit:
            why = f"more than the {limit:,} pairs the catalog takes in: read its files"
            frames, table = [pl.DataFrame({"pairs": [pairs], "why": [why]})], "left_out"
        for frame in frames:
            yield table, frame.with_columns(folder=pl.lit(folder))


def _block(folder: Path, name: str) -> pl.DataFrame:
    """The pairs of one block of a kernel."""
    index = read_index(folder, name)
    utility, kl = (read_matrix(folder, index, form) for form in (DISTANCE, KL))
    ids, frames = pl.Series(index.rows, dtype=pl.String), [pl.DataFrame()]
    for j, demonstration in enumerate(index.columns):
        rows, values = utility.column(j)
        targets = ids if rows is None else ids.gather(np.asarray(rows))
        frame = pl.DataFrame({"target": targets, "utility": values, "kl": kl.column(j)[1]})
        frames.append(frame.with_columns(demonstration=pl.lit(demonstration), block=pl.lit(name)))
    return pl.concat(frames, how="diagonal")


def _scores(store: ScoreStore) -> Iterator[pl.DataFrame]:
    """The pairs of a score store; of a pair in several shards the oldest one's value."""
    ids, frames = pl.Series(store.ids.names(), dtype=pl.String), [pl.DataFrame()]
    for shard in store.shards:
        for place, number in enumerate(shard.demonstrations):
            scores, alone = shard.scores(place), number == BASELINE
            columns = {"target": ids.gather(shard.targets(place)), **vars(scores)}
            columns |= {"tokens": shard.tokens(place)} if alone else {}
            name = pl.lit(None if alone else ids[int(number)], dtype=pl.String)
            frames.append(pl.DataFrame(columns).with_columns(demonstration=name))
    pairs = pl.concat(frames, how="diagonal")
    if pairs.height:
        yield pairs.unique(["target", "demonstration"], keep="first")
