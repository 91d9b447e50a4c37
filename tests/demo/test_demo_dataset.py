"""The demo's files: two versions that fit together and stand up to the product's own rules."""

import json
from collections import Counter
from pathlib import Path

from delift_pipeline.demo.dataset import NEW_TASKS, OLD_TASKS, DemoSizes, write_demo_files


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def triples(records: list[dict[str, str]]) -> set[tuple[str, str, str]]:
    return {(r["instruction"], r["input"], r["output"]) for r in records}


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    write_demo_files(tmp_path / "one")
    write_demo_files(tmp_path / "two")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_the_second_version_continues_the_first(tmp_path: Path) -> None:
    files = write_demo_files(tmp_path)
    first, second = rows(files.first_pool), rows(files.second_pool)
    assert second[: len(first)] == first and len(first) == 160 and len(second) == 260
    assert set(Counter(r["task"] for r in first)) == set(OLD_TASKS)
    new = Counter(r["task"] in NEW_TASKS for r in second[len(first) :])
    assert new == {True: 75, False: 25}
    assert rows(files.second_heldout)[:120] == rows(files.first_heldout)


def test_pools_heldout_and_target_sets_are_disjoint(tmp_path: Path) -> None:
    for seed in range(300, 308):
        files = write_demo_files(tmp_path / str(seed), seed)
        pool, heldout = rows(files.second_pool), rows(files.second_heldout)
        target = rows(files.first_target)
        assert len(triples(pool)) == len(pool)
        assert len(triples(heldout)) == len(heldout)
        assert len(triples([*pool, *heldout, *target])) == 260 + 240 + 24
        assert len({record["id"] for record in [*pool, *heldout, *target]}) == 260 + 240 + 24


def test_the_target_set_is_clean_and_of_two_old_tasks(tmp_path: Path) -> None:
    files = write_demo_files(tmp_path)
    counts = Counter(record["task"] for record in rows(files.first_target))
    assert counts == dict.fromkeys(files.target_tasks, 12)
    assert set(files.target_tasks) <= set(OLD_TASKS)


def test_the_truth_names_every_pool_record_and_fifteen_percent_as_wrong(tmp_path: Path) -> None:
    files = write_demo_files(tmp_path)
    truths = {truth["id"]: truth for truth in rows(files.truth)}
    pool = rows(files.second_pool)
    assert set(truths) == {record["id"] for record in pool}
    for record in pool:
        truth = truths[record["id"]]
        assert truth["correct"] == (record["output"] == truth["right_output"])
    assert sum(not truths[r["id"]]["correct"] for r in pool[:160]) == 24
    assert sum(not truths[r["id"]]["correct"] for r in pool) == 39


def test_smaller_sizes_and_clean_pools_can_be_asked_for(tmp_path: Path) -> None:
    sizes = DemoSizes(pool=40, new_tasks=20, old_tasks=10, heldout_per_task=4, target=6)
    files = write_demo_files(tmp_path, wrong_share=0.0, sizes=sizes)
    assert len(rows(files.second_pool)) == 70 and len(rows(files.first_target)) == 6
    assert all(truth["correct"] for truth in rows(files.truth))
