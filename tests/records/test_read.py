"""Every format and compression gives the same records, whatever their text."""

import csv
import gzip
import io
import json
import time
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delift_pipeline.core.errors import InputError
from delift_pipeline.records.read import read_records
from delift_pipeline.records.schema import RECORD_SCHEMA, record_id

Texts = tuple[str, str, str]

ODD: list[Texts] = [
    ("Windows\r\nlines", "tab\there", "old\rMac"),
    ("Emoji 👩‍👩‍👧 and Ünïcödé", "", 'quotes " and \\" and \''),
    ("separators \u2028 \u2029 \x85 \x0b \x0c", "a,b;c", " spaces around "),
    ("", "only an input", "[1, 2]"),
    ("\ufeffbyte order mark", "null", "NaN"),
]
CODECS = ["", ".gz", ".zst"]
FORMATS = [".jsonl", ".ndjson", ".json", ".csv", ".parquet"]


def encode(rows: list[dict[str, Any]], suffix: str) -> bytes:
    """Rows as another program would write them."""
    if suffix in (".jsonl", ".ndjson"):
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if suffix == ".json":
        return json.dumps(rows, ensure_ascii=False, indent=1).encode()
    if suffix == ".csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]), quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()
    buffer = io.BytesIO()
    pl.DataFrame(rows).write_parquet(buffer)
    return buffer.getvalue()


def pack(data: bytes, codec: str) -> bytes:
    if codec == ".gz":
        return gzip.compress(data)
    return pa.Codec("zstd").compress(data, asbytes=True) if codec == ".zst" else data


def write(folder: Path, rows: list[Texts], suffix: str, codec: str = "") -> Path:
    objects = [{"instruction": i, "input": x, "output": o} for i, x, o in rows]
    path = folder / f"odd{suffix}{codec}"
    path.write_bytes(pack(encode(objects, suffix), codec))
    return path


def texts_of(frame: pl.DataFrame) -> list[Texts]:
    return frame.select("instruction", "input", "output").rows()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("suffix", FORMATS)
def test_odd_text_comes_through_every_format(tmp_path: Path, suffix: str, codec: str) -> None:
    found = read_records(write(tmp_path, ODD, suffix, codec))
    assert found.frame.schema == RECORD_SCHEMA
    assert texts_of(found.frame) == ODD
    assert found.frame["record_id"].to_list() == [record_id(*row) for row in ODD]
    assert (found.read, found.folded, found.left_out, found.shape) == (len(ODD), 0, 0, "alpaca")
    assert (found.raw is not None) == (suffix in (".jsonl", ".ndjson"))


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
FILLED = TEXT.filter(lambda text: bool(text.strip()))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(FILLED, TEXT, FILLED), min_size=1, max_size=6, unique=True),
    suffix=st.sampled_from(FORMATS),
    codec=st.sampled_from(CODECS),
)
def test_any_text_comes_through(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Texts], suffix: str, codec: str
) -> None:
    found = read_records(write(tmp_path_factory.mktemp("any"), rows, suffix, codec))
    assert texts_of(found.frame) == rows


def test_lines_end_only_at_newlines_and_keep_their_text(tmp_path: Path) -> None:
    lines = [
        '{"instruction":"a\u2028b",  "output":"1.0", "extra": 1.50}',
        '{"output": "caf\\u00e9", "instruction": "q"}',
    ]
    path = tmp_path / "raw.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join([*lines, ""]).encode())
    found = read_records(path)
    assert found.raw == lines
    assert found.rows[0] == {"instruction": "a\u2028b", "output": "1.0", "extra": 1.5}
    assert found.frame["output"].to_list() == ["1.0", "café"]


def test_ids_source_and_task_are_taken_or_made_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.v2.jsonl.gz"
    rows = [
        {"instruction": "a", "output": "1", "id": 7, "task": "sums", "source": "web"},
        {"instruction": "b", "output": "2", "source_id": "x", "id": "y", "task": None},
        {"instruction": "c", "output": "3", "id": ""},
    ]
    path.write_bytes(gzip.compress(encode(rows, ".jsonl")))
    found = read_records(path)
    assert found.frame["source_ids"].to_list() == [["7"], ["x"], ["mine.v2-3"]]
    assert found.frame["source"].to_list() == ["web", "mine.v2.jsonl.gz", "mine.v2.jsonl.gz"]
    assert found.frame["task"].to_list() == ["sums", "", ""]
    assert found.derived == frozenset()


def test_what_the_file_name_decides_is_said(tmp_path: Path) -> None:
    found = read_records(write(tmp_path, ODD, ".jsonl"))
    assert found.derived == {"source", "source_ids"}


@pytest.mark.parametrize("name", ["data.txt", "data", "data.jsonl.bz2"])
def test_unknown_formats_are_refused_with_the_known_ones(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("Dear reader,\n")
    with pytest.raises(InputError, match=r"\.jsonl.*\.json.*\.csv.*\.parquet.*\.gz"):
        read_records(tmp_path / name)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".parquet.gz"])
def test_text_under_the_name_of_a_binary_format_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    path.write_bytes(b"Dear reader,\n")
    with pytest.raises(InputError, match=r"is not (Parquet|Arrow)"):
        read_records(path)


@pytest.mark.parametrize("codec", [".gz", ".zst"])
def test_a_compressed_file_cut_short_is_refused(tmp_path: Path, codec: str) -> None:
    path = write(tmp_path, [(f"question {n}", "", f"{n * n}") for n in range(500)], ".jsonl", codec)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match="cannot be read as"):
        read_records(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_records(tmp_path / "absent.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(InputError, match="no data file"):
        read_records(tmp_path / "folder.jsonl")


def test_fifty_thousand_records_take_seconds(tmp_path: Path) -> None:
    answer = "An answer of the length that Alpaca's have. " * 7
    rows = [
        (f"Instruction number {n} of many, a sentence long.", "", answer) for n in range(52_000)
    ]
    path = write(tmp_path, rows, ".jsonl")
    started = time.monotonic()
    found = read_records(path)
    assert found.frame.height == 52_000
    assert time.monotonic() - started < 30


@pytest.mark.data
@pytest.mark.parametrize("name", ["gsm8k/train", "dolly/train", "alpaca/v3_latest_cleaned"])
def test_real_files_load_whole(shared_data: Path, name: str) -> None:
    path = shared_data / f"{name}.jsonl"
    rows = path.read_bytes().count(b"\n")
    found = read_records(path)
    assert (found.frame.height, found.read, found.folded) == (rows, rows, 0)
    assert found.frame["source_ids"].list.len().eq(1).all()


@pytest.mark.data
def test_real_alpaca_is_refused_for_its_four_empty_answers(shared_data: Path) -> None:
    path = shared_data / "alpaca" / "v1_original.jsonl"
    with pytest.raises(InputError) as caught:
        read_records(path)
    places = [(fault.file, fault.line, fault.field) for fault in caught.value.faults]
    assert places == [(str(path), line, "output") for line in (285, 1224, 1348, 1737)]
    found = read_records(path, skip_bad=True)
    assert (found.frame.height, found.left_out, len(found.faults)) == (1996, 4, 4)
