import csv
import io
import re
import shutil
from pathlib import Path

import polars as pl
import pytest

from delift_pipeline.core.errors import InputError
from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import Manifest, read_manifest
from delift_pipeline.kernel.kernel import load_block
from delift_pipeline.operations.catalog import refresh_catalog
from delift_pipeline.operations.query import run_query

PAGE = Path(__file__).resolve().parents[2] / "docs" / "queries.md"
QUERIES = re.findall(r"```sql\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
VIEWS = re.findall(r"^\| `(\w+)` \|.*\| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
FORBIDDEN = [
    "COPY records TO '{place}/out.csv'",
    "COPY (SELECT 1) TO '{place}/out.csv'",
    "ATTACH '{place}/other.duckdb'",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM read_parquet('{home}/datasets/v1/pool.parquet')",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET enable_external_access = true",
    "INSERT INTO stored.records SELECT * FROM stored.records",
    "DELETE FROM stored.records",
    "CREATE TABLE t AS SELECT 1",
    "CREATE TEMP TABLE t AS SELECT 1",
    "DROP VIEW records",
    "EXPORT DATABASE '{place}/all'",
    "PRAGMA enable_profiling",
    "CALL pragma_version()",
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP VIEW records",
    "SELECT * FROM home",
    "",
]


def test_page_has_ten_queries_and_all_of_the_issue_views() -> None:
    assert len(QUERIES) == 10
    named = {name for name, _ in VIEWS}
    wanted = {"records", "scores", "utilities", "subsets", "reasons", "metrics", "lineage"}
    assert wanted <= named


@pytest.mark.parametrize("query", QUERIES, ids=range(len(QUERIES)))
def test_documented_query_answers(made: Home, query: str) -> None:
    answer = run_query(made, query)
    empty_here = "HAVING alone" in query or "any_value" in query
    assert answer.rows or empty_here


def test_views_have_the_documented_columns(made: Home) -> None:
    for name, columns in VIEWS:
        said = [re.sub(r"\(.*?\)", "", column).strip() for column in columns.split(", ")]
        answer = run_query(made, f"SELECT * FROM {name} LIMIT 0")
        assert answer.columns == said, name


@pytest.mark.parametrize("sql", FORBIDDEN)
def test_query_that_reads_or_writes_anything_else_is_refused(
    copied: Home, tmp_path: Path, sql: str
) -> None:
    refresh_catalog(copied)
    before = copied.catalog.read_bytes()
    with pytest.raises(InputError):
        run_query(copied, sql.format(place=tmp_path, home=copied.root))
    assert copied.catalog.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copied"]


def test_refusal_names_the_views(made: Home) -> None:
    with pytest.raises(InputError, match="The views are: versions, records"):
        run_query(made, "SELECT * FROM nothing")


def test_views_hold_what_the_files_hold(made: Home) -> None:
    pool = pl.read_parquet(made.dataset("v2") / "pool.parquet")
    rows = run_query(
        made, "SELECT record_id, output FROM records WHERE version = 'v2' AND part = 'pool'"
    ).rows
    assert sorted(rows) == sorted(pool.select("record_id", "output").rows())
    arm = "continual.delift_trusted"
    subset = pl.read_parquet(made.subset("v2", arm) / "subset.parquet")
    rows = run_query(
        made,
        f"SELECT record_id FROM subsets WHERE version = 'v2' AND arm = '{arm}' ORDER BY rank",
    ).rows
    assert [row[0] for row in rows] == subset["record_id"].to_list()


def test_utilities_are_the_kernel_s(made: Home) -> None:
    (folder,) = (made.root / "kernels" / "v1").iterdir()
    manifest = read_manifest(folder)
    assert manifest is not None
    block = load_block(made, "v1", folder.name, "neighbours")
    wanted = {}
    for j, demonstration in enumerate(block.columns):
        rows, values = block.matrix.column(j)
        assert rows is not None
        wanted |= {
            (block.rows[i], demonstration): float(v) for i, v in zip(rows, values, strict=True)
        }
    rows = run_query(
        made, "SELECT target, demonstration, utility FROM utilities WHERE version = 'v1'"
    ).rows
    assert {(t, d): u for t, d, u in rows} == pytest.approx(wanted)


def test_refresh_reads_only_what_changed(copied: Home) -> None:
    first = refresh_catalog(copied, anew=True)
    assert first.read == first.sources > 10
    assert refresh_catalog(copied).read == 0
    folder = copied.subset("v1", "instruction_tuning.random")
    manifest = read_manifest(folder)
    assert manifest is not None
    manifest.write(folder)
    shutil.rmtree(copied.report("v1", "instruction_tuning.random"))
    second = refresh_catalog(copied)
    assert (second.read, second.dropped) == (1, 1)
    arms = run_query(copied, "SELECT DISTINCT arm FROM metrics WHERE version = 'v1' ORDER BY 1")
    assert arms.rows == [("initial",), ("instruction_tuning.delift_trusted",)]
    picks = run_query(
        copied,
        "SELECT count(*), count(DISTINCT record_id) FROM subsets "
        "WHERE version = 'v1' AND arm = 'instruction_tuning.random'",
    )
    assert picks.rows == [(6, 6)]


def test_refreshed_catalog_equals_one_made_anew(copied: Home) -> None:
    refresh_catalog(copied)
    Manifest(kind="subset", content_hash="x").write(copied.subset("v1", "continual.odd"))
    refresh_catalog(copied)
    everything = "SELECT * FROM {} ORDER BY ALL"
    names = [name for name, _ in VIEWS]
    patched = [run_query(copied, everything.format(name)).rows for name in names]
    refresh_catalog(copied, anew=True)
    assert [run_query(copied, everything.format(name)).rows for name in names] == patched


def test_damaged_catalog_is_made_again(copied: Home) -> None:
    copied.catalog.write_bytes(b"no database")
    assert run_query(copied, "SELECT count(*) FROM versions").rows == [(2,)]


def test_pairs_beyond_the_limit_stay_in_their_files_and_are_named(copied: Home) -> None:
    refresh_catalog(copied, anew=True, pairs_limit=10)
    answer = run_query(copied, "SELECT count(*) FROM utilities")
    assert answer.rows == [(0,)]
    assert len(answer.left_out) == 2
    assert "too large for the catalog" in answer.left_out[0]
    assert run_query(copied, "SELECT count(*) FROM versions").left_out == []


def test_query_prints_json_csv_and_a_table(made: Home, delift) -> None:
    sql = "SELECT version, records FROM versions ORDER BY version"
    given = ("query", sql, "--home", made.root)
    assert delift(*given, "--json").json == [
        {"version": "v1", "records": 20},
        {"version": "v2", "records": 40},
    ]
    rows = list(csv.reader(io.StringIO(delift(*given, "--csv").out)))
    assert rows == [["version", "records"], ["v1", "20"], ["v2", "40"]]
    assert "v2" in delift(*given).out
    assert delift(*given, "--csv", "--json").faults == ["pass --json or --csv, not both"]


def test_record_text_cannot_steer_the_terminal(made: Home, delift) -> None:
    out = delift("query", "SELECT '\x1b[31m[bold]x' AS t", "--home", made.root).out
    assert "\x1b" not in out
    assert "[bold]x" in out


def test_query_without_a_home_is_refused(tmp_path: Path, delift) -> None:
    assert "not a DELIFT home" in delift("query", "SELECT 1", "--home", tmp_path / "none").faults[0]
    assert not (tmp_path / "none").exists()


def test_catalog_is_made_whole_and_names_no_path(copied: Home, delift) -> None:
    said = delift("catalog", "--home", copied.root, "--json").json
    assert said["path"] == "catalog.duckdb"
    assert str(copied.root).encode() not in copied.catalog.read_bytes()
