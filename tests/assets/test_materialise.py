"""Every asset materialised for real: what is stored, what is shown, what is checked."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from delift_pipeline.core.atomic import read_json
from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import read_manifest
from delift_pipeline.graph import build_assets
from delift_pipeline.selection.budget import resolve_budget
from delift_pipeline.stages.arms import load_arms

DATA_VERSION = "dagster/data_version"
PLOTS = {
    "utility_kernel": "utilities",
    "subset": "gains",
    "adapter": "loss",
    "eval_report": "scores",
}
PREVIEWS = {
    "raw_dataset": "first records",
    "pair_plan": "blocks",
    "utility_kernel": "blocks",
    "subset": "first picks",
    "eval_report": "samples",
    "leaderboard": "leaderboard",
}


def folder_of(home: Home, metadata: Mapping[str, Any]) -> Path:
    path = home.root / metadata["path"].value
    return path.parent if path.is_file() else path


def every(world: Any) -> Iterator[tuple[str, Any, str]]:
    """Asset, `AssetMaterialization` and Dagster run of everything that was materialised."""
    for run in world.runs.values():
        for asset, found in run.made.items():
            yield asset, found, run.result.run_id


def test_all_nine_assets_are_materialised(world: Any) -> None:
    for asset in build_assets(load_arms()):
        assert world.instance.get_latest_materialization_event(asset.key) is not None, asset.key


def test_metadata_says_where_and_how_long(world: Any) -> None:
    for asset, found, _ in every(world):
        path = world.home.root / found.metadata["path"].value
        assert path.exists(), asset
        assert found.metadata["seconds"].value >= 0
        assert found.metadata["reused"].value in (True, False)
        assert isinstance(found.metadata["parents"].value, dict)


def test_data_versions_are_the_manifests_content_hashes(world: Any) -> None:
    for asset, found, _ in every(world):
        manifest = read_manifest(folder_of(world.home, found.metadata))
        assert manifest is not None, asset
        assert (found.tags or {})[DATA_VERSION] == manifest.content_hash, asset


def test_parents_in_the_metadata_are_those_of_the_manifest(world: Any) -> None:
    for asset, found, _ in every(world):
        manifest = read_manifest(folder_of(world.home, found.metadata))
        assert manifest is not None
        assert found.metadata["parents"].value == manifest.parents, asset


def test_manifests_name_the_run_that_made_them(world: Any) -> None:
    named = {
        asset: (read_manifest(folder_of(world.home, found.metadata)), run)
        for asset, found, run in every(world)
        if asset != "raw_dataset"  # stored by `delift ingest`, before any run
    }
    wrong = [asset for asset, (made, run) in named.items() if made is None or made.run_id != run]
    assert wrong == []


def test_parents_hashes_are_those_of_the_artifacts_they_name(world: Any) -> None:
    home, name = world.home, "v2"
    adapter = read_manifest(home.adapter(name, "continual.delift"))
    subset = read_manifest(home.subset(name, "continual.delift"))
    before = read_manifest(home.adapter("v1", "instruction_tuning.delift"))
    assert adapter is not None and subset is not None and before is not None
    assert adapter.parents["subset:v2:continual.delift"] == subset.content_hash
    assert adapter.parents["adapter:v1:instruction_tuning.delift"] == before.content_hash
    dataset = read_manifest(home.dataset(name))
    assert dataset is not None
    assert subset.parents["dataset:v2"] == dataset.content_hash


def test_scores_are_shown_with_model_template_and_fingerprint(world: Any) -> None:
    found = {asset: made.metadata for asset, made, _ in every(world)}
    for asset in ("baseline_logprobs", "in_context_logprobs"):
        metadata = found[asset]
        assert metadata["model"].value == "demo"
        assert metadata["template"].value == "world"
        assert metadata["engine"].value == "transformers"
        assert metadata["pairs_per_second"].value > 0
    prints = {
        metadata["fingerprint"].value for metadata in found.values() if "fingerprint" in metadata
    }
    assert len(prints) == 1


@pytest.mark.parametrize(("asset", "title"), PLOTS.items())
def test_plots_are_png_images_in_markdown(world: Any, asset: str, title: str) -> None:
    shown = [
        made.metadata[title].value
        for name, made, _ in every(world)
        if name == asset and title in made.metadata
    ]
    assert shown
    for text in shown:
        assert text.startswith(f"![{title}](data:image/png;base64,iVBORw0KGgo")
        assert len(text) < 200_000


@pytest.mark.parametrize(("asset", "title"), PREVIEWS.items())
def test_previews_have_at_most_twenty_rows(world: Any, asset: str, title: str) -> None:
    tables = [made.metadata[title] for name, made, _ in every(world) if name == asset]
    assert tables
    for table in tables:
        assert isinstance(table, dg.TableMetadataValue)
        assert 1 <= len(table.records) <= 20


def test_every_declared_check_is_recorded_and_the_blocking_ones_hold(world: Any) -> None:
    declared = {
        (check.asset_key.path[-1], check.name): check.blocking
        for asset in build_assets(load_arms())
        for check in asset.check_specs
    }
    seen = {}
    for run in world.runs.values():
        for one in run.checks.values():
            place = (one.asset_key.path[-1], one.check_name)
            seen[place] = one
            assert one.blocking == declared[place]
            assert one.description, place
            if one.blocking:
                assert one.passed and one.severity == dg.AssetCheckSeverity.ERROR, place
            else:
                assert one.severity == dg.AssetCheckSeverity.WARN, place
    assert set(seen) == set(declared)


@pytest.mark.parametrize(
    ("version", "arm", "pool"),
    [
        ("v1", "instruction_tuning.random", 24),
        ("v1", "instruction_tuning.full", 24),
        ("v1", "instruction_tuning.delift", 24),
        ("v1", "task_specific.delift", 24),
        ("v2", "continual.random", 20),
        ("v2", "continual.delift", 20),
    ],
)
def test_subsets_have_the_asked_size(world: Any, version: str, arm: str, pool: int) -> None:
    asked = resolve_budget(load_arms(world.home).arm(arm).budget, pool)
    subset = pl.read_parquet(world.home.subset(version, arm) / "subset.parquet")
    assert subset["rank"].to_list() == list(range(asked))
    assert subset["record_id"].n_unique() == asked
    dropped = pl.read_parquet(world.home.subset(version, arm) / "dropped.parquet")
    assert dropped.height == pool - asked


def test_adapters_load_on_the_base_model_and_change_it(world: Any) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from delift_pipeline.demo import DEMO_MODEL

    base = AutoModelForCausalLM.from_pretrained(DEMO_MODEL)
    ids = torch.arange(10, 30)[None]
    with torch.inference_mode():
        before = base(ids).logits
        folder = world.home.adapter("v1", "instruction_tuning.delift")
        after = PeftModel.from_pretrained(base, folder)(ids).logits
    assert not torch.allclose(before, after)


def test_reports_compare_with_the_base_model_random_and_full(world: Any) -> None:
    folder = world.home.report("v1", "instruction_tuning.delift")
    report = json.loads((folder / "report.json").read_text())
    assert {"initial", "random", "full"} <= set(report["beside"])
    assert report["evaluation"]["counts"]["records"] == 10
    assert (folder / "report.html").stat().st_size > 1000
    assert pl.read_parquet(folder / "samples.parquet").height == 10


def test_leaderboard_has_a_row_for_each_arm_and_one_for_the_base_model_of_each_stage(
    world: Any,
) -> None:
    rows = pl.read_parquet(world.home.leaderboard / "leaderboard.parquet")
    found = {tuple(row) for row in rows.select("version", "stage", "selector").iter_rows()}
    assert found == {
        *(("v1", "instruction_tuning", name) for name in ("initial", "random", "full", "delift")),
        *(("v1", "task_specific", name) for name in ("initial", "delift")),
        *(("v2", "continual", name) for name in ("initial", "random", "delift")),
    }


def test_no_text_file_of_a_home_names_an_absolute_path(world: Any) -> None:
    suffixes = {".json", ".yaml", ".html", ".md"}
    texts = [
        path
        for path in world.home.root.rglob("*")
        if path.suffix in suffixes and "mlflow" not in path.relative_to(world.home.root).parts[:1]
    ]
    assert len(texts) > 20
    root = str(world.home.root)
    assert [path for path in texts if root in path.read_text(encoding="utf-8")] == []


def test_each_arm_is_one_run_in_mlflow_that_leads_back(world: Any) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{world.home.mlflow / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("delift")
    assert experiment is not None
    everything = client.search_runs([experiment.experiment_id])
    versions = {run.info.run_id: run for run in everything if "delift.kind" in run.data.tags}
    runs = [run for run in everything if run.info.run_id not in versions]
    assert sorted(run.info.run_name or "" for run in versions.values()) == ["v1", "v2"]
    by_arm = {run.data.tags["delift.arm"]: run for run in runs}
    assert len(runs) == len(by_arm) == 6
    for name, run in by_arm.items():
        tags, version = run.data.tags, run.data.tags["delift.version"]
        made = read_manifest(world.home.adapter(version, name))
        assert made is not None
        assert run.info.status == "FINISHED"
        assert versions[tags["mlflow.parentRunId"]].info.run_name == version
        assert f"/runs/{made.run_id}" in tags["mlflow.note.content"]
        assert tags["delift.adapter"] == made.content_hash
        assert tags["delift.dagster_run_id"] == made.run_id
        assert (world.home.root / tags["delift.manifest"]).is_file()
        assert {"answer_loss", "exact_match", "loss"} <= set(run.data.metrics)
        assert run.data.params["arm"] == name
        assert len(client.get_metric_history(run.info.run_id, "loss")) == 3
        folders = {item.path for item in client.list_artifacts(run.info.run_id)}
        assert {"subset", "adapter", "report"} <= folders
        assert run.inputs is not None and run.outputs is not None
        given = {one.dataset.name for one in run.inputs.dataset_inputs}
        assert {f"{version}/pool", f"{version}/heldout", f"{version}/{name}/subset"} == given
        assert len(run.outputs.model_outputs) == 1


def test_metadata_links_to_the_mlflow_run(world: Any) -> None:
    links = {
        made.metadata["MLflow"].value
        for asset, made, _ in every(world)
        if asset in ("adapter", "eval_report")
    }
    assert len(links) == 6
    assert all("/#/experiments/" in link and "/runs/" in link for link in links)


def test_leaderboard_reports_mlflow_and_compare_show_the_same_numbers(world: Any) -> None:
    from mlflow.tracking import MlflowClient

    from delift_pipeline.operations.compare import compare_arms

    client = MlflowClient(f"sqlite:///{world.home.mlflow / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("delift")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`delift.arm` != ''")
    logged = {
        (run.data.tags["delift.version"], run.data.tags["delift.arm"]): run.data.metrics
        for run in runs
    }
    board = pl.read_parquet(world.home.leaderboard / "leaderboard.parquet")
    rows = {(r["version"], r["arm"]): r for r in board.to_dicts() if r["selector"] != "initial"}
    names = sorted(rows)
    arms = [name for name in names if name[0] == "v1"]
    sides = {side.name: side for side in compare_arms(world.home, arms).arms}
    assert set(names) == set(logged) and len(sides) == 4
    for name in names:
        report = read_json(world.home.report(*name) / "report.json")["evaluation"]["metrics"]
        assert {"answer_loss", "answer_loss_se", "exact_match"} <= set(report)
        for metric, value in report.items():
            assert rows[name][metric] == logged[name][metric] == value
            if name in arms:
                assert sides["/".join(name)].metrics[metric] == value
