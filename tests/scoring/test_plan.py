"""Pair plans: which pairs are wanted, and their folder."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from delift_pipeline.core.errors import DeliftError, InputError
from delift_pipeline.scoring.neighbours import Neighbours, embed, nearest
from delift_pipeline.scoring.plan import (
    NO_NEIGHBOUR,
    build_plan,
    plan_hash,
    read_neighbours,
    read_plan,
    write_plan,
)

TEXTS = ["red apple", "green apple", "green pear", "red plum", "quantum", "green apple pie"]


def frame(*ids: str) -> pl.DataFrame:
    return pl.DataFrame({"record_id": list(ids)}, schema={"record_id": pl.String})


POOL = frame(*"abcdef")
NEIGHBOURS = nearest(embed(TEXTS), 2)


def near_plan(**changes):
    wanted = {
        "self_pairs": "neighbours",
        "target_pairs": True,
        "existing_pairs": True,
        "neighbours": NEIGHBOURS,
        "existing_rows": frame("e", "f"),
    }
    return build_plan(POOL, frame("t", "u"), frame("x"), **(wanted | changes))


def test_dense_blocks_have_targets_as_rows_and_demonstrations_as_columns() -> None:
    plan = near_plan(self_pairs="all")
    shapes = {b.name: (b.targets, b.demonstrations, b.dense) for b in plan.blocks}
    pool = tuple("abcdef")
    assert shapes == {
        "self": (pool, pool, True),
        "target": (("t", "u"), pool, True),
        "existing": (("e", "f"), ("x",), True),
    }
    assert plan.pairs == 36 + 12 + 2


def test_near_pairs_hold_both_directions_and_no_diagonal() -> None:
    block = near_plan().block("self")
    assert block is not None and block.indices is not None
    pairs = {(int(i), j) for j in range(6) for i in block.targets_of(j)}
    wanted = {(i, int(j)) for i in range(6) for j in NEIGHBOURS.indices[i] if j >= 0}
    assert pairs == wanted | {(j, i) for i, j in wanted}
    assert all(i != j for i, j in pairs)
    assert block.pairs <= 2 * 2 * 6
    for j in range(6):
        assert (np.diff(block.targets_of(j)) > 0).all()


def test_no_pairs_make_an_empty_plan() -> None:
    plan = near_plan(self_pairs="none", target_pairs=False, existing_pairs=False)
    assert plan.blocks == () and plan.pairs == 0


@pytest.mark.parametrize(
    ("target", "existing", "neighbours", "sentence"),
    [
        (None, frame("x"), NEIGHBOURS, "target pairs need a target set"),
        (frame("t"), None, NEIGHBOURS, "existing pairs need what the parents"),
        (frame("t"), frame("x"), None, "self pairs need neighbours"),
        (frame("t"), frame("x"), nearest(np.eye(2), 1), "neighbours of 2 records .* 6"),
    ],
)
def test_what_is_missing_is_said(target, existing, neighbours, sentence) -> None:
    with pytest.raises(InputError, match=sentence):
        build_plan(
            POOL,
            target,
            existing,
            self_pairs="neighbours",
            target_pairs=True,
            existing_pairs=True,
            neighbours=neighbours,
        )


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    plan = near_plan()
    manifest = write_plan(tmp_path / "plan", plan, pool=POOL, neighbours=NEIGHBOURS)
    read = read_plan(tmp_path / "plan")
    assert plan_hash(read, NEIGHBOURS) == plan_hash(plan, NEIGHBOURS) == manifest.content_hash
    assert [b.targets for b in read.blocks] == [b.targets for b in plan.blocks]
    assert manifest.counts == {"pairs": plan.pairs, "without_neighbours": 1}
    kept = read_neighbours(tmp_path / "plan")
    assert isinstance(kept, Neighbours)
    assert (kept.indices == NEIGHBOURS.indices).all()


def test_records_without_neighbours_say_why(tmp_path: Path) -> None:
    write_plan(tmp_path / "plan", near_plan(), pool=POOL, neighbours=NEIGHBOURS)
    alone = pl.read_parquet(tmp_path / "plan" / "records.parquet").filter(neighbours=0)
    assert alone.rows() == [("e", 0, NO_NEIGHBOUR)]


def test_equal_plans_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        neighbours = nearest(embed(TEXTS), 2)
        plan = near_plan(neighbours=neighbours)
        write_plan(tmp_path / name, plan, pool=POOL, neighbours=neighbours)
    one, two = (
        {
            p.relative_to(tmp_path / n): p.read_bytes()
            for p in (tmp_path / n).rglob("*")
            if p.is_file() and p.name != "manifest.json"
        }
        for n in ("one", "two")
    )
    assert one == two and len(one) > 8


def test_a_plan_without_neighbours_has_none(tmp_path: Path) -> None:
    write_plan(tmp_path / "plan", near_plan())
    assert read_neighbours(tmp_path / "plan") is None


def test_a_missing_or_damaged_plan_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DeliftError, match="plan it again"):
        read_plan(tmp_path / "absent")
    write_plan(tmp_path / "plan", near_plan())
    (tmp_path / "plan" / "self.targets.parquet").write_bytes(b"damaged")
    with pytest.raises(DeliftError, match="plan it again"):
        read_plan(tmp_path / "plan")
