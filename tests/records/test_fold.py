"""Identical records fold into one that counts its copies."""

import json
from pathlib import Path
from typing import Any

import pytest

from delift_pipeline.errors import Refused
from delift_pipeline.records.read import RecordsFile, read_records


def load(folder: Path, rows: list[dict[str, Any]], **options: Any) -> RecordsFile:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_records(path, **options)


def row(text: str, **more: Any) -> dict[str, Any]:
    return {"instruction": text, "output": f"answer to {text}", **more}


def test_copies_fold_in_file_order_with_all_their_ids(tmp_path: Path) -> None:
    rows = [row("b", id="1"), row("a", id="2"), row("b", id="3", task="t"), row("b", id="1")]
    found = load(tmp_path, rows)
    columns = found.frame.select("instruction", "copies", "source_ids", "task").rows()
    assert columns == [("b", 3, ["1", "3"], ""), ("a", 1, ["2"], "")]
    assert (found.read, found.folded, found.left_out) == (4, 2, 0)
    assert found.rows == rows[:2]
    assert found.raw == [json.dumps(original) for original in rows[:2]]


def test_missing_ids_number_every_row_of_the_file(tmp_path: Path) -> None:
    rows = [row("a"), {"instruction": "bad", "output": 1}, row("b"), row("a")]
    found = load(tmp_path, rows, skip_bad=True)
    assert found.frame["source_ids"].to_list() == [["rows-1", "rows-4"], ["rows-3"]]


def test_a_blank_at_the_end_makes_another_record(tmp_path: Path) -> None:
    assert load(tmp_path, [row("a"), row("a ")]).frame.height == 2


def test_one_id_on_different_contents_names_both_lines(tmp_path: Path) -> None:
    rows = [row("a", id="x"), row("b", id="y"), row("c", id="x"), row("d", id="x")]
    with pytest.raises(Refused) as caught:
        load(tmp_path, rows)
    assert [fault.line for fault in caught.value.faults] == [3, 4]
    assert all("'x'" in f.reason and "line 1" in f.reason for f in caught.value.faults)
    found = load(tmp_path, rows, skip_bad=True)
    assert found.frame["instruction"].to_list() == ["a", "b"]
