"""Identical records fold into one that counts its copies."""

import json
from pathlib import Path
from typing import Any

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


def test_an_id_of_several_contents_gets_a_number_and_a_warning(tmp_path: Path) -> None:
    rows = [row("a", id=0), row("b", id=1), row("c", id=0), row("d", id="0"), row("c", id=0.0)]
    found = load(tmp_path, rows)
    assert found.frame.select("instruction", "source_ids").rows() == [
        ("a", ["0"]),
        ("b", ["1"]),
        ("c", ["0#2"]),
        ("d", ["0#3"]),
    ]
    assert (found.read, found.folded, found.left_out) == (5, 1, 0)
    (note,) = found.notes
    assert "2 ids" in note and "'0'" in note and "'0#2'" in note


def test_a_numbered_id_is_never_one_that_the_file_has(tmp_path: Path) -> None:
    rows = [row("a", id="x"), row("b", id="x"), row("c", id="x#2"), row("d", id="x")]
    ids = [names for (names,) in load(tmp_path, rows).frame.select("source_ids").rows()]
    assert ids == [["x"], ["x#3"], ["x#2"], ["x#4"]]


def test_ignored_ids_are_neither_read_nor_checked(tmp_path: Path) -> None:
    rows = [row("a", id="x"), row("b", id=[1]), row("c", source_id="x", id="y")]
    found = load(tmp_path, rows, ids="ignore")
    assert found.frame["source_ids"].to_list() == [["rows-1"], ["rows-2"], ["rows-3"]]
    assert found.notes == ()
    assert "source_ids" in found.derived


def test_ids_are_text_or_whole_numbers_however_they_are_written(tmp_path: Path) -> None:
    rows = [row("a", id=3.0), row("b", id="3.5"), row("c", id=None), row("d", id=10**20)]
    ids = load(tmp_path, rows).frame["source_ids"].to_list()
    assert ids == [["3"], ["3.5"], ["rows-3"], [str(10**20)]]
