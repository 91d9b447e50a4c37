"""The kernel on disk: right numbers, right orientation, whole or absent, block by block."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from delift_pipeline.core.errors import DeliftError, InputError
from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import read_manifest
from delift_pipeline.kernel.columns import DenseColumns, SparseColumns, to_dense
from delift_pipeline.kernel.kernel import block_hashes, block_names, build_kernel, load_block
from delift_pipeline.scoring.neighbours import Neighbours
from delift_pipeline.scoring.plan import PairBlock, PairPlan, SelfPairs, build_plan, neighbour_block

PRINT = "0" * 32
POOL, TARGET, EXISTING = tuple("abcdef"), tuple("tu"), tuple("xyz")


class MemoryReader:
    """Scores drawn from a seed, one value for each pair whatever block asks for it."""

    def __init__(self, seed: int = 0, absent: tuple[tuple[str, str], ...] = ()) -> None:
        self.seed, self.absent, self.longest = seed, absent, 0

    def pair(self, demonstration: str, target: str) -> tuple[float, float, int]:
        if (demonstration, target) in self.absent:
            return np.nan, np.nan, 0
        rng = np.random.default_rng([self.seed, *f"{demonstration}>{target}".encode()])
        squared, logprob = rng.random(2)
        return squared, -5 * logprob, 1 + len(target.encode()) + ord(target[0]) % 3

    def column(self, demonstration: str, targets: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        self.longest = max(self.longest, len(targets))
        scores = [self.pair(demonstration, target)[:2] for target in targets]
        squared, logprob = np.array(scores, dtype=np.float32).reshape(-1, 2).T
        return squared, logprob

    def baseline(self, targets: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        tokens = np.array([self.pair("", target)[2] for target in targets], dtype=np.int32)
        return *self.column("", targets), tokens


def frame(ids: Sequence[str]) -> pl.DataFrame:
    return pl.DataFrame({"record_id": list(ids)}, schema={"record_id": pl.String})


NEAR = Neighbours(
    np.array([[1], [2], [1], [0], [-1], [0]], dtype=np.int32), np.ones((6, 1), np.float32)
)


def plan(self_pairs: SelfPairs = "all") -> PairPlan:
    return build_plan(
        frame(POOL),
        frame(TARGET),
        frame(EXISTING),
        self_pairs=self_pairs,
        target_pairs=True,
        existing_pairs=True,
        neighbours=NEAR,
    )


def utility(reader: MemoryReader, row: str, column: str, form: str) -> float:
    """The definition, one pair at a time."""
    squared, logprob, _ = reader.pair(column, row)
    alone_squared, alone_logprob, tokens = reader.pair("", row)
    squared, logprob, alone_squared, alone_logprob = (
        np.float64(np.float32(v)) for v in (squared, logprob, alone_squared, alone_logprob)
    )
    if form == "distance":
        return np.sqrt(alone_squared) - np.sqrt(squared)
    return (logprob - alone_logprob) / (tokens if form == "kl_mean" else 1)


@pytest.mark.parametrize("form", ["distance", "kl", "kl_mean"])
def test_dense_blocks_hold_the_utility_of_columns_for_rows(home: Home, form) -> None:
    reader = MemoryReader()
    build_kernel(home, "v1", PRINT, reader, plan())
    sides = {"self": (POOL, POOL), "target": (TARGET, POOL), "existing": (POOL, EXISTING)}
    for name, (rows, columns) in sides.items():
        block = load_block(home, "v1", PRINT, name, form)
        assert (block.rows, block.columns) == (rows, columns)
        wanted = [[utility(reader, i, j, form) for j in columns] for i in rows]
        assert to_dense(block.matrix) == pytest.approx(np.array(wanted), rel=1e-6, abs=1e-7)


def test_dense_values_stay_mapped_in_column_order(home: Home) -> None:
    build_kernel(home, "v1", PRINT, MemoryReader(), plan())
    matrix = load_block(home, "v1", PRINT, "self").matrix
    assert isinstance(matrix, DenseColumns)
    assert isinstance(matrix.matrix, np.memmap) and matrix.matrix.flags.f_contiguous
    assert matrix.matrix.dtype == np.float32


@pytest.mark.parametrize("form", ["distance", "kl", "kl_mean"])
def test_near_pairs_are_sparse_and_equal_to_the_dense_ones(home: Home, form) -> None:
    reader = MemoryReader()
    build_kernel(home, "near", PRINT, reader, plan("neighbours"))
    build_kernel(home, "all", PRINT, reader, plan())
    near, dense = (
        load_block(home, "near", PRINT, "neighbours", form),
        load_block(home, "all", PRINT, "self", form),
    )
    block = neighbour_block(POOL, NEAR)
    wanted = np.zeros((6, 6), dtype=np.float32)
    for j in range(6):
        rows = block.targets_of(j)
        wanted[rows, j] = to_dense(dense.matrix)[rows, j]
    assert (to_dense(near.matrix) == wanted).all()
    assert near.matrix.stored == block.pairs == 8


def test_near_pairs_keep_their_hash_when_all_pairs_are_scored(home: Home) -> None:
    near = build_kernel(home, "v1", PRINT, MemoryReader(), plan("neighbours"))
    both = build_kernel(
        home, "v1", PRINT, MemoryReader(), plan(), neighbours=neighbour_block(POOL, NEAR)
    )
    assert set(block_hashes(near)) == {"neighbours", "target", "existing"}
    assert set(block_hashes(both)) == {"self", "neighbours", "target", "existing"}
    for name, value in block_hashes(near).items():
        assert block_hashes(both)[name] == value
    block = load_block(home, "v1", PRINT, "neighbours")
    assert (
        isinstance(block.matrix, SparseColumns) and block.hash == block_hashes(near)["neighbours"]
    )


@pytest.mark.parametrize("self_pairs", ["all", "neighbours"])
def test_unscorable_records_stand_in_no_row_and_no_column(
    home: Home, self_pairs: SelfPairs
) -> None:
    gone = {"b": "its answer is too long", "u": "too long", "y": "too long", "elsewhere": "?"}
    manifest = build_kernel(home, "v1", PRINT, MemoryReader(), plan(self_pairs), unscorable=gone)
    name = "self" if self_pairs == "all" else "neighbours"
    block = load_block(home, "v1", PRINT, name)
    assert block.rows == block.columns == tuple("acdef")
    assert load_block(home, "v1", PRINT, "target").rows == ("t",)
    assert load_block(home, "v1", PRINT, "existing").columns == ("x", "z")
    assert manifest.counts["unscorable"] == 3
    assert set(manifest.details["unscorable"]) == {"b", "u", "y"}
    assert block.unscorable == {"b", "u", "y"}
    dense, row = to_dense(block.matrix), block.rows.index("d")
    wanted = utility(MemoryReader(), "d", "a", "distance")
    assert dense[row, 0] == pytest.approx(wanted, rel=1e-6)


def test_missing_scores_end_the_work_and_leave_the_former_kernel(home: Home) -> None:
    before = build_kernel(home, "v1", PRINT, MemoryReader(), plan())
    with pytest.raises(DeliftError, match=r"1 of 6 scores of demonstration c .* missing"):
        build_kernel(home, "v1", PRINT, MemoryReader(absent=(("c", "e"),)), plan())
    with pytest.raises(DeliftError, match="1 of 6 baseline scores"):
        build_kernel(home, "v1", PRINT, MemoryReader(absent=(("", "e"),)), plan())
    folder = home.kernel("v1", PRINT)
    assert read_manifest(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_each_block_is_hashed_by_itself(home: Home) -> None:
    full = build_kernel(home, "v1", PRINT, MemoryReader(), plan())
    fewer = PairPlan(tuple(b for b in plan().blocks if b.name != "existing"))
    less = build_kernel(home, "v2", PRINT, MemoryReader(), fewer)
    assert block_hashes(less)["self"] == block_hashes(full)["self"]
    assert less.content_hash != full.content_hash
    other = build_kernel(home, "v3", PRINT, MemoryReader(seed=1), fewer)
    assert block_hashes(other)["self"] != block_hashes(full)["self"]


def test_the_same_scores_give_the_same_bytes(home: Home) -> None:
    for version in ("v1", "v2"):
        build_kernel(home, version, PRINT, MemoryReader(), plan(), neighbours=plan_block())
    one, two = (files(home.kernel(version, PRINT)) for version in ("v1", "v2"))
    assert one == two and len(one) == 3 * 5 + 7


def plan_block() -> PairBlock:
    return neighbour_block(POOL, NEAR)


def files(folder: Path) -> dict[Path, bytes]:
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


def test_statistics_leave_out_the_diagonal(home: Home) -> None:
    manifest = build_kernel(home, "v1", PRINT, MemoryReader(), plan())
    entry = manifest.details["blocks"]["self"]
    dense = to_dense(load_block(home, "v1", PRINT, "self").matrix)
    others = dense[~np.eye(6, dtype=bool)]
    assert entry["share_positive"] == pytest.approx((others > 0).mean())
    assert (entry["low"], entry["high"]) == pytest.approx((others.min(), others.max()), rel=1e-6)
    assert (entry["rows"], entry["columns"], entry["pairs"], entry["form"]) == (6, 6, 36, "dense")


def test_absent_kernels_and_blocks_are_one_sentence(home: Home) -> None:
    with pytest.raises(DeliftError, match="v1 has no kernel"):
        load_block(home, "v1", PRINT, "self")
    manifest = build_kernel(home, "v1", PRINT, MemoryReader(), plan("neighbours"))
    assert block_names(manifest)["neighbours"] == "self"
    with pytest.raises(InputError, match="needs 28 more pairs"):
        load_block(home, "v1", PRINT, "self")
    (home.kernel("v1", PRINT) / "target.npy").write_bytes(b"")
    with pytest.raises(DeliftError, match=r"target\.npy is damaged"):
        load_block(home, "v1", PRINT, "target")
    (home.kernel("v1", PRINT) / "target.rows.json").unlink()
    with pytest.raises(DeliftError, match="target is damaged"):
        load_block(home, "v1", PRINT, "target")


def test_blocks_without_pairs_can_be_written_and_read(home: Home) -> None:
    alone = Neighbours(np.full((6, 1), -1, np.int32), np.zeros((6, 1), np.float32))
    block = neighbour_block(POOL, alone)
    manifest = build_kernel(home, "v1", PRINT, MemoryReader(), PairPlan((block,)))
    assert manifest.details["blocks"]["self"]["share_positive"] == 0
    assert not to_dense(load_block(home, "v1", PRINT, "neighbours").matrix).any()
