"""What the commands say of the files they read: faults, copies, ids, encodings."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

MODEL = ("--model", "demo", "--template", "plain", "--threads", 1)


def write(path: Path, rows: Sequence[dict[str, Any] | str]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def good(*names: str, **more: Any) -> list[dict[str, Any]]:
    return [{"instruction": f"say {name}", "output": name, **more} for name in names]


BAD = [{"instruction": "say", "output": ""}] * 30 + ["{broken"] * 2


@pytest.fixture
def select(delift: Any, tmp_path: Path) -> Any:
    """Write all records of files to `o.jsonl`."""
    common = (*MODEL, "--selector", "full", "--budget", "full", "--home", tmp_path / "home")

    def call(*arguments: object) -> Any:
        return delift("select", *arguments, *common, "--out", tmp_path / "o.jsonl")

    return call


def test_skip_bad_counts_by_reason_shows_the_first_and_writes_all(
    select: Any, tmp_path: Path
) -> None:
    file = write(tmp_path / "a.jsonl", [*good("a", "b"), *BAD])
    answer = select(file, "--skip-bad", "--json")
    listed = tmp_path / "o.jsonl.faults.jsonl"
    assert answer.json["left_out"] == 32
    assert list(answer.json["faults"].values()) == [30, 2]
    assert answer.json["faults_file"] == str(listed)
    assert [fault["line"] for fault in read(listed)] == list(range(3, 35))
    assert {(fault["file"], fault["field"]) for fault in read(listed)} == {
        (str(file), "output"),
        (str(file), None),
    }
    assert "32 faulty rows were left out" in answer.err and str(listed) in answer.err
    assert "30 x output" in answer.err and "2 x invalid JSON" in answer.err
    assert f"{file}:3: output" in answer.err and f"{file}:33: invalid JSON" in answer.err
    assert len(answer.err.splitlines()) < 20


def test_without_faults_no_file_of_faults_is_written(select: Any, tmp_path: Path) -> None:
    answer = select(write(tmp_path / "a.jsonl", good("a", "b")), "--skip-bad", "--json")
    assert (answer.json["left_out"], answer.json["faults"]) == (0, {})
    assert answer.json["faults_file"] is None
    assert sorted(path.suffix for path in tmp_path.glob("o.*")) == [".jsonl"]


@pytest.mark.parametrize("option", [(), ("--skip-bad",)])
def test_thousands_of_faults_are_a_few_lines(
    select: Any, tmp_path: Path, option: tuple[str, ...]
) -> None:
    file = write(tmp_path / "a.jsonl", [{"instruction": "say", "output": ""}] * 3000)
    faults = select(file, *option).faults
    assert len(faults) < 12
    assert any("3,000 x output" in line for line in faults)


def test_ingest_lists_the_faults_with_the_version(delift: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [*good(*"abcdef"), *BAD])
    command = ("ingest", file, "--version", "v1", "--skip-bad", "--home", tmp_path / "home")
    for _ in range(2):
        answer = delift(*command, "--json")
        listed = tmp_path / "home" / "datasets" / "v1" / "faults.jsonl"
        assert len(read(listed)) == 32
        assert list(answer.json["faults"].values()) == [30, 2]
        assert "30 x output" in answer.err and str(listed) in answer.err
    manifest = json.loads((listed.parent / "manifest.json").read_text())
    assert "faults" not in manifest


def test_score_lists_the_faults_beside_its_table(delift: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [*good("a", "b"), "{broken"])
    out = tmp_path / "s.parquet"
    home = ("--home", tmp_path / "home")
    answer = delift("score", file, *MODEL, "--out", out, "--skip-bad", *home, "--json")
    assert (answer.json["records"], answer.json["left_out"]) == (2, 1)
    assert [fault["line"] for fault in read(tmp_path / "s.parquet.faults.jsonl")] == [3]
    assert f"{file}:3: invalid JSON" in answer.err


def test_folded_records_are_counted_with_an_example(select: Any, tmp_path: Path) -> None:
    rows = [
        {"id": "p", "tools": [1], **good("a")[0]},
        {"id": "q", "tools": [2], **good("a")[0]},
        *good("b"),
        {"id": "r", "tools": [3], **good("a")[0]},
    ]
    answer = select(write(tmp_path / "a.jsonl", rows), "--json")
    assert (answer.json["pool"], answer.json["folded"]) == (2, 2)
    (note,) = [note for note in answer.json["notes"] if "folded" in note]
    assert "2 of 4" in note and "q, r into p" in note
    assert note in answer.err


def test_ids_that_repeat_keep_all_records_and_warn(select: Any, tmp_path: Path) -> None:
    rows = [{"id": n, **row} for n, row in zip([0, 1, 0, 1], good(*"abcd"), strict=True)]
    file = write(tmp_path / "a.jsonl", rows)
    for option in ((), ("--skip-bad",)):
        answer = select(file, *option, "--json")
        assert (answer.json["pool"], answer.json["left_out"]) == (4, 0)
        assert "2 ids" in answer.err and "'0#2'" in answer.err
    ignored = select(file, "--ids", "ignore", "--json")
    assert ignored.json["pool"] == 4
    assert "ids" not in ignored.err
    assert read(tmp_path / "o.jsonl") == rows
    assert "keep" in select(file, "--ids", "drop").faults[0]


def test_ids_are_ignored_by_every_command_that_reads_files(delift: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [{"id": [0], **row} for row in good(*"abcd")])
    home = ("--ids", "ignore", "--home", tmp_path / "home")
    assert delift("ingest", file, "--version", "v1", *home).status == 0
    pool = pl.read_parquet(tmp_path / "home" / "datasets" / "v1" / "pool.parquet")
    assert set(pool["source_ids"].list.first()) <= {f"a-{n}" for n in range(1, 5)}
    assert delift("score", file, *MODEL, "--out", tmp_path / "s.parquet", *home).status == 0
    shown = delift("prompt", file, *MODEL, "--target", "a-2", "--ids", "ignore")
    assert "say b" in shown.out
    plan = delift("plan", file, "--no-measure", *home, "--json")
    assert plan.json["records"] == 4


def test_several_files_and_a_folder_are_one_pool(delift: Any, select: Any, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    write(shards / "data-00000-of-00002.jsonl", good("a", "b"))
    write(shards / "data-00001-of-00002.jsonl", good("c"))
    single = write(tmp_path / "d.jsonl", good("d", "a"))
    answer = select(shards, single, "--json")
    assert (answer.json["pool"], answer.json["folded"]) == (4, 1)
    assert {row["output"] for row in read(tmp_path / "o.jsonl")} == set("abcd")
    home = ("--home", tmp_path / "home")
    stored = delift("ingest", shards, single, "--version", "v1", *home, "--json")
    assert stored.json["counts"]["read"] == 5
    assert delift("plan", shards, single, "--no-measure", *home).status == 0
    (fault,) = delift(
        "select", shards, *MODEL, "--budget", 2, "--out", shards / "o.jsonl", *home
    ).faults
    assert "another folder" in fault


def test_a_mapping_leaves_plain_files_as_they_are(delift: Any, tmp_path: Path) -> None:
    pool = write(tmp_path / "f.jsonl", good("a", "b"))
    existing = write(tmp_path / "e.jsonl", [{"question": "say c", "output": "c"}])
    pins = write(tmp_path / "p.jsonl", good("b"))
    command = (
        "select", pool, *MODEL, "--selector", "random", "--budget", 1, "--existing", existing,
        "--column", "instruction=question", "--pin", pins, "--out", tmp_path / "o.jsonl",
    )  # fmt: skip
    assert delift(*command, "--home", tmp_path / "home").status == 0
    assert read(tmp_path / "o.jsonl") == good("b")


def test_notes_of_the_encoding_reach_the_user(delift: Any, select: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes("prompt;response\nsay a;á\nsay b;b\n".encode("cp1252"))
    assert "Windows-1252" in select(file).err
    ingested = delift("ingest", file, "--version", "v1", "--home", tmp_path / "home")
    assert "Windows-1252" in ingested.err


def test_an_address_is_refused_in_one_sentence(select: Any) -> None:
    (fault,) = select("https://example.org/x.jsonl").faults
    assert fault.startswith("https://example.org/x.jsonl: ") and "download" in fault
