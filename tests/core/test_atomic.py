from pathlib import Path

import polars as pl
import pytest

from delift_pipeline.core.atomic import (
    read_json,
    replace_file,
    replace_folder,
    write_json,
    write_parquet,
)


def test_failed_write_leaves_the_former_file_and_no_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("former")
    with pytest.raises(RuntimeError), replace_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "former"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_failed_folder_leaves_the_former_folder(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with replace_folder(folder) as temporary:
        (temporary / "x").write_text("1")
    with pytest.raises(RuntimeError), replace_folder(folder) as temporary:
        (temporary / "x").write_text("2")
        raise RuntimeError
    assert (folder / "x").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_folder_that_cannot_take_its_place_leaves_the_former_one(tmp_path: Path) -> None:
    with replace_folder(tmp_path / "it") as folder:
        (folder / "a").write_text("1")
    with pytest.raises(FileNotFoundError), replace_folder(tmp_path / "it") as folder:
        folder.rmdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["it", "a"]


def test_folder_is_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for name in ("old", "new"):
        with replace_folder(folder) as temporary:
            (temporary / name).write_text(name)
    assert [p.name for p in folder.iterdir()] == ["new"]


def test_equal_values_give_equal_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": "ü"})
    write_json(tmp_path / "b.json", {"a": "ü", "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert read_json(tmp_path / "a.json") == {"a": "ü", "b": 1}
    frame = pl.DataFrame({"x": [1, 2], "y": ["a", None]})
    write_parquet(tmp_path / "a.parquet", frame)
    write_parquet(tmp_path / "b.parquet", frame)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
