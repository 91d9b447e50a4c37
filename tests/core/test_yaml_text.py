"""YAML files of every kind: the lines of fields, and faults of one line each."""

from collections.abc import Callable
from pathlib import Path

import pytest

from delift_pipeline.core.errors import InputError
from delift_pipeline.core.validation import parse_yaml
from delift_pipeline.prompts.template import load_template
from delift_pipeline.records.inbox import VERSION_FILE, read_version_file


def test_every_field_has_the_line_of_its_key() -> None:
    document = parse_yaml("a:\n  b: {c: 1}\n\n  d: [1, 2]\ne:\n", "x.yaml")
    assert document.value == {"a": {"b": {"c": 1}, "d": [1, 2]}, "e": None}
    assert document.lines == {"a": 1, "a.b": 2, "a.b.c": 2, "a.d": 4, "e": 5}
    assert document.repeated == ()


def test_an_alias_of_a_mapping_around_it_ends() -> None:
    document = parse_yaml("a: &a\n  b: *a\n", "x.yaml")
    assert document.lines == {"a": 1, "a.b": 2}


@pytest.mark.parametrize(
    "read",
    [lambda path: load_template(str(path)), lambda path: read_version_file(path.parent)],
    ids=["template", "version"],
)
@pytest.mark.parametrize(
    ("content", "line", "word"),
    [(b"a: 1\nb: [\n", 3, "YAML"), ("a: 1\nb: größer\n".encode("latin-1"), 2, "UTF-8")],
    ids=["syntax", "encoding"],
)
def test_a_file_that_cannot_be_read_is_one_fault_with_its_line(
    tmp_path: Path, read: Callable[[Path], object], content: bytes, line: int, word: str
) -> None:
    path = tmp_path / VERSION_FILE
    path.write_bytes(content)
    with pytest.raises(InputError) as refused:
        read(path)
    (fault,) = refused.value.faults
    assert fault.line == line and str(fault.file).endswith(VERSION_FILE)
    assert word in fault.reason and "\n" not in fault.reason
