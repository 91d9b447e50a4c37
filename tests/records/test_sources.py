"""Folders, datasets that `datasets` saved, several files, and addresses."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from delift_pipeline.core.errors import Fault, InputError
from delift_pipeline.records.read import read_records, write_records


def rows(*names: str) -> list[dict[str, Any]]:
    return [{"instruction": f"say {name}", "output": name} for name in names]


def write_lines(path: Path, *names: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(*names)))
    return path


def save_dataset(folder: Path, *shards: Sequence[str]) -> Path:
    """A folder as `datasets` saves one."""
    folder.mkdir(parents=True)
    names = [f"data-{n:05}-of-{len(shards):05}.arrow" for n in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        table = pa.Table.from_pylist(rows(*shard))
        with pa.ipc.new_stream(str(folder / name), table.schema) as writer:
            writer.write_table(table)
    files = [{"filename": name} for name in names]
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_split": "train"}))
    (folder / "dataset_info.json").write_text('{"description": ""}')
    return folder


def answers(inputs: Path | list[Path], **options: Any) -> list[str]:
    return read_records(inputs, **options).frame["output"].to_list()


def refusal(inputs: Path | list[Path]) -> tuple[Fault, ...]:
    with pytest.raises(InputError) as caught:
        read_records(inputs)
    return caught.value.faults


def test_a_folder_is_its_data_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    write_lines(tmp_path / "data-00001-of-00002.jsonl", "c", "a")
    write_lines(tmp_path / "data-00000-of-00002.jsonl", "a", "b")
    (tmp_path / "README.md").write_text("# About")
    (tmp_path / "LICENSE").write_text("Free")
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / ".cache.jsonl").write_text("broken")
    found = read_records(tmp_path)
    assert found.frame["output"].to_list() == ["a", "b", "c"]
    assert (found.read, found.folded, found.notes) == (4, 1, ())
    assert found.frame["source_ids"].to_list()[0] == [
        "data-00000-of-00002-1",
        "data-00001-of-00002-2",
    ]
    assert found.raw == [json.dumps(row) for row in rows("a", "b", "c")]


def test_faults_name_the_file_of_the_folder(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", "a")
    bad = write_lines(tmp_path / "b.jsonl", "b", "")
    (fault,) = refusal(tmp_path)
    assert (fault.file, fault.line, fault.field) == (str(bad), 2, "output")


def test_parquet_shards_are_read_and_written_as_one_table(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    for number, name in enumerate("ab"):
        pl.DataFrame(rows(name)).write_parquet(shards / f"train-{number:05}-of-00002.parquet")
    pl.DataFrame(rows("t")).write_parquet(shards / "test-00000-of-00001.parquet")
    found = read_records(shards)
    assert found.frame["output"].to_list() == ["a", "b"]
    (note,) = found.notes
    assert "test-00000-of-00001.parquet" in note
    write_records(tmp_path / "o.parquet", found, found.frame["record_id"].to_list()[::-1])
    assert pl.read_parquet(tmp_path / "o.parquet").to_dicts() == rows("b", "a")


def test_a_saved_dataset_is_its_shards(tmp_path: Path) -> None:
    names = [f"n{number}" for number in range(12)]
    folder = save_dataset(tmp_path / "saved", *[[name] for name in names])
    (folder / "cache-1234.arrow").write_bytes(b"left by a map")
    assert answers(folder) == names


def test_the_train_split_is_taken_and_the_others_are_named(tmp_path: Path) -> None:
    for split in ("test", "train"):
        save_dataset(tmp_path / split, [split])
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["test", "train"]}')
    found = read_records(tmp_path)
    assert found.frame["output"].to_list() == ["train"]
    assert "test" in found.notes[0]
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["old", "new"]}')
    (fault,) = refusal(tmp_path)
    assert "old, new" in fault.reason


def test_several_files_are_one_pool(tmp_path: Path) -> None:
    first = write_lines(tmp_path / "a.jsonl", "a", "b")
    second = tmp_path / "b.csv"
    second.write_text("prompt;response;extra\nsay b;b;1\nsay c;c;2\n")
    found = read_records([first, second])
    assert found.frame["output"].to_list() == ["a", "b", "c"]
    assert found.frame["copies"].to_list() == [1, 2, 1]
    assert found.frame["source"].to_list() == ["a.jsonl", "a.jsonl", "b.csv"]
    assert (found.read, found.folded, found.shape) == (4, 1, "alpaca, prompt/response")
    write_records(tmp_path / "o.jsonl", found, found.frame["record_id"].to_list())
    written = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert written == [*rows("a", "b"), {"prompt": "say c", "response": "c", "extra": "2"}]


def test_ids_of_several_files_are_made_unique(tmp_path: Path) -> None:
    paths = [tmp_path / name / "data.jsonl" for name in "xy"]
    for path, name in zip(paths, "ab", strict=True):
        path.parent.mkdir()
        path.write_text(json.dumps({"id": 0, **rows(name)[0]}) + "\n")
    found = read_records(paths)
    assert found.frame["source_ids"].to_list() == [["0"], ["0#2"]]
    assert len(found.notes) == 1
    ignored = read_records(paths, ids="ignore")
    assert ignored.frame["source_ids"].to_list() == [["data-1"], ["data-1#2"]]
    assert ignored.notes == ()


def test_every_input_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty" / "inside").mkdir(parents=True)
    inputs = [tmp_path / "empty", Path("https://example.org/x.jsonl"), Path("hf://a/b")]
    faults = refusal([write_lines(tmp_path / "a.jsonl", "a"), *inputs])
    assert [fault.file for fault in faults] == [
        str(tmp_path / "empty"),
        "https://example.org/x.jsonl",
        "hf://a/b",
    ]
    assert "inside" in faults[0].reason
    assert all("download" in fault.reason for fault in faults[1:])
    assert [fault.file for fault in refusal([tmp_path / "no.jsonl", tmp_path / "nor.csv"])] == [
        str(tmp_path / "no.jsonl"),
        str(tmp_path / "nor.csv"),
    ]


def test_faults_of_all_files_come_together(tmp_path: Path) -> None:
    first = write_lines(tmp_path / "a.jsonl", "a", "")
    second = tmp_path / "b.csv"
    second.write_text("text;label\na;b\n")
    assert {fault.file for fault in refusal([first, second])} == {str(first), str(second)}


def test_an_empty_shard_is_no_fault_among_others(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl")
    write_lines(tmp_path / "b.jsonl", "b")
    assert answers(tmp_path) == ["b"]


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_standard_input_is_read_by_its_content(tmp_path: Path, name: str) -> None:
    before = os.dup(0)
    with write_lines(tmp_path / "a.jsonl", "a", "b").open("rb") as file:
        os.dup2(file.fileno(), 0)
    try:
        found = read_records(Path(name))
    finally:
        os.dup2(before, 0)
        os.close(before)
    assert found.frame["source_ids"].to_list() == [["stdin-1"], ["stdin-2"]]
