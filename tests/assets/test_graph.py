"""The graph's shape: what the design says of each asset, word for word."""

from typing import Any

import dagster as dg

from delift_pipeline.definitions import defs
from delift_pipeline.graph import build_assets
from delift_pipeline.stages.arms import load_arms

VERSION, ARM = {"version"}, {"version", "arm"}
GRAPH: dict[str, dict[str, Any]] = {
    "raw_dataset": {
        "deps": set(),
        "group": "ingest",
        "partitions": VERSION,
        "pool": None,
        "blocking": {"schema", "not_empty", "disjoint"},
        "warning": {"inbox"},
    },
    "pair_plan": {
        "deps": {"raw_dataset"},
        "group": "scoring",
        "partitions": VERSION,
        "pool": None,
        "blocking": {"neighbours"},
        "warning": set(),
    },
    "baseline_logprobs": {
        "deps": {"pair_plan"},
        "group": "scoring",
        "partitions": VERSION,
        "pool": "gpu",
        "blocking": {"complete", "finite"},
        "warning": set(),
    },
    "in_context_logprobs": {
        "deps": {"pair_plan", "baseline_logprobs"},
        "group": "scoring",
        "partitions": VERSION,
        "pool": "gpu",
        "blocking": {"complete", "finite"},
        "warning": set(),
    },
    "utility_kernel": {
        "deps": {"baseline_logprobs", "in_context_logprobs"},
        "group": "selection",
        "partitions": VERSION,
        "pool": None,
        "blocking": {"shape"},
        "warning": {"positive"},
    },
    "subset": {
        "deps": {"raw_dataset", "utility_kernel"},
        "group": "selection",
        "partitions": ARM,
        "pool": None,
        "blocking": {"budget", "known", "unique"},
        "warning": {"trust", "balance"},
    },
    "adapter": {
        "deps": {"raw_dataset", "subset"},
        "group": "training",
        "partitions": ARM,
        "pool": "gpu",
        "blocking": {"loads"},
        "warning": {"loss_fell"},
    },
    "eval_report": {
        "deps": {"raw_dataset", "adapter"},
        "group": "evaluation",
        "partitions": ARM,
        "pool": "gpu",
        "blocking": set(),
        "warning": {"beats_base", "beats_random"},
    },
    "leaderboard": {
        "deps": {"eval_report"},
        "group": "evaluation",
        "partitions": set(),
        "pool": None,
        "blocking": set(),
        "warning": set(),
    },
}

ASSETS = build_assets(load_arms())


def dimensions(asset: dg.AssetsDefinition) -> set[str]:
    definition = asset.partitions_def
    if definition is None:
        return set()
    if isinstance(definition, dg.MultiPartitionsDefinition):
        return {part.name for part in definition.partitions_defs}
    assert isinstance(definition, dg.DynamicPartitionsDefinition)
    assert definition.name == "dataset_version"
    return VERSION


def shape_of(asset: dg.AssetsDefinition) -> dict[str, Any]:
    (spec,) = asset.specs
    checks = list(asset.check_specs)
    return {
        "deps": {dep.asset_key.path[-1] for dep in spec.deps},
        "group": spec.group_name,
        "partitions": dimensions(asset),
        "pool": asset.op.pool,
        "blocking": {check.name for check in checks if check.blocking},
        "warning": {check.name for check in checks if not check.blocking},
    }


def test_graph_is_the_one_of_the_design() -> None:
    assert {asset.key.path[-1]: shape_of(asset) for asset in ASSETS} == GRAPH


def test_every_asset_says_what_it_is() -> None:
    for asset in ASSETS:
        (spec,) = asset.specs
        assert spec.description, asset.key
        assert spec.code_version, asset.key
        assert spec.owners, asset.key
        assert spec.kinds, asset.key


def test_every_check_says_what_it_checks() -> None:
    checks = [check for asset in ASSETS for check in asset.check_specs]
    assert len(checks) == sum(len(one["blocking"] | one["warning"]) for one in GRAPH.values())
    assert all(check.description for check in checks)


def test_arm_partitions_are_the_arms_of_the_package() -> None:
    subset = next(asset for asset in ASSETS if asset.key.path == ["subset"])
    assert isinstance(subset.partitions_def, dg.MultiPartitionsDefinition)
    arms = subset.partitions_def.get_partitions_def_for_dimension("arm")
    assert list(arms.get_partition_keys()) == load_arms().names


def test_jobs_cover_the_graph_once() -> None:
    names = {"score_version", "finetune_arm", "refresh_leaderboard"}
    steps = [
        step
        for name in sorted(names)
        for step in defs.resolve_job_def(name).all_node_defs
        if step.name in GRAPH
    ]
    assert sorted(step.name for step in steps) == sorted(GRAPH)
