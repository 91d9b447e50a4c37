"""Finding records by id, file id and prefix."""

import polars as pl
import pytest

from delift_pipeline.core.errors import InputError
from delift_pipeline.core.home import Home
from delift_pipeline.records.stored import find_record, find_stored_record, match_records

RECORDS = pl.DataFrame(
    {
        "record_id": ["ab1", "ab2", "cd", "ef"],
        "source_ids": [["1", "same"], ["2", "ab1"], ["3", "same"], ["3x"]],
    }
)


@pytest.mark.parametrize(
    ("name", "record"),
    [("ab2", "ab2"), ("2", "ab2"), ("c", "cd"), ("3", "cd"), ("3x", "ef"), ("ab1", "ab1")],
    ids=["record_id", "file_id", "prefix", "file_id_before_prefix", "longer", "record_id_first"],
)
def test_a_record_is_found_by_id_file_id_or_prefix(name: str, record: str) -> None:
    assert find_record(RECORDS, name) == record


def test_several_matches_are_refused_with_their_ids() -> None:
    with pytest.raises(InputError) as refused:
        find_record(RECORDS, "ab", field="--target")
    (fault,) = refused.value.faults
    assert fault.field == "--target"
    assert fault.reason == "'ab' fits 2 records (ab1, ab2): give a record_id"
    with pytest.raises(InputError, match=r"fits 4 records \(ab1, ab2, cd, \.\.\.\)"):
        find_record(RECORDS, "")
    with pytest.raises(InputError, match=r"fits 2 records \(ab1, cd\)"):
        find_record(RECORDS, "same")


def test_no_match_is_refused() -> None:
    with pytest.raises(InputError, match="no record of the file has the id 'x'"):
        find_record(RECORDS, "x", "no record of the file")
    with pytest.raises(InputError, match="no record has the id 'c'"):
        find_record(RECORDS, "c", prefix=False)


def test_a_record_that_is_listed_twice_is_one_match() -> None:
    twice = pl.concat([RECORDS, RECORDS])
    assert find_record(twice, "cd") == find_record(twice, "c") == find_record(twice, "3") == "cd"


def test_many_names_are_matched_at_once() -> None:
    found = match_records(RECORDS, ["same", "cd", "x", "ab", "3x"])
    assert found == {"same": ["ab1", "cd"], "cd": ["cd"], "x": [], "ab": [], "3x": ["ef"]}


def test_records_without_file_ids_have_record_ids_alone() -> None:
    bare = RECORDS.select("record_id")
    assert match_records(bare, ["cd", "3"]) == {"cd": ["cd"], "3": []}


def test_a_home_without_versions_is_refused(home: Home) -> None:
    with pytest.raises(InputError, match="no version is stored in this home"):
        find_stored_record(home, "x")
