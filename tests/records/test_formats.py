"""Adding a file format: one `Format`, and one line in `tables.FORMATS`."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from delift_pipeline.records.formats import Format, Row, Table
from delift_pipeline.records.inbox import part_file
from delift_pipeline.records.read import read_records, write_records
from delift_pipeline.records.tables import FORMATS


def read_cards(data: bytes, file: str, columns: Collection[str]) -> Table:
    """Cards apart by blank lines, each of lines `column: text`."""
    cards = data.decode("utf-8").strip().split("\n\n")
    values = [dict(line.split(": ", 1) for line in card.split("\n")) for card in cards]
    return Table([Row(n, n, value) for n, value in enumerate(values, start=1)])


def write_cards(rows: list[dict[str, Any]], schema: pl.Schema | None) -> bytes:
    cards = ("".join(f"{name}: {text}\n" for name, text in row.items()) for row in rows)
    return "\n".join(cards).encode("utf-8")


CARDS = Format("cards", (".cards",), (), read_cards, write_cards)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, CARDS.name, CARDS)


@pytest.mark.usefixtures("registered")
def test_a_registered_format_is_read_written_and_found(tmp_path: Path) -> None:
    path = tmp_path / "pool.cards.gz"
    source = tmp_path / "pool.cards"
    source.write_text("instruction: Add\noutput: 3\n\ninstruction: Say\noutput: yes\n")
    file = read_records(source)
    assert file.frame["output"].to_list() == ["3", "yes"]
    write_records(path, file, file.frame["record_id"][1:].to_list())
    assert read_records(path).rows == [{"instruction": "Say", "output": "yes"}]
    assert part_file(tmp_path, "pool") == source
    assert read_records(tmp_path).frame.height == 2


def test_a_format_without_one_of_its_pieces_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="write"):
        Format("cards", (".cards",), (), read_cards)  # pyright: ignore[reportCallIssue]


def test_every_format_is_written_and_read_again(tmp_path: Path) -> None:
    source = tmp_path / "source.jsonl"
    source.write_text('{"instruction": "a", "output": "b"}\n{"instruction": "c", "output": "d"}\n')
    file = read_records(source)
    for form in FORMATS.values():
        path = tmp_path / f"out{form.suffixes[0]}"
        write_records(path, file, file.frame["record_id"].to_list())
        assert read_records(path).rows == file.rows
