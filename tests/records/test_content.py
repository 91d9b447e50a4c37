"""A file is read by what it holds: format, compression, encoding and separator."""

import contextlib
import gzip
import io
import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delift_pipeline.core.errors import Fault, InputError
from delift_pipeline.records.read import RecordsFile, read_records

ROWS: list[dict[str, Any]] = [
    {"instruction": "Name a metal.", "input": "", "output": "Iron."},
    {"instruction": "Name a river, please.", "input": "", "output": "Oder; or Łyna."},
]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
PRETTY = "\n".join(json.dumps(row, indent=2) for row in ROWS)
ARRAY = json.dumps(ROWS, indent=2)
WRAPPED = json.dumps({"version": 1, "tags": ["x"], "data": ROWS}, indent=2)
MARK = "\ufeff"


def read(folder: Path, name: str, content: str | bytes, **options: Any) -> RecordsFile:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_records(path, **options)


def refusal(folder: Path, name: str, content: str | bytes) -> tuple[Fault, ...]:
    with pytest.raises(InputError) as caught:
        read(folder, name, content)
    return caught.value.faults


def table(separator: str) -> str:
    lines = [["instruction", "input", "output"], *(list(row.values()) for row in ROWS)]
    return "".join(separator.join(f'"{cell}"' for cell in line) + "\n" for line in lines)


def parquet() -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame(ROWS).write_parquet(buffer)
    return buffer.getvalue()


def arrow(stream: bool) -> bytes:
    sink = pa.BufferOutputStream()
    values = pa.Table.from_pylist(ROWS)
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(sink, values.schema) as writer:
        writer.write_table(values)
    return sink.getvalue().to_pybytes()


CONTENTS: dict[str, tuple[str, str | bytes]] = {
    "lines under .json": ("a.json", LINES),
    "lines under another name": ("a.txt", LINES),
    "lines without a suffix": ("a", LINES),
    "an array under .jsonl": ("a.jsonl", ARRAY),
    "an array on one line under .jsonl": ("a.jsonl", json.dumps(ROWS)),
    "arrays that follow each other": ("a.jsonl", "".join(f"[{json.dumps(r)}]\n" for r in ROWS)),
    "pretty-printed objects under .jsonl": ("a.jsonl", PRETTY),
    "pretty-printed objects under .json": ("a.json", PRETTY),
    "an object around the array": ("a.json", WRAPPED),
    "an object around the array on one line": ("a.jsonl", json.dumps({"data": ROWS})),
    "semicolons": ("a.csv", table(";")),
    "tabs": ("a.csv", table("\t")),
    "bars": ("a.csv", table("|")),
    "tabs under .tsv": ("a.tsv", table("\t")),
    "tabs under .txt": ("a.txt", table("\t")),
    "a line that names the separator": ("a.csv", "sep=;\r\n" + table(";")),
    "a line that names the comma": ("a.csv", '"sep=,"\n' + table(",")),
    "a header that comes again": ("a.csv", table(",") + MARK + table(",").splitlines()[0] + "\n"),
    "gzip under another name": ("a.json", gzip.compress(LINES.encode())),
    "gzip without a suffix": ("a", gzip.compress(LINES.encode())),
    "zstd under another name": (
        "a.csv",
        pa.Codec("zstd").compress(table(";").encode()).to_pybytes(),
    ),
    "plain text under .gz": ("a.jsonl.gz", LINES),
    "Parquet under another name": ("a.jsonl", parquet()),
    "an Arrow stream": ("a.arrow", arrow(stream=True)),
    "an Arrow file": ("a.arrow", arrow(stream=False)),
    "UTF-16 with a mark": ("a.jsonl", LINES.encode("utf-16")),
    "UTF-16, big end first": ("a.jsonl", (MARK + LINES).encode("utf-16-be")),
    "UTF-16 without a mark": ("a.jsonl", LINES.encode("utf-16-le")),
    "UTF-16 of a table": ("a.csv", table("\t").encode("utf-16")),
    "UTF-32": ("a.jsonl", LINES.encode("utf-32")),
    "a mark before each line": (
        "a.jsonl",
        "".join(f"{MARK}{MARK}{x}\n" for x in LINES.split("\n")),
    ),
    "a mark before an array": ("a.json", MARK + MARK + ARRAY),
    "marks between objects": ("a.jsonl", MARK + PRETTY.replace("}\n{", f"}}\n{MARK}{{")),
    "two marks before a header": ("a.csv", MARK + MARK + table(",")),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_plain_content_is_read_whatever_the_name_says(tmp_path: Path, case: str) -> None:
    found = read(tmp_path, *CONTENTS[case])
    named = found.frame.select("instruction", "input", "output").to_dicts()
    assert named == ROWS
    assert found.rows == ROWS
    assert (found.read, found.notes) == (2, ())


def test_western_letters_of_windows_are_read_with_a_note(tmp_path: Path) -> None:
    content = "instruction;output\nName a drink.;Caf\xe9 \x80 3\nName a fish.;Cod\n"
    found = read(tmp_path, "a.csv", content.encode("latin-1"))
    assert found.frame["output"].to_list() == ["Café € 3", "Cod"]
    (note,) = found.notes
    assert "Windows-1252" in note and "line 2" in note and "a.csv" in note


@pytest.mark.parametrize(
    "answer",
    [
        "Привет, как дела? Всё хорошо, спасибо большое.".encode("cp1251"),
        "你好，今天天气很好。".encode("gbk"),
    ],
)
def test_other_scripts_are_not_taken_for_western_letters(tmp_path: Path, answer: bytes) -> None:
    (fault,) = refusal(tmp_path, "a.csv", b'instruction,output\na,b\nq,"' + answer + b'"\n')
    assert (fault.line, "UTF-8" in fault.reason) == (3, True)


def test_json_in_another_encoding_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (fault,) = refusal(tmp_path, "a.jsonl", LINES.encode() + '{"output": "é"}'.encode("cp1252"))
    assert fault.line == 3
    assert "iconv" in fault.reason


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\x03\x04rest", "Excel"),
        (b"BZh9rest", "bzip2"),
        (b"\xfd7zXZ\x00rest", "xz"),
        (LINES.encode("utf-16")[:-1], "UTF-16"),
        (json.dumps({"train": ROWS, "test": ROWS}).encode(), "jq .train"),
    ],
)
def test_what_cannot_be_read_is_named_in_one_sentence(
    tmp_path: Path, content: bytes, said: str
) -> None:
    (fault,) = refusal(tmp_path, "a.jsonl", content)
    assert said in fault.reason


