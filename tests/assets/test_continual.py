"""Continual versions: what is new, what exists, and what training goes on from."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from delift_pipeline.core.atomic import read_json
from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import read_manifest
from delift_pipeline.demo.dataset import DemoFiles
from delift_pipeline.evaluation.result import read_evaluation
from delift_pipeline.records.stored import load_version
from delift_pipeline.records.versions import ingest
from delift_pipeline.scoring.plan import read_plan

ARM, KIN = "continual.delift", "instruction_tuning.delift"


def ids(folder: Path) -> list[str]:
    return pl.read_parquet(folder / "subset.parquet")["record_id"].to_list()


def test_the_pool_is_the_records_in_no_parent(world: Any) -> None:
    dataset = load_version(world.home, "v2")
    new = set(dataset.new_records(world.home)["record_id"])
    assert len(new) == 20
    assert not new & set(load_version(world.home, "v1").pool["record_id"])
    for arm in ("continual.random", ARM):
        assert set(ids(world.home.subset("v2", arm))) <= new


def test_the_existing_records_are_the_kins_subset(world: Any) -> None:
    block = read_plan(world.home.plan("v2")).block("existing")
    assert block is not None
    assert set(block.demonstrations) == set(ids(world.home.subset("v1", KIN)))
    assert set(block.targets) == set(
        load_version(world.home, "v2").new_records(world.home)["record_id"]
    )
    subset = read_manifest(world.home.subset("v2", ARM))
    kin = read_manifest(world.home.subset("v1", KIN))
    assert subset is not None and kin is not None
    assert subset.parents[f"subset:v1:{KIN}"] == kin.content_hash


def test_training_goes_on_from_the_parents_adapter(world: Any) -> None:
    for arm, kin in ((ARM, KIN), ("continual.random", "instruction_tuning.random")):
        made = read_manifest(world.home.adapter("v2", arm))
        before = read_manifest(world.home.adapter("v1", kin))
        assert made is not None and before is not None
        assert made.details["started_from"] == f"adapter:v1:{kin}"
        assert made.parents[f"adapter:v1:{kin}"] == before.content_hash


def test_a_new_parent_adapter_retrains_the_child(world: Any, copied: Callable) -> None:
    made = copied(world.home)
    text = made.home.arms_file.read_text()
    changed = text.replace("instruction_tuning.random: {}", "instruction_tuning.random: {seed: 7}")
    made.write_arms(changed)
    before = read_manifest(made.home.adapter("v2", "continual.random"))
    made.succeed("finetune_arm", "v1", "instruction_tuning.random")
    made.succeed("finetune_arm", "v2", "continual.random")
    after = read_manifest(made.home.adapter("v2", "continual.random"))
    assert before is not None and after is not None
    assert after.content_hash != before.content_hash


def test_forgetting_is_measured_on_every_earlier_held_out_set(world: Any) -> None:
    report = read_json(world.home.report("v2", ARM) / "report.json")["forgetting"]
    assert report["heldout"] == ["v1", "v2"]
    rows = {row["model"]: row for row in report["rows"]}
    assert rows.keys() == {"initial", "v1", "v2"}
    assert (rows["v1"]["arm"], rows["v2"]["arm"]) == (KIN, ARM)
    before = read_evaluation(world.home.report("v1", KIN))
    after = read_evaluation(world.home.report("v2", ARM))
    assert before is not None and after is not None
    assert rows["v1"]["metrics"]["v1"] == pytest.approx(before.metrics)
    assert rows["v1"]["metrics"]["v2"] is None
    assert rows["v2"]["metrics"]["v2"] == pytest.approx(after.metrics)
    # The second held-out set contains the first, so that the paired difference is there in samples.
    both = after.samples.join(before.samples, on="record_id", suffix="_before")
    assert both.height == before.samples.height == 10
    gap = report["changes"]["v1"]["answer_loss"]
    expected = (both["answer_loss"] - both["answer_loss_before"]).mean()
    assert gap["mean"] == pytest.approx(expected)
    assert "held-out set of v1" in (world.home.report("v2", ARM) / "report.html").read_text()


def test_forgetting_is_shown_in_dagster_and_only_for_continual_arms(world: Any) -> None:
    facts = world.runs[f"finetune_arm:v2:{ARM}"].facts("eval_report")
    assert [row["model"] for row in facts["forgetting"]][:3] == ["initial", "v1", "v2"]
    assert "improvement_on_v1_answer_loss" in facts
    assert "forgetting" not in world.runs[f"finetune_arm:v1:{KIN}"].facts("eval_report")


def test_records_that_only_an_earlier_version_holds_out_are_measured_and_found_again(
    world: Any, copied: Callable
) -> None:
    made = copied(world.home)
    manifest_file = made.home.dataset("v2") / "manifest.json"
    heldout = pl.read_parquet(made.home.dataset("v2") / "heldout.parquet")
    first = load_version(made.home, "v1").heldout
    others = heldout.join(first, on="record_id", how="anti")
    others.write_parquet(made.home.dataset("v2") / "heldout.parquet")
    assert manifest_file.is_file() and others.height == 10
    for reused in (False, True):
        run = made.succeed("finetune_arm", "v2", ARM)
        assert run.facts("eval_report")["reused"] is reused
    folder = made.home.report("v2", ARM)
    earlier = pl.read_parquet(folder / "earlier.parquet")
    assert set(earlier["record_id"]) == set(first["record_id"])
    metrics = read_json(folder / "report.json")["forgetting"]["rows"][-1]["metrics"]
    assert metrics["v1"]["answer_loss"] == pytest.approx(earlier["answer_loss"].mean())


def test_only_pairs_of_new_records_are_scored(world: Any) -> None:
    found = world.runs["score_version:v2"].facts("in_context_logprobs")
    old, whole = 24, 44
    assert found["pairs_scored"] == whole**2 - old**2
    assert found["pairs_reused"] == old**2


REPLAY = f"  {ARM}: {{options: {{replay: 0.3}}}}"


def test_delift_replays_records_that_are_trained_on_and_recorded(
    world: Any, copied: Callable
) -> None:
    made = copied(world.home)
    made.write_arms(made.home.arms_file.read_text().replace(f"  {ARM}: {{}}", REPLAY))
    made.succeed("score_version", "v2")
    kin = set(ids(made.home.subset("v1", KIN)))
    block = read_plan(made.home.plan("v2")).block("replay")
    assert block is not None and block.dense and set(block.targets) == kin
    found = made.runs["score_version:v2"].facts("in_context_logprobs")
    assert found["pairs_scored"] == 0  # the parent's own kernel had them
    run = made.succeed("finetune_arm", "v2", ARM)
    subset = pl.read_parquet(made.home.subset("v2", ARM) / "subset.parquet")
    replayed = set(subset.filter("replayed")["record_id"])
    assert len(replayed) == int(0.3 * subset.height + 0.5) and replayed <= kin
    assert subset.filter("replayed")["gain"].is_null().all()
    trained = pl.read_parquet(made.home.adapter("v2", ARM) / "trained_on.parquet")
    own = trained.filter(pl.col("adapter") == f"adapter:v2:{ARM}")
    assert replayed <= set(own["record_id"])
    for check in ("budget", "known", "unique"):
        assert run.checks[f"subset.{check}"].passed


def test_replay_that_is_not_planned_says_its_cost(world: Any, copied: Callable) -> None:
    made = copied(world.home)
    text = made.home.arms_file.read_text().replace(f"  {ARM}: {{}}", REPLAY)
    made.write_arms(text)
    said = made.execute("select_arm", "v2", ARM).failure
    assert "needs the replay pairs of v2" in said
    made.write_arms(f"plan: {{dense_limit: 5}}\n{text}")
    said = made.execute("select_arm", "v2", ARM).failure
    assert "replays from 7 existing records, and needs 0 more pairs of them" in said
    assert "dense_limit 5" in said and "replay to 0" in said and len(said.splitlines()) == 1


def test_without_the_parents_subset_the_arm_refuses_and_says_what_to_run(
    ingested: Home, copied: Callable
) -> None:
    made = copied(ingested)
    made.succeed("score_version", "v2")
    said = made.execute("finetune_arm", "v2", ARM).failure
    assert f"`delift run --version v1 --arm {KIN}`" in said
    assert len(said.splitlines()) == 1


def test_after_the_parents_subset_is_made_the_child_is_planned_again(
    ingested: Home, copied: Callable
) -> None:
    made = copied(ingested)
    made.succeed("score_version", "v2")
    made.succeed("score_version", "v1")
    made.succeed("select_arm", "v1", KIN)
    said = made.execute("select_arm", "v2", ARM).failure
    assert "existing pairs" in said and "pair_plan" in said
    made.succeed("score_version", "v2")
    made.succeed("select_arm", "v2", ARM)


def test_existing_pool_takes_the_parents_whole_pools(
    ingested: Home, copied: Callable, demo_files: DemoFiles
) -> None:
    made = copied(ingested)
    shutil.rmtree(made.home.dataset("v2"))
    ingest(
        made.home,
        demo_files.second_pool,
        version="v2",
        parents=["v1"],
        heldout=demo_files.second_heldout,
        existing="pool",
        model="demo",
        template="world",
    )
    made.succeed("score_version", "v2")
    block = read_plan(made.home.plan("v2")).block("existing")
    assert block is not None
    assert set(block.demonstrations) == set(load_version(made.home, "v1").pool["record_id"])
    made.succeed("select_arm", "v2", ARM)


def test_a_version_that_adds_nothing_refuses_the_continual_arm(
    ingested: Home, copied: Callable, demo_files: DemoFiles
) -> None:
    made = copied(ingested)
    ingest(
        made.home,
        demo_files.first_pool,
        version="v1-again",
        parents=["v1"],
        model="demo",
        template="world",
    )
    made.add_version("v1-again")
    made.succeed("score_version", "v1-again")
    said = made.execute("finetune_arm", "v1-again", "continual.random").failure
    assert "adds no record to its parents" in said
