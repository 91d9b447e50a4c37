"""The demo's pools: seeded, each in its own home, run by the stages and stored."""

import json
from pathlib import Path

import polars as pl
import pytest
import torch

from delift_pipeline.core.home import Home
from delift_pipeline.demo.dataset import DEMO_SEED, DemoSizes
from delift_pipeline.demo.pools import (
    FILES,
    POOLS,
    SEEDS,
    Pairs,
    demo_arms,
    pool_home,
    run_pool,
    truth_file,
)
from delift_pipeline.demo.results import PoolRow, pool_rows

SIZES = DemoSizes(pool=20, new_tasks=10, old_tasks=10, heldout_per_task=1, target=3)
ARMS = """
plan: {neighbours: 4}
defaults:
  training: {preset: demo, steps: 2, batch_size: 8}
arms:
  instruction_tuning.random: {}
  instruction_tuning.full: {budget: full}
  instruction_tuning.delift: {enabled: false}
  task_specific.random: {}
  continual.random: {}
"""
SEED = SEEDS[1]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A demo's home with arms of its own."""
    home = Home(tmp_path_factory.mktemp("demo"))
    home.arms_file.write_text(ARMS, encoding="utf-8")
    return home


@pytest.fixture(scope="module")
def twice(home: Home) -> tuple[Pairs, list[PoolRow], Pairs, list[PoolRow]]:
    """The pairs and the results of a pool that was run twice."""
    torch.set_num_threads(1)
    pairs, rows = run_pool(home, SEED, SIZES), pool_rows(home, SEED)
    return pairs, rows, run_pool(home, SEED, SIZES), pool_rows(home, SEED)


def test_the_seeds_are_different_and_the_first_is_the_home_itself(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert SEEDS[0] == DEMO_SEED and len(set(SEEDS)) == len(SEEDS) == POOLS >= 5
    assert pool_home(home, DEMO_SEED) == home
    assert len({pool_home(home, seed).root for seed in SEEDS}) == POOLS


def test_the_seed_decides_the_records(home: Home, twice: object, tmp_path: Path) -> None:
    assert twice
    again = Home(tmp_path)
    again.arms_file.write_text("arms: {instruction_tuning.random: {}}\n", encoding="utf-8")
    run_pool(again, SEED, SIZES)
    run_pool(again, SEEDS[2], SIZES)

    def pool(place: Home) -> bytes:
        return (place.root / FILES / "demo-v1.jsonl").read_bytes()

    assert pool(pool_home(again, SEED)) == pool(pool_home(home, SEED))
    assert pool(pool_home(again, SEEDS[2])) != pool(pool_home(home, SEED))


def test_enabled_arms_run_on_the_version_of_their_stage(home: Home) -> None:
    found = {version: [arm.name for arm in arms] for version, arms in demo_arms(home)}
    assert found == {
        "demo-v1": ["instruction_tuning.random", "instruction_tuning.full", "task_specific.random"],
        "demo-v2": ["continual.random"],
    }


def test_each_arm_and_the_untrained_model_has_a_row(
    twice: tuple[Pairs, list[PoolRow], Pairs, list[PoolRow]],
) -> None:
    _, rows, _, _ = twice
    assert {(one.stage, one.arm) for one in rows} == {
        ("instruction_tuning", "initial"),
        ("instruction_tuning", "instruction_tuning.random"),
        ("instruction_tuning", "instruction_tuning.full"),
        ("task_specific", "initial"),
        ("task_specific", "task_specific.random"),
        ("continual", "initial"),
        ("continual", "continual.random"),
    }
    assert all(one.seed == SEED and one.exact_match is not None for one in rows)


def test_wrong_answers_and_facts_are_counted_from_the_truth(
    home: Home, twice: tuple[Pairs, list[PoolRow], Pairs, list[PoolRow]]
) -> None:
    place = pool_home(home, SEED)
    truths = [json.loads(line) for line in truth_file(place).read_text().splitlines()]
    outputs = {
        one["id"]: one["output"]
        for line in (place.root / FILES / "demo-v2.jsonl").read_text().splitlines()
        for one in [json.loads(line)]
    }
    for row in twice[1]:
        if row.arm == "initial":
            assert row.wrong is None and row.facts is None
            continue
        version = "demo-v2" if row.stage == "continual" else "demo-v1"
        picks = pl.read_parquet(place.subset(version, row.arm) / "subset.parquet")
        pool = pl.read_parquet(place.dataset(version) / "pool.parquet")
        chosen = pool.filter(pl.col("record_id").is_in(picks["record_id"].implode()))
        ids = {sources[0] for sources in chosen["source_ids"]}
        known = [truth for truth in truths if truth["id"] in ids]
        right = [truth for truth in known if outputs[truth["id"]] == truth["right_output"]]
        assert row.records == len(known) == picks.height
        assert row.wrong == len(known) - len(right)
        # The task-specific stage asks only questions of the target set's tasks.
        target = pl.read_parquet(place.dataset("demo-v1") / "target.parquet")["task"].unique()
        asked = [t for t in right if row.stage != "task_specific" or t["task"] in target]
        assert row.facts == len({truth["fact"] for truth in asked})
    full = next(row for row in twice[1] if row.selector == "full")
    assert full.wrong == round(0.15 * 20)


def test_a_second_run_scores_nothing_and_gives_the_same_results(
    twice: tuple[Pairs, list[PoolRow], Pairs, list[PoolRow]],
) -> None:
    first, rows, second, again = twice
    assert first.scored > 0 and second.scored == 0 and second.reused > 0
    assert again == rows


def test_an_arm_that_was_disabled_later_is_not_shown(
    home: Home, twice: tuple[Pairs, list[PoolRow], Pairs, list[PoolRow]]
) -> None:
    place, text = pool_home(home, SEED), ARMS.replace("full: {", "full: {enabled: false, ")
    place.arms_file.write_text(text, encoding="utf-8")
    shown = {row.arm for row in pool_rows(home, SEED)}
    place.arms_file.write_text(ARMS, encoding="utf-8")
    assert shown == {row.arm for row in twice[1]} - {"instruction_tuning.full"}
