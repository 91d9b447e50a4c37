"""The recognised shapes, column mappings, and files that are neither."""

import json
from pathlib import Path
from typing import Any

import pytest

from delift_pipeline.core.errors import InputError
from delift_pipeline.records.read import RecordsFile, read_parts, read_records


def load(folder: Path, *rows: dict[str, Any], **options: Any) -> RecordsFile:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_records(path, **options)


def texts(found: RecordsFile) -> list[tuple[str, str, str]]:
    return found.frame.select("instruction", "input", "output").rows()


@pytest.mark.parametrize(
    ("row", "shape", "expected"),
    [
        ({"instruction": "i", "input": "x", "output": "o"}, "alpaca", ("i", "x", "o")),
        ({"instruction": "i", "input": None, "output": "o"}, "alpaca", ("i", "", "o")),
        ({"instruction": "i", "context": "x", "response": "o"}, "dolly", ("i", "x", "o")),
        ({"prompt": "i", "response": "o"}, "prompt/response", ("i", "", "o")),
        ({"prompt": "i", "completion": "o"}, "prompt/completion", ("i", "", "o")),
        ({"question": "i", "answer": "o"}, "question/answer", ("i", "", "o")),
        ({"question": "i", "context": "x", "answer": "o"}, "question/answer", ("i", "x", "o")),
    ],
)
def test_columns_tell_the_shape(
    tmp_path: Path, row: dict[str, Any], shape: str, expected: tuple[str, str, str]
) -> None:
    found = load(tmp_path, row)
    assert (found.shape, texts(found)) == (shape, [expected])


def turns(*pairs: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (turns(("user", "q"), ("assistant", "a")), ("q", "", "a")),
        (
            turns(("system", "Be brief."), ("user", "q"), ("assistant", "a")),
            ("q", "System: Be brief.", "a"),
        ),
        (
            turns(
                ("system", "s"),
                ("user", "q1"),
                ("assistant", "a1\nmore"),
                ("user", "q2"),
                ("tool", "42"),
                ("assistant", "a2"),
                ("user", "thanks"),
            ),
            ("q2", "System: s\n\nUser: q1\n\nAssistant: a1\nmore\n\nTool: 42", "a2"),
        ),
        (turns(("system", "Write."), ("assistant", "a")), ("", "System: Write.", "a")),
    ],
)
def test_a_conversation_becomes_prompt_and_answer(
    tmp_path: Path, row: dict[str, Any], expected: tuple[str, str, str]
) -> None:
    found = load(tmp_path, row | {"id": "c1", "task": "chat"})
    assert (found.shape, texts(found)) == ("chat", [expected])
    assert found.frame["source_ids"].to_list() == [["c1"]]


@pytest.mark.parametrize(
    ("value", "field", "reason"),
    [
        ("hello", "messages", "list of turns, not text"),
        ([], "messages", "no assistant turn"),
        ([{"role": "user", "content": "q"}], "messages", "no assistant turn"),
        ([{"role": "assistant", "content": "a"}], "messages", "empty, and so is the input"),
        (turns(("user", "q"), ("assistant", " "))["messages"], "messages[1].content", "empty"),
        (turns(("user", ""), ("assistant", "a"))["messages"], "messages[0].content", "empty"),
        (turns(("user", None), ("assistant", "a"))["messages"], "messages[0].content", "not null"),
        (turns(("user", ["q"]), ("assistant", "a"))["messages"], "messages[0].content", "not list"),
        (["q", {"role": "assistant", "content": "a"}], "messages[0]", "object, not text"),
        (
            [{"content": "q"}, {"role": "assistant", "content": "a"}],
            "messages[0].role",
            "missing",
        ),
    ],
)
def test_a_faulty_conversation_is_named(
    tmp_path: Path, value: Any, field: str, reason: str
) -> None:
    good = turns(("user", "q"), ("assistant", "a"))
    with pytest.raises(InputError) as caught:
        load(tmp_path, good, {"messages": value})
    (fault,) = caught.value.faults
    assert (fault.line, fault.field) == (2, field)
    assert reason in fault.reason


def test_a_mapping_names_the_columns(tmp_path: Path) -> None:
    row = {"q": "i", "notes": "x", "a": "o", "key": 5, "kind": "t", "instruction": "unused"}
    mapping = {"instruction": "q", "input": "notes", "output": "a", "id": "key", "task": "kind"}
    found = load(tmp_path, row, mapping=mapping)
    assert (found.shape, texts(found)) == ("mapping", [("i", "x", "o")])
    assert found.frame.select("source_ids", "task").row(0) == (["5"], "t")


def test_a_mapping_leaves_other_fields_to_their_own_names(tmp_path: Path) -> None:
    found = load(tmp_path, {"instruction": "i", "answer": "o"}, mapping={"output": "answer"})
    assert texts(found) == [("i", "", "o")]


def test_a_mapping_may_name_a_conversation(tmp_path: Path) -> None:
    row = {"turns": turns(("user", "q"), ("assistant", "a"))["messages"]}
    assert texts(load(tmp_path, row, mapping={"messages": "turns"})) == [("q", "", "a")]


