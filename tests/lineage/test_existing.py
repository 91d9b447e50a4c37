"""What a version's parents trained on, found from manifests alone."""

from pathlib import Path

import polars as pl
import pytest

from delift_pipeline.core.errors import InputError
from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import Manifest
from delift_pipeline.lineage.version import ancestors, find_existing_records
from delift_pipeline.records.stored import load_version
from delift_pipeline.records.versions import ingest

CONTINUAL = "continual.delift"
KIN = "instruction_tuning.delift"


def store(
    home: Home,
    version: str,
    numbers: range,
    parents: tuple[str, ...] = (),
    existing: str = "subset",
) -> None:
    folder = home.root / "files"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{version}.jsonl"
    rows = (f'{{"id": "{n}", "instruction": "say {n}", "output": "{n}"}}\n' for n in numbers)
    path.write_text("".join(rows))
    heldout = folder / "heldout.jsonl"
    heldout.write_text('{"id": "h", "instruction": "held", "output": "out"}\n')
    ingest(home, path, version=version, parents=parents, heldout=heldout, existing=existing)


def choose(home: Home, version: str, name: str, places: list[int]) -> list[str]:
    """Write a subset of the pool's records at these places; returns their ids."""
    ids = load_version(home, version).pool["record_id"].gather(places)
    folder = home.subset(version, name)
    folder.mkdir(parents=True)
    pl.DataFrame({"record_id": ids}).write_parquet(folder / "subset.parquet")
    Manifest(kind="subset", content_hash=f"{version}-{name}").write(folder)
    return ids.to_list()


@pytest.fixture
def chain(home: Home) -> Home:
    """a <- b <- c, each with ten records more than the last."""
    store(home, "a", range(10))
    store(home, "b", range(20), ("a",))
    store(home, "c", range(30), ("b",))
    return home


def test_a_first_version_counts_with_its_kin(chain: Home) -> None:
    ids = choose(chain, "a", KIN, [3, 1])
    found = find_existing_records(chain, load_version(chain, "b"), CONTINUAL)
    assert set(found.records["record_id"]) == set(ids)
    assert found.arms == {"a": KIN}
    assert found.parents == {f"subset:a:{KIN}": f"a-{KIN}"}


def test_the_same_arm_goes_before_its_kin(chain: Home) -> None:
    choose(chain, "a", KIN, [0])
    choose(chain, "b", KIN, [11, 12])
    own = choose(chain, "b", CONTINUAL, [15])
    found = find_existing_records(chain, load_version(chain, "c"), CONTINUAL)
    assert found.arms == {"b": CONTINUAL}
    assert set(own) <= set(found.records["record_id"])


def test_what_a_continual_subset_was_added_to_counts_too(chain: Home) -> None:
    first = choose(chain, "a", KIN, [2, 4])
    second = choose(chain, "b", CONTINUAL, [10, 11])
    found = find_existing_records(chain, load_version(chain, "c"), CONTINUAL)
    assert sorted(found.records["record_id"]) == sorted([*first, *second])
    assert set(found.parents) == {f"subset:a:{KIN}", f"subset:b:{CONTINUAL}"}


def test_a_kin_alone_is_what_the_parent_trained_on(chain: Home) -> None:
    choose(chain, "a", KIN, [2, 4])
    second = choose(chain, "b", KIN, [7, 13])
    found = find_existing_records(chain, load_version(chain, "c"), CONTINUAL)
    assert sorted(found.records["record_id"]) == sorted(second)


def test_variants_have_their_own_kin(chain: Home) -> None:
    choose(chain, "a", KIN, [0])
    variant = choose(chain, "a", f"{KIN}-b", [5])
    found = find_existing_records(chain, load_version(chain, "b"), f"{CONTINUAL}-b")
    assert found.records["record_id"].to_list() == variant


def test_several_parents_are_united_each_record_once(home: Home) -> None:
    store(home, "a", range(10))
    store(home, "x", range(5, 15))
    store(home, "m", range(20), ("a", "x"))
    ids = {*choose(home, "a", KIN, [6, 7]), *choose(home, "x", KIN, [1, 2, 9])}
    found = find_existing_records(home, load_version(home, "m"), CONTINUAL)
    assert found.records.height == len(ids) == 3
    assert set(found.records["record_id"]) == ids


def test_existing_pool_takes_whole_pools_and_needs_no_subset(home: Home) -> None:
    store(home, "a", range(10))
    store(home, "b", range(20), ("a",), existing="pool")
    found = find_existing_records(home, load_version(home, "b"), CONTINUAL)
    pool = load_version(home, "a").pool
    assert found.records["record_id"].to_list() == pool["record_id"].to_list()
    assert set(found.parents) == {"dataset:a"} and found.arms == {}


def test_a_missing_subset_is_refused_with_what_to_run(chain: Home) -> None:
    with pytest.raises(InputError) as refused:
        find_existing_records(chain, load_version(chain, "b"), CONTINUAL)
    (fault,) = refused.value.faults
    assert f"delift run --version a --arm {KIN}" in fault.reason


def test_ancestors_come_nearest_first_each_once(home: Home) -> None:
    store(home, "a", range(10))
    store(home, "b", range(12), ("a",))
    store(home, "c", range(14), ("a",))
    store(home, "d", range(16), ("b", "c"))
    assert ancestors(home, load_version(home, "d")) == ["b", "c", "a"]
    assert ancestors(home, load_version(home, "a")) == []


def test_nothing_depends_on_where_the_home_lies(chain: Home, tmp_path: Path) -> None:
    choose(chain, "a", KIN, [3, 1])
    before = find_existing_records(chain, load_version(chain, "b"), CONTINUAL)
    moved = Home.at(chain.root.rename(tmp_path / "moved"))
    after = find_existing_records(moved, load_version(moved, "b"), CONTINUAL)
    assert after.parents == before.parents and after.records.equals(before.records)
