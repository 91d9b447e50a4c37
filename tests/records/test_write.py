"""Chosen rows go back into files as they came."""

import base64
import datetime as dt
import json
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

from delift_pipeline.core.errors import DeliftError
from delift_pipeline.records.read import read_records, write_records

LINES = [
    '{"output":"1.0",   "instruction":"a\u2028b", "extra": 1.50}',
    '{"instruction": "caf\\u00e9", "output": "\\"quoted\\"", "extra": {"deep": [1, null]}}',
    '{"instruction": "c", "output": "d\\r\\n", "unused": "\\ud83d"}',
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.jsonl"
    path.write_bytes("\r\n".join(LINES).encode())
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".out", ""])
def test_lines_are_kept_verbatim_in_the_order_asked_for(
    tmp_path: Path, source: Path, suffix: str
) -> None:
    file = read_records(source)
    ids = file.frame["record_id"].to_list()
    out = tmp_path / "deep" / f"chosen{suffix}"
    write_records(out, file, [ids[2], ids[0]])
    assert out.read_bytes() == f"{LINES[2]}\n{LINES[0]}\n".encode()


@pytest.mark.parametrize("codec", ["", ".gz", ".zst"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_every_format_reads_back_the_same_records(tmp_path: Path, suffix: str, codec: str) -> None:
    source = tmp_path / "rows.json"
    rows = [
        {"instruction": "a\r\n,b", "input": None, "output": 'quo"te', "id": 1, "tags": ["x"]},
        {"instruction": "lone\rreturn", "input": "\u2028", "output": "🐝", "id": 2, "tags": []},
    ]
    source.write_text(json.dumps(rows))
    file = read_records(source)
    out = tmp_path / f"out{suffix}{codec}"
    write_records(out, file, file.frame["record_id"].to_list()[::-1])
    again = read_records(out)
    named = ["record_id", "instruction", "input", "output", "source_ids"]
    assert again.frame.select(named).equals(file.frame.select(named).reverse())
    if suffix not in (".csv", ".tsv"):
        assert again.rows == rows[::-1]


def test_equal_input_gives_equal_bytes(tmp_path: Path, source: Path) -> None:
    file = read_records(source)
    outs = [tmp_path / "one" / "out.jsonl.gz", tmp_path / "two" / "out.jsonl.gz"]
    for out in outs:
        write_records(out, file, file.frame["record_id"].to_list())
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_half_a_surrogate_pair_survives_as_an_escape(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out.json"
    file = read_records(source)
    write_records(out, file, [file.frame["record_id"][2]])
    assert json.loads(out.read_text(encoding="utf-8")) == [json.loads(LINES[2])]


def test_parquet_keeps_its_column_types(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "instruction": ["a", "b"],
            "output": ["c", "d"],
            "weight": pl.Series([1.5, None], dtype=pl.Float32),
            "day": [dt.date(2024, 5, 1), None],
        }
    )
    frame.write_parquet(tmp_path / "in.parquet")
    file = read_records(tmp_path / "in.parquet")
    write_records(tmp_path / "out.parquet", file, file.frame["record_id"].to_list())
    assert pl.read_parquet(tmp_path / "out.parquet").equals(frame)


def test_unknown_ids_write_nothing(tmp_path: Path, source: Path) -> None:
    with pytest.raises(DeliftError, match="not in the file"):
        write_records(tmp_path / "out.jsonl", read_records(source), ["0" * 32])
    assert not (tmp_path / "out.jsonl").exists()


def test_rows_that_do_not_fit_parquet_say_so(tmp_path: Path, source: Path) -> None:
    file = read_records(source)
    with pytest.raises(DeliftError, match="JSON Lines"):
        write_records(tmp_path / "out.parquet", file, file.frame["record_id"].to_list())


@pytest.fixture
def typed(tmp_path: Path) -> Path:
    """A Parquet file with what text formats have no value for."""
    frame = pl.DataFrame(
        {
            "instruction": ["a", "b"],
            "output": ["c", "d"],
            "score": [float("nan"), 0.5],
            "limits": [[float("inf"), 1.0], [2.0, None]],
            "day": [dt.date(2024, 5, 1), None],
            "at": [dt.datetime(2024, 5, 1, 12, 30, tzinfo=dt.UTC), None],
            "raw": [b"\xff\x00", b"plain"],
            "price": [Decimal("1.50"), Decimal("2.25")],
            "long_id": pl.Series([Decimal(2**70), Decimal(1)], dtype=pl.Decimal(38, 0)),
            "meta": [{"weight": float("nan"), "day": dt.date(2024, 5, 1)}, None],
        }
    )
    frame.write_parquet(tmp_path / "typed.parquet")
    return tmp_path / "typed.parquet"


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_text_formats_hold_dates_bytes_and_missing_numbers_as_readers_expect(
    tmp_path: Path, typed: Path, suffix: str
) -> None:
    file = read_records(typed)
    out = tmp_path / f"out{suffix}"
    write_records(out, file, file.frame["record_id"].to_list())
    assert "NaN" not in out.read_text("utf-8") and "Infinity" not in out.read_text("utf-8")
    again = read_records(out)
    named = ["record_id", "instruction", "output"]
    assert again.frame.select(named).equals(file.frame.select(named))
    row = again.rows[0]
    assert (row["day"], row["at"]) == ("2024-05-01", "2024-05-01T12:30:00+00:00")
    assert base64.b64decode(row["raw"]) == b"\xff\x00"
    if suffix == ".csv":
        assert row["score"] in ("", None)
        assert (row["price"], row["long_id"]) == ("1.5", str(2**70))
        assert json.loads(row["limits"]) == [None, 1.0]
    else:
        assert row["score"] is None and row["limits"] == [None, 1.0]
        assert (row["price"], row["long_id"]) == (1.5, 2**70)
        assert row["meta"] == {"weight": None, "day": "2024-05-01"}


def test_parquet_keeps_dates_bytes_and_missing_numbers(tmp_path: Path, typed: Path) -> None:
    file = read_records(typed)
    write_records(tmp_path / "out.parquet", file, file.frame["record_id"].to_list())
    assert pl.read_parquet(tmp_path / "out.parquet").equals(pl.read_parquet(typed))


def test_arrow_is_written_where_its_name_is_given(tmp_path: Path, typed: Path) -> None:
    file = read_records(typed)
    write_records(tmp_path / "out.arrow", file, file.frame["record_id"].to_list())
    assert pl.read_ipc(tmp_path / "out.arrow").equals(pl.read_parquet(typed))
    assert read_records(tmp_path / "out.arrow").frame["output"].equals(file.frame["output"])
