"""Identities never change by accident: stored scores are found by them."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from delift_pipeline.records.schema import RECORD_SCHEMA, content_hash, record_id

PINNED = {
    ("Add the numbers.", "2 and 3", "5"): "fff35048338c80c6ee62165863ee7f25",
    ("Give three tips.", "", "Sleep.\nEat.\nMove."): "ea27799071a4bf8a93a8b13d2e735b4b",
    ("Übersetze: 🐝", "tab\there", "line\u2028separator\r\n"): "952a303a544a5652d2769d1b6ab03b09",
}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@pytest.mark.parametrize(("texts", "expected"), PINNED.items())
def test_known_ids_are_pinned(texts: tuple[str, str, str], expected: str) -> None:
    assert record_id(*texts) == expected


@given(left=st.tuples(TEXT, TEXT, TEXT), right=st.tuples(TEXT, TEXT, TEXT))
def test_ids_are_equal_exactly_when_all_texts_are(
    left: tuple[str, str, str], right: tuple[str, str, str]
) -> None:
    assert (record_id(*left) == record_id(*right)) == (left == right)


def test_text_moved_between_fields_is_another_record() -> None:
    ids = {record_id("ab", "", "c"), record_id("a", "b", "c"), record_id("", "ab", "c")}
    assert len(ids) == 3


def frame(*rows: tuple[str, str, int, list[str]]) -> pl.DataFrame:
    """Records as (output, source, copies, source ids)."""
    columns = [
        {
            "record_id": record_id("q", "", output),
            "instruction": "q",
            "input": "",
            "output": output,
            "source": source,
            "task": "",
            "copies": copies,
            "source_ids": names,
        }
        for output, source, copies, names in rows
    ]
    return pl.DataFrame(columns, schema=RECORD_SCHEMA)


def test_content_hash_is_pinned() -> None:
    assert (
        content_hash(frame(("x", "s", 1, ["1"]), ("y", "s", 1, ["2"])))
        == "3d332ea4b30b81ba3b70359c6bb130a0"
    )


def test_content_hash_ignores_order_and_copies() -> None:
    one = frame(("x", "s", 1, ["1"]), ("y", "s", 1, ["2"]))
    other = frame(("y", "s", 1, ["2"]), ("x", "s", 7, ["1"]))
    assert content_hash(one) == content_hash(other)


@pytest.mark.parametrize(
    "changed", [("z", "s", 1, ["1"]), ("x", "t", 1, ["1"]), ("x", "s", 1, ["9"])]
)
def test_content_hash_covers_records_and_metadata(changed: tuple[str, str, int, list[str]]) -> None:
    assert content_hash(frame(("x", "s", 1, ["1"]))) != content_hash(frame(changed))


def test_what_the_file_name_decides_is_no_content() -> None:
    derived = ("source", "source_ids")
    one, other = frame(("x", "a.jsonl", 1, ["a-1"])), frame(("x", "b.jsonl", 1, ["b-9"]))
    assert content_hash(one, derived) == content_hash(other, derived)
