"""Columns of a file that a version keeps beside its records."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from delift_pipeline.core.errors import InputError
from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import Manifest
from delift_pipeline.operations.forget import forget
from delift_pipeline.records.extra_columns import join_extra_columns
from delift_pipeline.records.inbox import ingest_from_inbox
from delift_pipeline.records.schema import RECORD_SCHEMA
from delift_pipeline.records.stored import load_version
from delift_pipeline.records.versions import ingest


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def squares(topic: str = "even") -> list[dict[str, Any]]:
    topics = [topic, "odd", None]
    return [
        {"instruction": f"square {n}", "output": str(n * n), "topic": topics[n % 3], "level": n}
        for n in range(20)
    ]


def store(home: Home, folder: Path, keep: tuple[str, ...], **more: Any) -> Manifest:
    file = write(folder / "pool.jsonl", more.pop("rows", squares()))
    return ingest(home, file, version=more.pop("version", "squares-v1"), keep=keep, **more)


def test_kept_columns_are_text_beside_the_records_and_no_part_of_them(
    home: Home, tmp_path: Path
) -> None:
    manifest = store(home, tmp_path, ("topic", "level"))
    pool = load_version(home, "squares-v1").pool
    assert pool.schema == RECORD_SCHEMA and manifest.details["keep"] == ["level", "topic"]
    joined = join_extra_columns(home, "squares-v1", pool)
    assert joined["record_id"].to_list() == pool["record_id"].to_list()
    number = {str(n * n): n for n in range(20)}
    for output, topic, level in joined.select("output", "topic", "level").iter_rows():
        n = number[output]
        assert (topic, level) == (["even", "odd", None][n % 3], str(n))


def test_other_values_of_a_kept_column_are_another_version(home: Home, tmp_path: Path) -> None:
    plain = store(home, tmp_path, (), version="plain-v1")
    kept = store(home, tmp_path, ("topic",))
    assert kept.content_hash != plain.content_hash
    assert store(home, tmp_path, ("topic",)) == kept
    again = {"rows": squares("EVEN")}
    with pytest.raises(InputError, match="stored with other records"):
        store(home, tmp_path, ("topic",), **again)
    with pytest.raises(InputError, match="stored with other records, keep"):
        store(home, tmp_path, ())
    backwards = store(home, tmp_path, ("topic",), version="back-v1", rows=squares()[::-1])
    assert backwards.content_hash == kept.content_hash


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        (
            "colour",
            "--keep colour: no row of the file has this column. The columns are: instruction,",
        ),
        ("task", "--keep task: is always stored with a record: leave it out"),
    ],
)
def test_what_cannot_be_kept_is_refused(home: Home, tmp_path: Path, keep: str, said: str) -> None:
    with pytest.raises(InputError) as refused:
        store(home, tmp_path, (keep,))
    assert str(refused.value).startswith(said) and not home.versions()


def test_a_dropped_version_keeps_what_its_file_says_or_its_parent_keeps(home: Home) -> None:
    write(home.inbox / "squares-v1" / "pool.jsonl", squares())
    (home.inbox / "squares-v1" / "version.yaml").write_text("keep: [topic]\n")
    assert ingest_from_inbox(home, "squares-v1").details["keep"] == ["topic"]
    more = [{"instruction": "square 77", "output": "5929", "topic": "odd"}]
    write(home.inbox / "squares-v2.jsonl", squares() + more)
    child = ingest_from_inbox(home, "squares-v2")
    assert child.details["keep"] == ["topic"] and child.details["parents"] == ["squares-v1"]
    write(home.inbox / "squares-v2.jsonl", squares() + more)
    assert ingest_from_inbox(home, "squares-v2") == child


def test_a_forgotten_record_leaves_the_kept_columns_too(home: Home, tmp_path: Path) -> None:
    store(home, tmp_path, ("topic",))
    gone = load_version(home, "squares-v1").pool["record_id"][0]
    forget(home, [gone])
    left = load_version(home, "squares-v1")
    kept = pl.read_parquet(home.dataset("squares-v1") / "columns.parquet")
    assert kept["record_id"].to_list() == left.pool["record_id"].to_list()
    other = Home.at(tmp_path / "other")
    rows = [row for row in squares() if row["instruction"] in set(left.pool["instruction"])]
    held = write(tmp_path / "h.jsonl", left.heldout.select("instruction", "output").to_dicts())
    fresh = store(other, tmp_path, ("topic",), rows=rows, heldout=held)
    assert left.manifest.details["columns_hash"] == fresh.details["columns_hash"]
