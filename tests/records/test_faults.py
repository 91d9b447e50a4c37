"""Every fault of a file is named on its own, with line, field and reason."""

import json
from pathlib import Path

import polars as pl
import pytest

from delift_pipeline.core.errors import Fault, InputError
from delift_pipeline.records.read import read_records

GOOD = b'{"id": "g", "instruction": "Add 1 and 1.", "input": "", "output": "2"}'

BAD_LINES = {
    "not JSON": (b'{"instruction": "a"', None, "invalid JSON"),
    "not a number of JSON": (
        b'{"instruction": "a", "output": NaN}',
        None,
        "NaN is not a JSON value",
    ),
    "too deep": (b"[" * 100_000, None, "nested too deeply"),
    "a list": (b'["a", "b"]', None, "not an object but a JSON list"),
    "a number": (b"12", None, "not an object but a JSON number"),
    "missing output": (b'{"instruction": "a"}', "output", "missing"),
    "missing instruction": (b'{"input": "a", "output": "b"}', "instruction", "missing"),
    "null output": (b'{"instruction": "a", "output": null}', "output", "not null"),
    "number as output": (b'{"instruction": "a", "output": 4}', "output", "text, not number"),
    "flag as input": (
        b'{"instruction": "a", "input": true, "output": "b"}',
        "input",
        "text, not true/false",
    ),
    "list as instruction": (
        b'{"instruction": ["a"], "output": "b"}',
        "instruction",
        "text, not list",
    ),
    "empty prompt": (
        b'{"instruction": " ", "input": "\\n", "output": "b"}',
        "instruction",
        "empty, and so is the input",
    ),
    "empty output": (b'{"instruction": "a", "output": " \\t"}', "output", "empty"),
    "not UTF-8": (
        b'{"instruction": "caf\xe9", "output": "b"}',
        None,
        "not valid UTF-8 (byte 21 of the line)",
    ),
    "object as output": (b'{"instruction": "a", "output": {"b": 1}}', "output", "json.dumps"),
    "NUL": (b'{"instruction": "a\\u0000b", "output": "c"}', "instruction", "NUL character"),
    "half a pair": (b'{"instruction": "a", "output": "\\ud83d"}', "output", "surrogate"),
    "number with a fraction as id": (
        b'{"id": 1.5, "instruction": "a", "output": "b"}',
        "id",
        "whole number, not 1.5",
    ),
    "object as task": (
        b'{"task": {}, "instruction": "a", "output": "b"}',
        "task",
        "whole number, not object",
    ),
    "a key twice": (
        b'{"instruction": "a", "output": "b", "output": "c"}',
        None,
        "'output' occurs twice",
    ),
    "a key twice inside": (
        b'{"instruction": "a", "output": "b", "more": [{"k": 1, "k": 2}]}',
        None,
        "'k' occurs twice",
    ),
}


def faults_of(path: Path) -> tuple[Fault, ...]:
    with pytest.raises(InputError) as caught:
        read_records(path)
    return caught.value.faults


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_named_and_can_be_left_out(tmp_path: Path, case: str) -> None:
    line, field, reason = BAD_LINES[case]
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"\n".join([GOOD, b"", line, GOOD]))
    (fault,) = faults_of(path)
    assert (fault.file, fault.line, fault.field) == (str(path), 3, field)
    assert reason in fault.reason
    found = read_records(path, skip_bad=True)
    assert (found.frame.height, found.read, found.folded, found.left_out) == (1, 3, 1, 1)
    assert found.faults == [fault]


