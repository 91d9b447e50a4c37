"""Selecting through the one door, and what is kept of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from delift_pipeline.core.errors import InputError
from delift_pipeline.core.manifest import read_manifest, up_to_date
from delift_pipeline.kernel.block import Block
from delift_pipeline.kernel.columns import as_columns
from delift_pipeline.selection.registry import SELECTORS, needs_of, options_of
from delift_pipeline.selection.run import (
    DROPPED,
    SUBSET,
    select,
    selection_request,
    subset_parents,
    write_subset,
)
from delift_pipeline.selection.selector import Needs, SelectionInputs

IDS = tuple(f"{k:032x}" for k in (7, 3, 9, 1, 5))
POOL = pl.DataFrame(
    {
        "record_id": IDS,
        "instruction": list("ijklm"),
        "input": [""] * 5,
        "output": list("opqrs"),
        "source_ids": [["first", "copy"], ["b"], ["c"], ["d"], ["e"]],
    }
)
UTILITY = np.array(
    [
        [0.9, 0.1, 0.0, 0.2, -0.1],
        [0.3, 0.9, 0.0, 0.1, -0.2],
        [0.3, 0.2, 0.9, 0.4, -0.3],
        [0.0, 0.1, 0.0, 0.9, -0.1],
        [-0.1, -0.2, -0.3, -0.4, 0.9],
    ],
    dtype=np.float32,
)


def inputs() -> SelectionInputs:
    block = Block("self", IDS, IDS, as_columns(UTILITY), "self-hash")
    return SelectionInputs("instruction_tuning", POOL, lambda name, form: block)


def write(folder: Path, selector="delift", budget: float | int | str = 2, seed: int = 0):
    selection = select(inputs(), selector, budget, seed, {})
    return write_subset(
        folder,
        selection,
        POOL,
        request=selection_request("instruction_tuning", selector, budget, seed, {}),
        parents=subset_parents("v1", "pool-hash", selection.blocks),
        fingerprint="f" * 32,
    )


def test_random_is_a_seeded_permutation_of_record_ids() -> None:
    whole = select(inputs(), "random", "full", 3, {}).ranking
    assert sorted(whole) == sorted(IDS)
    for budget in (1, 2, 4):
        assert select(inputs(), "random", budget, 3, {}).ranking == whole[:budget]
    assert select(inputs(), "random", "full", 4, {}).ranking != whole
    backwards = SelectionInputs("instruction_tuning", POOL.reverse())
    assert select(backwards, "random", "full", 3, {}).ranking == whole


def test_full_is_the_pool_in_file_order() -> None:
    found = select(inputs(), "full", "full", 0, {})
    assert (found.ranking, found.notes) == (IDS, ())
    short = select(inputs(), "full", 0.4, 0, {})
    assert short.ranking == IDS and "all 5 records" in short.notes[0]


@pytest.mark.parametrize("name", ["random", "full"])
def test_selectors_without_scores_need_and_accept_nothing(name: str) -> None:
    assert needs_of(name, "continual", {}) == Needs() and Needs().blocks == ()
    with pytest.raises(InputError, match="eta"):
        needs_of(name, "continual", {"eta": 1})


def test_unknown_selectors_are_refused_with_those_there_are() -> None:
    with pytest.raises(InputError, match="not a selector") as refused:
        select(inputs(), "best", 1, 0, {})
    assert all(name in str(refused.value) for name in SELECTORS)
    assert set(SELECTORS) >= {"delift", "delift_se", "delift_trusted", "full", "random"}


def test_a_budget_above_the_pool_is_refused() -> None:
    with pytest.raises(InputError, match="6 is above the pool's 5 records"):
        select(inputs(), "delift", 6, 0, {})


def test_subset_and_dropped_tables(tmp_path: Path) -> None:
    write(tmp_path / "s")
    subset, dropped = (pl.read_parquet(tmp_path / "s" / name) for name in (SUBSET, DROPPED))
    assert subset.columns[:5] == ["record_id", "source_id", "rank", "gain", "covers"]
    assert subset.columns[5:] == ["trust", "self_share", "near_duplicates", "replayed"]
    # Column 3 helps three records by 0.7 in all; column 0 two by 0.6, of which 0.2 are new.
    assert subset.select("source_id", "rank").rows() == [("d", 0), ("first", 1)]
    assert subset["gain"].to_list() == pytest.approx([0.7, 0.2])
    assert subset["covers"].to_list() == [[IDS[0], IDS[2]], [IDS[1]]]
    assert dropped.columns[:4] == ["record_id", "source_id", "covered_by", "coverage"]
    assert dropped.columns[4:] == ["trust", "near_duplicates"]
    assert dropped.select("source_id", "covered_by").rows() == [
        ("b", IDS[0]),
        ("c", IDS[3]),
        ("e", None),
    ]
    assert dropped["coverage"].to_list() == [pytest.approx(0.3), pytest.approx(0.4), None]


def test_random_has_no_gains_and_covers_nothing(tmp_path: Path) -> None:
    write(tmp_path / "s", "random")
    subset, dropped = (pl.read_parquet(tmp_path / "s" / name) for name in (SUBSET, DROPPED))
    assert subset["gain"].to_list() == [None, None] and subset["covers"].to_list() == [[], []]
    assert dropped.height == 3 and dropped["covered_by"].null_count() == 3
    assert subset["gain"].dtype == pl.Float64 and dropped["coverage"].dtype == pl.Float64


def test_nothing_dropped_is_an_empty_table(tmp_path: Path) -> None:
    write(tmp_path / "s", "full", "full")
    dropped = pl.read_parquet(tmp_path / "s" / DROPPED)
    assert dropped.height == 0 and dropped.schema["covered_by"] == pl.String


def test_the_manifest_leads_back_to_the_blocks_read(tmp_path: Path) -> None:
    manifest = write(tmp_path / "s")
    assert manifest.parents == {"dataset:v1": "pool-hash", "kernel:v1:self": "self-hash"}
    assert manifest.counts == {"pool": 5, "selected": 2, "dropped": 3}
    assert manifest.details["objective"] == "fl"
    assert manifest.details["value"] == pytest.approx(0.9)
    assert manifest.request["options"]["scaling"] == "clip"
    assert read_manifest(tmp_path / "s") == manifest
    same = selection_request("instruction_tuning", "delift", 2, 0, {"eta": 1.0})
    assert up_to_date(tmp_path / "s", same, manifest.parents, "1") == manifest
    other = selection_request("instruction_tuning", "delift", 2, 0, {"eta": 2.0})
    assert up_to_date(tmp_path / "s", other, manifest.parents, "1") is None


@pytest.mark.parametrize(("selector", "default"), [("less", "mean"), ("rds_plus", "max")])
def test_an_option_newer_than_stored_subsets_is_requested_only_if_it_is_set(
    selector: str, default: str
) -> None:
    def options(**values: str) -> dict[str, Any]:
        return selection_request("task_specific", selector, 2, 0, values)["options"]

    assert options(queries=default) == options()
    assert "queries" not in options() and "target_share" in options()
    assert options(queries="round_robin") == options() | {"queries": "round_robin"}
    read: Any = options_of(selector, options())
    assert read.queries == default


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    for selector in ("delift", "random"):
        one, two = (write(tmp_path / name, selector) for name in ("one", "two"))
        for name in (SUBSET, DROPPED):
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
        strip = {"created"}
        assert one.model_dump(exclude=strip) == two.model_dump(exclude=strip)
        json.dumps(one.model_dump(mode="json"))


def test_the_content_hash_is_of_the_records_and_their_order(tmp_path: Path) -> None:
    hashes = [write(tmp_path / "s", "random", 3, seed).content_hash for seed in (0, 1, 0)]
    assert hashes[0] == hashes[2] != hashes[1]
