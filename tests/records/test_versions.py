"""Dataset versions: immutable, disjoint, recorded."""

import json
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from delift_pipeline.core.errors import DeliftError, InputError
from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import Manifest, read_manifest
from delift_pipeline.records.schema import record_id
from delift_pipeline.records.stored import compare_with_parents, load_version
from delift_pipeline.records.versions import ingest


def rows(*numbers: int, **more: Any) -> list[dict[str, Any]]:
    return [{"instruction": f"square {n}", "output": str(n * n), **more} for n in numbers]


def identity(number: int) -> str:
    return record_id(f"square {number}", "", str(number * number))


class Files:
    """Writes JSON Lines files under one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, name: str, content: list[dict[str, Any]]) -> Path:
        path = self.folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
        return path


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture
def first(home: Home, files: Files) -> Manifest:
    """Version squares-v1: a pool of 0..9 with 90..91 held out."""
    heldout = files("held", rows(90, 91))
    return ingest(home, files("pool", rows(*range(10))), version="squares-v1", heldout=heldout)


def test_a_version_reads_back_as_it_was_ingested(home: Home, files: Files) -> None:
    manifest = ingest(
        home,
        files("pool", rows(3, 1, 2, 1)),
        version="squares-v1",
        target=files("target", rows(50)),
        heldout=files("held", rows(90, 91)),
        coverage="all",
        model="tiny",
    )
    version = load_version(home, "squares-v1")
    assert version.manifest == manifest
    assert version.pool["record_id"].to_list() == [identity(3), identity(1), identity(2)]
    assert version.pool["copies"].to_list() == [1, 2, 1]
    assert version.target is not None
    assert version.target["record_id"].to_list() == [identity(50)]
    assert version.heldout.height == 2
    assert version.stages() == ("instruction_tuning", "task_specific")
    assert manifest.counts == {
        "pool": 3,
        "target": 1,
        "heldout": 2,
        "read": 7,
        "folded": 1,
        "left_out": 0,
        "withheld": 0,
        "new": 3,
    }
    expected = {
        "dataset": "squares",
        "version": "squares-v1",
        "parents": [],
        "coverage": "all",
        "existing": "subset",
        "model": "tiny",
        "template": None,
        "shape": "alpaca",
        "left_out": 0,
    }
    assert expected.items() <= manifest.details.items()


def test_nothing_stored_names_an_absolute_path(home: Home, files: Files) -> None:
    ingest(home, files("pool", rows(*range(5))), version="v1")
    for path in home.dataset("v1").iterdir():
        assert str(home.root).encode() not in path.read_bytes()


def test_the_same_again_does_nothing_and_other_content_is_refused(
    home: Home, files: Files, first: Manifest
) -> None:
    pool, heldout = files("pool", rows(*range(10))), files("held", rows(90, 91))
    before = (home.dataset("squares-v1") / "manifest.json").read_bytes()
    again = ingest(home, pool, version="squares-v1", heldout=heldout)
    assert again == first
    with pytest.raises(InputError, match="other records"):
        ingest(home, files("other", rows(1, 2)), version="squares-v1", heldout=heldout)
    with pytest.raises(InputError, match="other coverage"):
        ingest(home, pool, version="squares-v1", heldout=heldout, coverage="all")
    assert (home.dataset("squares-v1") / "manifest.json").read_bytes() == before


def test_order_copies_and_file_names_do_not_change_the_hash(home: Home, files: Files) -> None:
    numbers = list(range(30))
    one = ingest(home, files("a", rows(*numbers)), version="a")
    random.Random(1).shuffle(numbers)
    other = ingest(home, files("b", rows(*numbers, *numbers[:7])), version="b")
    assert one.content_hash == other.content_hash
    assert load_version(home, "b").pool["instruction"][0] != "square 0"


def test_the_roles_of_records_change_the_hash(home: Home, files: Files) -> None:
    one = ingest(home, files("a", rows(1, 2)), version="a", heldout=files("h", rows(3)))
    other = ingest(home, files("b", rows(1, 3)), version="b", heldout=files("i", rows(2)))
    assert one.content_hash != other.content_hash


@pytest.mark.parametrize(
    ("target", "heldout", "shared"),
    [
        ([1, 50], [90], {"target": 1}),
        ([50], [2, 90], {"heldout": 2}),
        ([50], [50], {"heldout": 50}),
    ],
)
def test_sets_that_share_records_are_refused_with_their_ids(
    home: Home, files: Files, target: list[int], heldout: list[int], shared: dict[str, int]
) -> None:
    with pytest.raises(InputError) as caught:
        ingest(
            home,
            files("pool", rows(1, 2, 3)),
            version="v1",
            target=files("t", rows(*target)),
            heldout=files("h", rows(*heldout)),
        )
    found = {fault.field: fault.reason for fault in caught.value.faults}
    assert found.keys() == shared.keys()
    assert all(identity(number) in found[field] for field, number in shared.items())
    assert home.versions() == []


def test_many_shared_records_are_counted_and_the_first_named(home: Home, files: Files) -> None:
    pool = files("pool", rows(*range(30)))
    with pytest.raises(InputError) as caught:
        ingest(home, pool, version="v1", heldout=files("h", rows(*range(5, 30))))
    (fault,) = caught.value.faults
    assert "25 records" in fault.reason
    assert fault.reason.count("pool-") == 20


def test_held_out_records_may_not_be_in_a_parents_pool(
    home: Home, files: Files, first: Manifest
) -> None:
    with pytest.raises(InputError, match="the pool of squares-v1"):
        ingest(
            home,
            files("next", rows(20, 21)),
            version="squares-v2",
            parents=["squares-v1"],
            heldout=files("h", rows(4, 95)),
        )


def test_a_child_takes_its_parents_held_out_set_and_knows_what_is_new(
    home: Home, files: Files, first: Manifest
) -> None:
    pool = files("next", rows(8, 9, 10, 11, 12))
    manifest = ingest(home, pool, version="squares-v2", parents=["squares-v1"])
    version = load_version(home, "squares-v2")
    assert version.parents == ("squares-v1",)
    assert version.stages() == ("instruction_tuning", "continual")
    assert version.heldout.equals(load_version(home, "squares-v1").heldout)
    assert version.new_records(home)["record_id"].to_list() == [identity(n) for n in (10, 11, 12)]
    assert (manifest.counts["new"], manifest.details["heldout_from"]) == (3, "squares-v1")
    assert manifest.parents == {"dataset:squares-v1": first.content_hash}
    assert manifest.details["dataset"] == "squares"
    assert manifest.details["heldout_hash"] == first.details["heldout_hash"]


def test_a_child_of_two_parents(home: Home, files: Files, first: Manifest) -> None:
    ingest(home, files("b", rows(20, 21)), version="b", heldout=files("hb", rows(95)))
    pool = files("c", rows(9, 20, 30))
    manifest = ingest(home, pool, version="c", parents=["squares-v1", "b"], dataset="mine")
    assert set(manifest.parents) == {"dataset:squares-v1", "dataset:b"}
    new = load_version(home, "c").new_records(home)
    assert new["record_id"].to_list() == [identity(30)]
    assert manifest.details["dataset"] == "mine"


def test_a_parents_held_out_file_in_the_pool_is_refused(
    home: Home, files: Files, first: Manifest
) -> None:
    with pytest.raises(InputError, match=identity(91)):
        ingest(home, files("n", rows(10, 91)), version="v2", parents=["squares-v1"])


class TestSetAside:
    def test_a_seeded_tenth_is_recorded_and_leaves_the_pool(self, home: Home, files: Files) -> None:
        manifest = ingest(home, files("pool", rows(*range(25))), version="v1")
        version = load_version(home, "v1")
        assert manifest.details["heldout_set_aside"] == {"share": 0.1, "seed": 0, "rows": 3}
        assert (version.pool.height, version.heldout.height) == (22, 3)
        assert set(version.pool["record_id"]).isdisjoint(version.heldout["record_id"])

    def test_the_draw_depends_on_the_records_and_not_their_order(
        self, home: Home, files: Files
    ) -> None:
        ingest(home, files("a", rows(*range(40))), version="a")
        ingest(home, files("b", rows(*reversed(range(40)))), version="b")
        drawn = [set(load_version(home, name).heldout["record_id"]) for name in ("a", "b")]
        assert drawn[0] == drawn[1]

    def test_two_records_are_one_and_one(self, home: Home, files: Files) -> None:
        manifest = ingest(home, files("pool", rows(1, 2)), version="v1")
        assert (manifest.counts["pool"], manifest.counts["heldout"]) == (1, 1)

    def test_one_record_is_refused(self, home: Home, files: Files) -> None:
        with pytest.raises(InputError, match="held-out file"):
            ingest(home, files("pool", rows(1)), version="v1")

    def test_it_stays_out_of_every_later_pool(self, home: Home, files: Files) -> None:
        one = ingest(home, files("a", rows(*range(40))), version="a")
        same = ingest(home, files("b", rows(*range(40))), version="b", parents=["a"])
        more = ingest(home, files("c", rows(*range(50))), version="c", parents=["b"])
        assert same.content_hash == one.content_hash
        assert (same.counts["withheld"], same.counts["new"]) == (4, 0)
        assert (more.counts["withheld"], more.counts["new"], more.counts["pool"]) == (4, 10, 46)
        assert load_version(home, "c").heldout.equals(load_version(home, "a").heldout)


def test_every_fault_comes_at_once_and_nothing_is_written(
    home: Home, files: Files, first: Manifest
) -> None:
    bad = [*rows(1, 2), {"instruction": "a", "output": ""}]
    with pytest.raises(InputError) as caught:
        ingest(
            home,
            files("bad", bad),
            version="Bad Name",
            parents=["unknown", "unknown"],
            heldout=files("worse", bad),
            target=home.root / "absent.jsonl",
            coverage="some",
            existing="none",
        )
    places = [(fault.field, fault.line) for fault in caught.value.faults]
    assert places == [
        ("version", None),
        ("parent", None),
        ("parent", None),
        ("coverage", None),
        ("existing", None),
        ("output", 3),
        (None, None),
        ("output", 3),
    ]
    assert home.versions() == ["squares-v1"]


def test_a_version_is_not_its_own_parent(home: Home, files: Files, first: Manifest) -> None:
    with pytest.raises(InputError, match="own parent"):
        ingest(home, files("p", rows(1)), version="squares-v1", parents=["squares-v1"])


def test_bad_rows_of_all_files_can_be_left_out(home: Home, files: Files) -> None:
    bad = {"instruction": "a", "output": ""}
    manifest = ingest(
        home,
        files("pool", [*rows(1, 2), bad, bad]),
        version="v1",
        heldout=files("h", [*rows(90), bad]),
        skip_bad=True,
    )
    assert (manifest.counts["left_out"], manifest.details["left_out"]) == (3, 3)


def test_a_missing_version_is_refused_with_the_known_ones(home: Home, first: Manifest) -> None:
    with pytest.raises(InputError, match="squares-v1"):
        load_version(home, "squares-v9")


def test_a_damaged_version_says_so(home: Home, first: Manifest) -> None:
    (home.dataset("squares-v1") / "pool.parquet").write_bytes(b"nonsense")
    with pytest.raises(DeliftError, match="damaged"):
        load_version(home, "squares-v1")


def test_a_failure_while_writing_leaves_nothing(
    home: Home, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Manifest, folder: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Manifest, "write", fail)
    with pytest.raises(OSError, match="disk full"):
        ingest(home, files("p", rows(1, 2, 3)), version="v1")
    assert read_manifest(home.dataset("v1")) is None
    assert [path.name for path in home.datasets.iterdir() if path.is_dir()] == []


def test_changes_against_the_parents(home: Home, files: Files) -> None:
    def named(numbers: dict[str, int]) -> list[dict[str, Any]]:
        return [row for name, n in numbers.items() for row in rows(n, id=name)]

    heldout = files("h", rows(99))
    pool = files("a", named({"x": 1, "y": 2, "z": 3, "w": 4}))
    ingest(home, pool, version="a", heldout=heldout)
    ingest(home, files("b", named({"x": 1, "y": 20, "new": 5})), version="b", parents=["a"])
    found = compare_with_parents(home, "b")
    assert (found.added, found.removed, found.changed, found.unchanged) == (1, 2, 1, 1)
    assert compare_with_parents(home, "a").added == 4


@pytest.mark.data
def test_real_alpaca_versions_follow_each_other(home: Home, shared_data: Path) -> None:
    folder = shared_data / "alpaca"
    one = ingest(
        home,
        folder / "v1_original.jsonl",
        version="alpaca-v1",
        heldout=folder / "test.jsonl",
        skip_bad=True,
    )
    assert (one.counts["pool"], one.counts["left_out"], one.counts["heldout"]) == (1996, 4, 300)
    ingest(home, folder / "v3_latest_cleaned.jsonl", version="alpaca-v3", parents=["alpaca-v1"])
    version = load_version(home, "alpaca-v3")
    texts = ("instruction", "input", "output")
    first, later = (
        pl.read_ndjson(folder / f"{name}.jsonl").select(texts)
        for name in ("v1_original", "v3_latest_cleaned")
    )
    unchanged = later.join(first, on=texts, how="semi").height
    assert 0 < unchanged < later.height
    assert version.new_records(home).height == later.height - unchanged
    assert compare_with_parents(home, "alpaca-v3").unchanged == unchanged
    assert pl.concat([version.pool, version.heldout])["record_id"].is_unique().all()
