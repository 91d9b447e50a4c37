"""What the user interface shows of every asset."""

import re
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets.columns import COLUMN_PARENTS, COLUMNS, schema_of
from assets.source import with_code_references
from delift_pipeline.evaluation.leaderboard import ROW_SCHEMA
from delift_pipeline.evaluation.result import SAMPLE_SCHEMA
from delift_pipeline.graph import build_assets
from delift_pipeline.lineage.adapter import SCHEMA as TRAINED_ON
from delift_pipeline.records.schema import RECORD_SCHEMA
from delift_pipeline.stages.arms import load_arms

STEPS = {
    "raw_dataset": "open_dataset",
    "pair_plan": "plan_pairs",
    "baseline_logprobs": "score_version",
    "in_context_logprobs": "score_version",
    "utility_kernel": "make_kernel",
    "subset": "make_subset",
    "adapter": "make_adapter",
    "eval_report": "make_report",
    "leaderboard": "make_leaderboard",
}
ROOT = Path(__file__).resolve().parents[2]
ASSETS = build_assets(load_arms())
NAMES = [asset.key.path[-1] for asset in ASSETS]
GROUPS = ["ingest", "scoring", "selection", "training", "evaluation"]


def spec_of(name: str) -> dg.AssetSpec:
    return next(asset.specs_by_key[asset.key] for asset in ASSETS if asset.key.path == [name])


def references(spec: dg.AssetSpec) -> list[Any]:
    return list(spec.metadata["dagster/code_references"].code_references)


@pytest.mark.parametrize("name", NAMES)
def test_every_asset_says_all_of_itself(name: str) -> None:
    spec = spec_of(name)
    assert spec.description and spec.description[0].isupper()
    assert spec.owners == ["team:delift"]
    assert spec.kinds
    assert spec.group_name in GROUPS
    assert spec.code_version
    assert spec.freshness_policy is not None
    assert spec.metadata["dagster/column_schema"].schema == schema_of(name)
    assert len(references(spec)) == 2


def test_groups_follow_one_another_as_the_method_does() -> None:
    groups = [spec_of(name).group_name or "" for name in NAMES]
    assert list(dict.fromkeys(groups)) == GROUPS
    assert groups == sorted(groups, key=GROUPS.index)


@pytest.mark.parametrize("name", NAMES)
def test_code_references_lead_to_the_body_and_to_the_step(name: str) -> None:
    step, body = references(spec_of(name))
    for reference, function in ((step, STEPS[name]), (body, name)):
        lines = Path(reference.file_path).read_text(encoding="utf-8").splitlines()
        near = "\n".join(lines[reference.line_number - 1 :][:20])
        assert re.search(rf"def {function}\(", near), reference
    assert Path(body.file_path).parent == ROOT / "assets"
    assert Path(step.file_path).parent == ROOT / "delift_pipeline" / "stages"


def test_code_references_lead_to_the_projects_home_where_one_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from assets.ingest import raw_dataset

    monkeypatch.setenv("DELIFT_SOURCE_URL", "https://github.com/someone/delift/")
    (asset,) = with_code_references([raw_dataset(load_arms())])
    step, body = references(asset.specs_by_key[asset.key])
    start = r"https://github\.com/someone/delift/tree/[0-9a-z.]+/"
    assert re.fullmatch(start + r"delift_pipeline/stages/dataset\.py#L\d+", step.url)
    assert re.fullmatch(start + r"assets/ingest\.py#L\d+", body.url)


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        ("raw_dataset", RECORD_SCHEMA),
        ("adapter", TRAINED_ON),
        ("eval_report", SAMPLE_SCHEMA),
        ("leaderboard", ROW_SCHEMA),
    ],
)
def test_columns_are_those_that_are_stored(name: str, schema: Any) -> None:
    shown = {column: kind for column, (kind, _) in COLUMNS[name].items()}
    spelled = {column: str(kind).lower() for column, kind in schema.items()}
    assert shown == {c: re.sub(r"\((.*)\)", r"[\1]", kind) for c, kind in spelled.items()}


@pytest.mark.parametrize("name", ["subset", "pair_plan"])
def test_columns_are_those_of_the_files(name: str, world: Any) -> None:
    import polars as pl

    home = world.home
    place = {
        "subset": home.subset("v1", "instruction_tuning.delift") / "subset.parquet",
        "pair_plan": home.plan("v1") / "records.parquet",
    }[name]
    assert list(pl.read_parquet_schema(place)) == list(COLUMNS[name])


def test_column_lineage_names_columns_that_are_there() -> None:
    above = {
        name: {key.path[-1] for key in [d.asset_key for d in spec_of(name).deps]} for name in NAMES
    }
    for asset, columns in COLUMN_PARENTS.items():
        assert set(columns) <= set(COLUMNS[asset])
        for made_of in columns.values():
            assert all(column in COLUMNS[parent] for parent, column in made_of)
            assert {parent for parent, _ in made_of} <= above[asset] | {"raw_dataset", "pair_plan"}


def test_materialisations_carry_column_lineage_and_length(world: Any) -> None:
    run = world.runs["finetune_arm:v1:instruction_tuning.delift"]
    made = run.made["subset"].metadata
    deps = made["dagster/column_lineage"].value.deps_by_column
    assert [dep.asset_key.path for dep in deps["gain"]] == [["utility_kernel"]]
    assert made["dagster/partition_row_count"].value == made["selected"].value
    board = world.runs["refresh_leaderboard"].made["leaderboard"].metadata
    assert board["dagster/row_count"].value == board["rows"].value


def test_every_registered_adapter_is_linked_both_ways(world: Any) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{world.home.mlflow / 'mlflow.db'}")
    found = client.search_model_versions("name LIKE 'delift-demo-%'")
    assert len({one.name for one in found}) == 3
    assert len(found) == 6
    assert all("Measured" in (one.description or "") for one in found)
    assert all(one.tags["delift.standing"] for one in found)
    made = world.runs["finetune_arm:v1:task_specific.delift"].made["adapter"].metadata
    assert "/#/models/delift-demo-task_specific-on-demo/versions/1" in made["MLflow model"].value


def test_model_cards_tell_what_the_adapter_is_made_of(world: Any) -> None:
    name = "instruction_tuning.delift"
    card = (world.home.adapter("v1", name) / "README.md").read_text(encoding="utf-8")
    for said in (
        'base_model: "demo"',
        "license: unknown",
        "records of dataset version",
        "| answer loss | lower |",
        "minus random |",
        "are not known",
        "PeftModel.from_pretrained",
        f"delift lineage --adapter v1/{name}",
    ):
        assert said in card, said
    assert str(world.home.root) not in card


def test_every_asset_shows_a_plot(world: Any) -> None:
    drawn = {
        name
        for run in world.runs.values()
        for name, made in run.made.items()
        for value in made.metadata.values()
        if isinstance(value, dg.MarkdownMetadataValue)
        and "](data:image/png;base64,iVBOR" in str(value.value)
    }
    assert drawn == set(NAMES)