@pytest.mark.parametrize(
    ("mapping", "fields"),
    [
        ({"question": "q", "reply": "a"}, {"question", "reply"}),
        ({"messages": "m", "output": "a"}, {"messages"}),
        ({"instruction": "absent", "output": "gone"}, {"instruction", "output"}),
        ({"input": "absent", "instruction": "q", "output": "a"}, {"input"}),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused(
    tmp_path: Path, mapping: dict[str, str], fields: set[str]
) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, {"q": "i", "a": "o"}, mapping=mapping)
    assert {fault.field for fault in caught.value.faults} == fields


def test_a_column_that_one_text_took_is_no_longer_another(tmp_path: Path) -> None:
    row = {"id": "q1", "input": "Name a lake.", "output": "Como."}
    assert texts(load(tmp_path, row, mapping={"instruction": "input"})) == [
        ("Name a lake.", "", "Como.")
    ]
    row = {"task": "Name a lake.", "output": "Como."}
    found = load(tmp_path, row, mapping={"instruction": "task"})
    assert found.frame.select("instruction", "task").row(0) == ("Name a lake.", "")
    found = load(tmp_path, row | {"id": "q"}, mapping={"instruction": "id"})
    assert found.frame["source_ids"].to_list() == [["rows-1"]]


def test_a_mapping_that_takes_the_answers_column_has_to_name_another(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, {"instruction": "i", "output": "o"}, mapping={"input": "output"})
    assert [fault.field for fault in caught.value.faults] == ["output"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "response": "r", "q": "question"},
        {"instruction": "i", "context": "c", "response": "r", "q": "question"},
    ],
)
def test_a_column_named_for_a_text_is_not_passed_over_for_a_shape_that_is_recognised(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, row, mapping={"instruction": "q"})
    assert [fault.field for fault in caught.value.faults] == ["output"]


def test_an_object_of_records_is_refused_without_naming_every_key(tmp_path: Path) -> None:
    records = {f"id{n}": {"instruction": "i", "output": "o"} for n in range(5_000)}
    with pytest.raises(InputError) as caught:
        load(tmp_path, records)
    (fault,) = caught.value.faults
    assert "4,980 more" in fault.reason and len(fault.reason) < 1_000


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_mapping_applies_to_the_files_that_have_its_columns(tmp_path: Path) -> None:
    mapping = {"instruction": "question", "task": "kind"}
    parts = {
        "file": write(tmp_path / "f.jsonl", {"question": "q", "output": "o", "kind": "k"}),
        "target": write(tmp_path / "t.jsonl", {"instruction": "i", "output": "o"}),
        "existing": write(tmp_path / "e.jsonl", {"question": "e", "output": "o"}),
    }
    read, faults = read_parts(parts, mapping=mapping)
    assert faults == []
    found = {part: file.frame.select("instruction", "task").row(0) for part, file in read.items()}
    assert found == {"file": ("q", "k"), "target": ("i", ""), "existing": ("e", "")}
    both = read_records([parts["file"], parts["target"]], mapping=mapping)
    assert both.frame["instruction"].to_list() == ["q", "i"]


def test_a_mapped_column_that_no_file_has_is_refused_once(tmp_path: Path) -> None:
    parts = {
        "file": write(tmp_path / "f.jsonl", {"question": "q", "output": "o"}),
        "target": write(tmp_path / "t.jsonl", {"instruction": "i", "output": "o"}),
    }
    _, faults = read_parts(parts, mapping={"instruction": "question", "task": "kynd"})
    assert [fault.field for fault in faults] == ["task"]
    assert "'kynd'" in faults[0].reason and "question" in faults[0].reason


def test_a_mapped_task_goes_with_any_recognised_shape(tmp_path: Path) -> None:
    row = turns(("user", "q"), ("assistant", "a")) | {"kind": "k"}
    found = load(tmp_path, row, mapping={"task": "kind"})
    assert (found.shape, found.frame["task"].to_list()) == ("chat", ["k"])


def test_an_unrecognised_shape_is_refused_with_what_was_found_and_what_is_known(
    tmp_path: Path,
) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, {"text": "a", "label": "b"}, skip_bad=True)
    assert "columns found: text, label" in str(caught.value)
    for known in ("alpaca (instruction, output)", "chat (messages)", "question/answer"):
        assert known in str(caught.value)


def test_mixed_shapes_are_refused_with_the_first_place(tmp_path: Path) -> None:
    alpaca = [{"instruction": f"i{n}", "output": "o"} for n in range(3)]
    with pytest.raises(InputError) as caught:
        load(tmp_path, *alpaca, {"prompt": "p", "response": "r"}, skip_bad=True)
    (fault,) = caught.value.faults
    assert fault.line == 4
    assert "1 of 4 rows are not alpaca" in fault.reason
    assert "prompt/response (columns found: prompt, response)" in fault.reason
