"""The store: sizes, reading, what is missing, damage, resuming, sharing."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from delift_pipeline.core.errors import DeliftError
from delift_pipeline.scoring.engine import PairScores
from delift_pipeline.scoring.plan import PairBlock, PairPlan
from delift_pipeline.scoring.shards import BASELINE, SUFFIX, IdSets, ShardDraft
from delift_pipeline.scoring.store import UNKNOWN, IdTable, Leases, ScoreStore

SETTINGS = {"engine": "transformers", "batch_tokens": 4096}


def names(count: int, start: int = 1) -> tuple[str, ...]:
    rng = np.random.default_rng(start)
    return tuple(rng.bytes(16).hex() for _ in range(count))


def made_scores(size: int, seed: int) -> PairScores:
    rng = np.random.default_rng(seed)
    return PairScores(
        rng.random(size).astype(np.float32), -rng.random(size).astype(np.float32) * 50
    )


def fill(
    store: ScoreStore,
    targets_of: Callable[[int], np.ndarray],
    demonstrations: range,
    per_shard: int,
    seed: int = 0,
) -> None:
    for start in range(demonstrations.start, demonstrations.stop, per_shard):
        draft = ShardDraft(seconds=5.0)
        for number in range(start, min(start + per_shard, demonstrations.stop)):
            targets = targets_of(number)
            draft.add(number, targets, made_scores(len(targets), seed + number))
        store.write(draft, SETTINGS)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def sparse_block(ids: tuple[str, ...], lists: list[np.ndarray]) -> PairBlock:
    indptr = np.concatenate([[0], np.cumsum([len(x) for x in lists])]).astype(np.int64)
    return PairBlock("self", ids, ids, indptr, np.concatenate(lists).astype(np.int32))


def test_a_dense_pair_costs_eight_bytes(tmp_path: Path) -> None:
    store, n = ScoreStore(tmp_path), 2000
    store.ids.add(names(n))
    everything = np.arange(n, dtype=np.int32)
    fill(store, lambda _: everything, range(n), per_shard=100)
    assert size_of(tmp_path) <= 8 * n * n * 1.01 + 16 * n


def test_a_sparse_pair_costs_at_most_twelve_bytes(tmp_path: Path) -> None:
    store, n, rng = ScoreStore(tmp_path), 5000, np.random.default_rng(0)
    store.ids.add(names(n))
    fill(
        store,
        lambda _: np.sort(rng.choice(n, 40, replace=False)).astype(np.int32),
        range(n),
        per_shard=500,
    )
    assert size_of(tmp_path) <= 12 * n * 40 * 1.01 + 16 * n


def test_sets_of_ids_come_back_as_they_went_in() -> None:
    rng = np.random.default_rng(0)
    sets = [
        np.arange(5, 3000),
        np.asarray([7]),
        np.asarray([0, 1, 2, 3, 90_000_000]),
        np.sort(rng.choice(100_000, 40, replace=False)),
        np.concatenate([np.arange(10), np.arange(20, 40), np.arange(41, 50)]),
    ]
    packed = IdSets.pack(sets)
    np.testing.assert_array_equal(packed.sizes(), [len(ids) for ids in sets])
    for place, ids in enumerate(sets):
        np.testing.assert_array_equal(packed.unpack(place), ids)


def test_the_id_table_survives_a_torn_write_and_two_writers(tmp_path: Path) -> None:
    ids = names(7)
    first, second = IdTable(tmp_path / "records.ids"), IdTable(tmp_path / "records.ids")
    np.testing.assert_array_equal(first.add(ids[:3]), [0, 1, 2])
    with (tmp_path / "records.ids").open("ab") as handle:
        handle.write(b"torn")
    np.testing.assert_array_equal(second.numbers(ids[:4]), [0, 1, 2, UNKNOWN])
    np.testing.assert_array_equal(second.add(ids[2:5]), [2, 3, 4])
    np.testing.assert_array_equal(first.add(ids), [0, 1, 2, 3, 4, 5, 6])
    assert second.names() == list(ids)


def test_blocks_and_columns_read_the_same_numbers(tmp_path: Path) -> None:
    store, ids = ScoreStore(tmp_path), names(12)
    store.ids.add(ids)
    rng = np.random.default_rng(3)
    lists = [np.sort(rng.choice(12, 5, replace=False)).astype(np.int32) for _ in range(12)]
    fill(store, lambda number: lists[number], range(12), per_shard=5)
    block = store.read_block(ids, ids)
    assert block.squared_distance.flags.f_contiguous
    for j, wanted in enumerate(lists):
        expected = made_scores(5, j)
        np.testing.assert_array_equal(block.squared_distance[wanted, j], expected.squared_distance)
        np.testing.assert_array_equal(block.sum_logprob[wanted, j], expected.sum_logprob)
        assert np.isnan(np.delete(block.sum_logprob[:, j], wanted)).all()
        shuffled = [ids[i] for i in rng.permutation(12)]
        column = store.column(ids[j], shuffled)
        order = [ids.index(name) for name in shuffled]
        np.testing.assert_array_equal(column.sum_logprob, block.sum_logprob[order, j])


def test_records_nobody_scored_read_as_absent_and_never_as_the_baseline(tmp_path: Path) -> None:
    store, ids = ScoreStore(tmp_path), names(4)
    store.ids.add(ids[:3])
    draft = ShardDraft()
    three = np.arange(3, dtype=np.int32)
    draft.add(BASELINE, three, made_scores(3, 0), np.asarray([4, 5, 6]))
    store.write(draft, SETTINGS)
    alone = store.baseline(ids)
    np.testing.assert_array_equal(alone.tokens, [4, 5, 6, 0])
    np.testing.assert_array_equal(alone.sum_logprob[:3], made_scores(3, 0).sum_logprob)
    assert np.isnan(alone.sum_logprob[3])
    assert np.isnan(store.column(ids[3], ids).sum_logprob).all()
    assert np.isnan(store.column(ids[0], ids).sum_logprob).all()
    assert np.isnan(store.read_block(ids, ids).sum_logprob).all()


def test_a_pair_found_twice_keeps_the_oldest_value_and_targets_unite(tmp_path: Path) -> None:
    store, ids = ScoreStore(tmp_path), names(6)
    store.ids.add(ids)
    fill(store, lambda _: np.asarray([0, 1, 2], np.int32), range(1), per_shard=1, seed=10)
    fill(store, lambda _: np.asarray([2, 4], np.int32), range(1), per_shard=1, seed=20)
    column = store.column(ids[0], ids).sum_logprob
    np.testing.assert_array_equal(column[:3], made_scores(3, 10).sum_logprob)
    assert column[4] == made_scores(2, 20).sum_logprob[1]
    assert np.isnan(column[[3, 5]]).all()


def test_missing_names_exactly_the_pairs_that_are_not_there(tmp_path: Path) -> None:
    store, ids = ScoreStore(tmp_path), names(8)
    plan = PairPlan((PairBlock("self", ids, ids),))
    assert store.missing(plan) == plan
    store.ids.add(ids)
    fill(store, lambda _: np.arange(8, dtype=np.int32), range(3), per_shard=2)
    block = store.missing(plan).blocks[0]
    assert block.dense and block.demonstrations == ids[3:]
    fill(store, lambda _: np.asarray([1, 5], np.int32), range(3, 4), per_shard=1)
    block = store.missing(plan).blocks[0]
    assert block.pairs == 8 * 5 - 2
    np.testing.assert_array_equal(block.targets_of(0), [0, 2, 3, 4, 6, 7])
    fill(store, lambda _: np.arange(8, dtype=np.int32), range(3, 8), per_shard=9)
    assert store.missing(plan).pairs == 0


def test_verify_finds_a_flipped_byte_wherever_it_is_and_the_shard_can_be_scored_again(
    tmp_path: Path,
) -> None:
    store, ids = ScoreStore(tmp_path), names(30)
    store.ids.add(ids)
    everything = np.arange(30, dtype=np.int32)
    fill(store, lambda _: everything, range(4), per_shard=2)
    assert store.verify() == []
    victim = sorted((tmp_path / "shards").iterdir())[1]
    whole = victim.read_bytes()
    rng = np.random.default_rng(0)
    for place in [0, 7, 8, len(whole) - 1, *rng.integers(0, len(whole), 150).tolist()]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        victim.write_bytes(damaged)
        assert [bad.name for bad in store.verify()] == [victim.stem], place
    store.set_aside(victim.stem)
    plan = PairPlan((PairBlock("self", ids, ids[:4]),))
    assert store.missing(plan).blocks[0].demonstrations == ids[2:4]


def test_a_shard_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path)
    store.ids.add(names(3))
    fill(store, lambda _: np.arange(3, dtype=np.int32), range(1), per_shard=1)
    victim = next((tmp_path / "shards").glob(f"*{SUFFIX}"))
    victim.write_bytes(victim.read_bytes()[:50])
    with pytest.raises(DeliftError, match=victim.name):
        ScoreStore(tmp_path).refresh()


def claimed_elsewhere(folder: Path, key: str) -> subprocess.Popen[str]:
    """A process that holds a lease until it is killed."""
    code = (
        "import sys, time; from pathlib import Path; "
        "from delift_pipeline.scoring.store import Leases; "
        "leases = Leases(Path(sys.argv[1])); leases.claim(sys.argv[2]); "
        "print('claimed', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(folder), key]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "claimed\n"
    return process


def test_leases_of_the_dead_are_removed_at_the_end_and_those_of_the_living_stay(
    tmp_path: Path,
) -> None:
    with claimed_elsewhere(tmp_path, "4") as dead, claimed_elsewhere(tmp_path, "5") as living:
        dead.kill()
        dead.wait()
        with Leases(tmp_path):
            pass
        assert [path.name for path in tmp_path.glob("*.lease")] == ["5.lease"]
        living.kill()


def test_a_lease_is_held_by_one_and_taken_over_from_the_dead(tmp_path: Path) -> None:
    with Leases(tmp_path) as first, Leases(tmp_path) as second:
        assert first.claim("3") and first.claim("3")
        assert not second.claim("3")
        first.release()
        assert second.claim("3")
    assert not list(tmp_path.glob("*.lease"))
    with claimed_elsewhere(tmp_path, "4") as other, Leases(tmp_path) as third:
        assert json.loads((tmp_path / "4.lease").read_text())["pid"] == other.pid
        assert not third.claim("4")
        other.kill()
        other.wait()
        assert third.claim("4")
