from pathlib import Path

import polars as pl
import pytest

from delift_pipeline.core.errors import DeliftError
from delift_pipeline.core.hashing import digest_bytes, digest_frame, digest_text
from delift_pipeline.core.manifest import (
    Manifest,
    mark_for_rebuilding,
    read_manifest,
    rebuild_reason,
    up_to_date,
)


def test_manifest_survives_writing_and_reading(tmp_path: Path) -> None:
    manifest = Manifest(kind="subset", content_hash="0" * 32, parents={"dataset:v1": "1" * 32})
    manifest.write(tmp_path)
    assert read_manifest(tmp_path) == manifest
    assert manifest.packages["polars"] == pl.__version__


def test_missing_manifest_reads_as_none(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None


def test_damaged_manifest_is_a_failure_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DeliftError, match=r"manifest\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("request_", "parents", "code", "same"),
    [
        ({"a": 1}, {"p": "x"}, "1", True),
        ({"a": 2}, {"p": "x"}, "1", False),
        ({"a": 1}, {"p": "y"}, "1", False),
        ({"a": 1}, {"p": "x"}, "2", False),
    ],
)
def test_artifact_is_up_to_date_only_for_the_same_request_parents_and_code(
    tmp_path: Path, request_: dict, parents: dict, code: str, same: bool
) -> None:
    Manifest(kind="subset", content_hash="0", request={"a": 1}, parents={"p": "x"}).write(tmp_path)
    assert (up_to_date(tmp_path, request_, parents, code) is not None) is same


def test_digests_keep_parts_apart() -> None:
    assert digest_text("ab", "c") != digest_text("a", "bc")
    assert digest_bytes(b"") != digest_bytes()
    assert len(digest_text("x")) == 32


def test_frame_digest_sees_values_types_and_order() -> None:
    frame = pl.DataFrame({"x": [1, 2]})
    assert digest_frame(frame) == digest_frame(frame.clone())
    assert digest_frame(frame) != digest_frame(frame.reverse())
    assert digest_frame(frame) != digest_frame(frame.cast(pl.Int8))


def test_marked_artifact_is_not_up_to_date_until_it_is_written_again(tmp_path: Path) -> None:
    manifest = Manifest(kind="subset", content_hash="a", parents={"p": "1"}, request={"r": 1})
    manifest.write(tmp_path)
    assert up_to_date(tmp_path, {"r": 1}, {"p": "1"}, "1") is not None
    mark_for_rebuilding(tmp_path, "record x was forgotten")
    assert rebuild_reason(tmp_path) == "record x was forgotten"
    assert up_to_date(tmp_path, {"r": 1}, {"p": "1"}, "1") is None
    manifest.write(tmp_path)
    assert rebuild_reason(tmp_path) is None
    assert up_to_date(tmp_path, {"r": 1}, {"p": "1"}, "1") is not None