def test_faults_of_pretty_printed_objects_have_their_line(tmp_path: Path) -> None:
    bad = (
        '{\n  "instruction": "a",\n  "output": "b",\n  "output": "c"\n}\n{\n  "instruction" 3\n}\n'
    )
    content = PRETTY + "\n" + bad + PRETTY
    faults = refusal(tmp_path, "a.jsonl", content)
    assert [fault.line for fault in faults] == [11, 16]
    assert "'output' occurs twice" in faults[0].reason
    assert "line 17" in faults[1].reason
    found = read(tmp_path, "a.jsonl", content, skip_bad=True)
    assert (found.read, found.left_out, found.frame.height) == (6, 2, 2)


def test_faults_inside_an_object_around_the_array_have_their_line(tmp_path: Path) -> None:
    content = json.dumps({"about": {"data": [1]}, "data": [*ROWS, {"instruction": "a"}]}, indent=1)
    (fault,) = refusal(tmp_path, "a.json", content)
    assert fault.line == content[: content.index('"a"')].count("\n")
    assert fault.field == "output"


def test_an_array_may_hold_a_key_twice_in_one_of_its_records(tmp_path: Path) -> None:
    content = f'[{json.dumps(ROWS[0])},\n{{"instruction": "a", "output": "b", "output": "c"}}]'
    found = read(tmp_path, "a.json", content, skip_bad=True)
    assert found.frame.height == 1
    assert [fault.line for fault in found.faults] == [2]


@pytest.mark.parametrize("first", ['{"instruction": "a"', '{"instruction": "a"},'])
def test_a_broken_first_line_is_a_fault_of_that_line_only(tmp_path: Path, first: str) -> None:
    (fault,) = refusal(tmp_path, "a.jsonl", f"{first}\n{LINES}")
    assert fault.line == 1


def test_one_conversation_alone_in_a_file_is_a_record(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    for content in (json.dumps({"messages": turns}), json.dumps({"messages": turns}, indent=1)):
        assert read(tmp_path, "a.json", content).shape == "chat"


def test_a_mapped_column_tells_the_separator(tmp_path: Path) -> None:
    content = "what, precisely;reply\nName a gas.;Argon.\n"
    found = read(
        tmp_path, "a.csv", content, mapping={"instruction": "what, precisely", "output": "reply"}
    )
    assert found.frame["output"].to_list() == ["Argon."]


@settings(max_examples=60, deadline=None)
@given(
    case=st.sampled_from(sorted(CONTENTS)),
    at=st.floats(0, 1),
    removed=st.integers(0, 20),
    put=st.sampled_from([b"", b"{", b"]", b'"', b"\n", b"\xff", b"\x00", MARK.encode()]),
    skip_bad=st.booleans(),
)
def test_a_damaged_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    case: str,
    at: float,
    removed: int,
    put: bytes,
    skip_bad: bool,
) -> None:
    name, content = CONTENTS[case]
    whole = content.encode() if isinstance(content, str) else content
    place = int(at * len(whole))
    damaged = whole[:place] + put + whole[place + removed :]
    with contextlib.suppress(InputError):
        found = read(tmp_path_factory.mktemp("damaged"), name, damaged, skip_bad=skip_bad)
        assert found.frame.height > 0