def test_all_faults_come_at_once_in_file_order(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    lines = [line for line, _, _ in BAD_LINES.values()]
    path.write_bytes(b"\n".join([GOOD, *lines]))
    faults = faults_of(path)
    assert [fault.line for fault in faults] == list(range(2, len(lines) + 2))
    assert read_records(path, skip_bad=True).left_out == len(lines)


def test_one_row_may_have_several_faults(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(GOOD + b'\n{"id": [], "instruction": 3, "output": "\\u0000"}\n')
    assert [fault.field for fault in faults_of(path)] == ["instruction", "output", "id"]
    assert read_records(path, skip_bad=True).left_out == 1


@pytest.mark.parametrize("content", [b"", b"\n\n", b'{"instruction": "a", "output": ""}\n', b"{\n"])
def test_a_file_with_no_good_record_is_refused_even_with_skip_bad(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match="no good record"):
        read_records(path, skip_bad=True)


@pytest.mark.parametrize(("indent", "lines"), [(None, [2, 3]), (2, [8, 9])])
def test_faults_of_a_json_array_have_their_line_or_their_position_in_a_single_line(
    tmp_path: Path, indent: int | None, lines: list[int]
) -> None:
    path = tmp_path / "bad.json"
    rows = [json.loads(GOOD), 3, {"instruction": "a", "output": 1}]
    path.write_text(json.dumps(rows, indent=indent))
    faults = faults_of(path)
    assert [(fault.line, fault.field) for fault in faults] == [
        (lines[0], None),
        (lines[1], "output"),
    ]


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        (b"[" + GOOD + b", {]", 2, "invalid JSON"),
        (b"[" + GOOD + b" " + GOOD + b"]", 2, "Expecting ','"),
        (b"[" + GOOD + b",", 2, "invalid JSON"),
    ],
)
def test_a_broken_array_is_refused_whole(
    tmp_path: Path, content: bytes, line: int, reason: str
) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    for skip_bad in (False, True):
        with pytest.raises(InputError) as caught:
            read_records(path, skip_bad=skip_bad)
        assert (caught.value.faults[-1].line, len(caught.value.faults)) == (line, 1)
        assert reason in caught.value.faults[-1].reason


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        (
            "bad.json",
            b'[\n{"instruction":"a","output":"b"},\n{"instruction":"\xff","output":"b"}]',
            3,
        ),
        ("bad.csv", "instruction,output\na,é\nx,caf".encode() + b"\xe9\n", 3),
    ],
)
def test_bytes_that_are_not_utf8_are_found_in_every_format(
    tmp_path: Path, name: str, content: bytes, line: int
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    (fault,) = faults_of(path)
    assert fault.line == line
    assert "not valid UTF-8" in fault.reason
    assert read_records(path, skip_bad=True).frame.height == 1


def test_csv_faults_have_the_physical_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(
        b'instruction,input,output\r\n"two\nlines\ralso",,fine\r\n\r\na,b\r\n'
        b'a,b,c,d\r\na,,\r\n"x"y,,z\r\nnul\x00,,z\r\n'
    )
    faults = faults_of(path)
    assert [fault.line for fault in faults] == [5, 6, 7, 8, 9]
    assert "2 cells where the header has 3" in faults[0].reason
    assert "4 cells where the header has 3" in faults[1].reason
    assert (faults[2].field, "empty" in faults[2].reason) == ("output", True)
    assert "invalid CSV" in faults[3].reason
    assert "NUL" in faults[4].reason
    assert read_records(path, skip_bad=True).frame["instruction"].to_list() == ["two\nlines\ralso"]


def test_a_quote_that_never_ends_is_named_where_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text('instruction,output\na,b\n"c,d\ne,f\n')
    (fault,) = faults_of(path)
    assert fault.line == 3


@pytest.mark.parametrize(
    ("header", "reason"), [("", "header"), ("instruction,output,output", "'output'")]
)
def test_an_unusable_csv_header_is_refused(tmp_path: Path, header: str, reason: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(f"{header}\na,b,c\n" if header else "")
    (fault,) = faults_of(path)
    assert (fault.line, reason in fault.reason) == (1, True)


def test_parquet_faults_have_the_row(tmp_path: Path) -> None:
    path = tmp_path / "bad.parquet"
    pl.DataFrame(
        {"instruction": ["a", None], "input": [None, "b"], "output": ["c", "d"]}
    ).write_parquet(path)
    (fault,) = faults_of(path)
    assert (fault.line, fault.field) == (2, "instruction")


def test_a_parquet_column_of_numbers_is_a_fault_in_every_row(tmp_path: Path) -> None:
    path = tmp_path / "bad.parquet"
    pl.DataFrame({"instruction": ["a", "b"], "output": [1, 2]}).write_parquet(path)
    assert [fault.line for fault in faults_of(path)] == [1, 2]
