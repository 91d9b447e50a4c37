"""What is done twice, what is not, and what a change redoes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from delift_pipeline.core.atomic import read_json
from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import read_manifest

ARM = "instruction_tuning.delift"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in files(folder)}


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def mlflow_runs(home: Home) -> dict[str, tuple[str, int | None]]:
    """Run id -> its status and when it ended, of all runs there are."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{home.mlflow / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("delift")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    return {run.info.run_id: (run.info.status, run.info.end_time) for run in runs}


def test_a_second_run_of_a_moved_home_reuses_everything(world: Any, copied: Callable) -> None:
    again = copied(world.home)
    runs = mlflow_runs(again.home)
    before = contents(again.home.adapter("v1", ARM))
    scored = again.succeed("score_version", "v1")
    assert scored.facts("baseline_logprobs")["pairs_scored"] == 0
    assert scored.facts("in_context_logprobs")["pairs_scored"] == 0
    arm = again.succeed("finetune_arm", "v1", ARM)
    assets = ("raw_dataset", "pair_plan", "baseline_logprobs", "in_context_logprobs")
    for result, names in (
        (scored, (*assets, "utility_kernel")),
        (arm, ("subset", "adapter", "eval_report")),
    ):
        for name in names:
            assert result.facts(name)["reused"] is True, name
    assert contents(again.home.adapter("v1", ARM)) == before
    assert mlflow_runs(again.home) == runs


def test_data_versions_do_not_change_in_a_second_run(world: Any, copied: Callable) -> None:
    again = copied(world.home)
    first = world.runs["score_version:v1"]
    second = again.succeed("score_version", "v1")

    def data_versions(run: Any) -> dict[str, str]:
        return {name: made.tags["dagster/data_version"] for name, made in run.made.items()}

    assert data_versions(second) == data_versions(first)


def test_a_new_budget_retrains_only_its_own_arm(world: Any, copied: Callable) -> None:
    changed = copied(world.home)
    text = changed.home.arms_file.read_text()
    changed.write_arms(text.replace(f"{ARM}: {{}}", f"{ARM}: {{budget: 5}}"))
    others = {
        arm: contents(changed.home.adapter("v1", arm))
        for arm in ("instruction_tuning.random", "instruction_tuning.full")
    }
    before = read_manifest(changed.home.adapter("v1", ARM))
    result = changed.succeed("finetune_arm", "v1", ARM)
    after = read_manifest(changed.home.adapter("v1", ARM))
    assert before is not None and after is not None
    assert result.facts("subset")["selected"] == 5
    assert result.facts("adapter")["reused"] is False
    assert after.content_hash != before.content_hash
    for arm, bytes_before in others.items():
        again = changed.succeed("finetune_arm", "v1", arm)
        assert again.facts("adapter")["reused"] is True
        kept = contents(changed.home.adapter("v1", arm))
        # The model card tells how the arms compare, so it is the one file that may change.
        assert kept | {"README.md": b""} == bytes_before | {"README.md": b""}
    rerun = changed.succeed("score_version", "v1")
    assert rerun.facts("in_context_logprobs")["pairs_scored"] == 0


def test_a_changed_evaluation_measures_again_without_training(world: Any, copied: Callable) -> None:
    changed = copied(world.home)
    text = changed.home.arms_file.read_text()
    changed.write_arms(text.replace("max_new_tokens: 3", "max_new_tokens: 2"))
    result = changed.succeed("finetune_arm", "v1", ARM)
    assert result.facts("subset")["reused"] is True
    assert result.facts("adapter")["reused"] is True
    assert result.facts("eval_report")["reused"] is False


def test_a_smaller_subset_is_the_prefix_of_a_larger_one(world: Any, copied: Callable) -> None:
    import polars as pl

    changed = copied(world.home)
    before = pl.read_parquet(changed.home.subset("v1", ARM) / "subset.parquet")["record_id"]
    text = changed.home.arms_file.read_text()
    changed.write_arms(text.replace(f"{ARM}: {{}}", f"{ARM}: {{budget: 4}}"))
    changed.succeed("select_arm", "v1", ARM)
    after = pl.read_parquet(changed.home.subset("v1", ARM) / "subset.parquet")["record_id"]
    assert after.to_list() == before.head(4).to_list()


def test_a_lost_tracking_store_is_filled_again_without_training(
    world: Any, copied: Callable
) -> None:
    import shutil

    again = copied(world.home)
    shutil.rmtree(again.home.mlflow)
    result = again.succeed("finetune_arm", "v1", ARM)
    assert result.facts("adapter")["reused"] is True
    of_version_and_arm = [status for status, _ in mlflow_runs(again.home).values()]
    assert of_version_and_arm == ["FINISHED", "FINISHED"]


def test_a_run_without_tracking_links_nowhere_and_makes_no_store(
    ingested: Home, copied: Callable
) -> None:
    plain = copied(ingested)
    plain.succeed("score_version", "v1")
    result = plain.succeed(
        "finetune_arm", "v1", "instruction_tuning.random", tracking={"enabled": False}
    )
    assert "MLflow" not in result.facts("adapter")
    assert not plain.home.mlflow.exists()


def test_in_context_evaluation_is_asked_for_kept_and_found_again(
    world: Any, copied: Callable
) -> None:
    changed = copied(world.home)
    text = changed.home.arms_file.read_text()
    metrics = "metrics: [answer_loss, exact_match]"
    assert metrics in text
    changed.write_arms(text.replace(metrics, f"{metrics}, in_context: 2, embedder: tfidf"))
    first = changed.succeed("finetune_arm", "v1", ARM)
    assert first.facts("adapter")["reused"] is True
    assert first.facts("eval_report")["reused"] is False
    folder = changed.home.report("v1", ARM)
    report = read_json(folder / "report.json")
    shown, base = report["beside"]["in_context"]["metrics"], report["beside"]["initial"]["metrics"]
    assert shown["answer_loss"] != base["answer_loss"]
    own = report["evaluation"]["metrics"]["answer_loss"]
    gap = report["beside"]["in_context"]["differences"]["answer_loss"]["mean"]
    assert gap == pytest.approx(own - shown["answer_loss"])
    assert "in_context" in (folder / "report.html").read_text()
    before = contents(folder)
    again = changed.succeed("finetune_arm", "v1", ARM)
    assert again.facts("eval_report")["reused"] is True
    assert contents(folder) == before


def test_a_judge_speaks_beside_the_report_and_leaves_it_as_it_is(
    world: Any, copied: Callable, chat_folder: Path
) -> None:
    judged = copied(world.home)
    before = read_manifest(judged.home.report("v1", ARM))
    judge = {"model": str(chat_folder), "scoring": "expected", "least_mass": 0.0, "device": "cpu"}
    result = judged.succeed("finetune_arm", "v1", ARM, judge=judge)
    assert 1 < result.facts("eval_report")["judge_score"] < 5
    assert result.facts("eval_report")["judge_unparsable"] == 0
    after = read_manifest(judged.home.report("v1", ARM))
    assert before is not None and after is not None
    assert after.content_hash == before.content_hash
    assert list(judged.home.root.glob(f"judgements/*/v1/{ARM}/judged.html"))
