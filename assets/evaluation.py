"""Evaluation: every arm on the held-out set, and all of them in one table."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from assets.common import asset_per_arm, asset_without_partitions
from assets.door import enter, progress
from assets.pool import GPU_POOL
from delift_pipeline.automation import on_any_report
from delift_pipeline.partitions import version_and_arm_of
from delift_pipeline.steps import leaderboard as leaderboard_step
from delift_pipeline.steps import report
from delift_pipeline.steps.judge import with_judgement
from delift_pipeline.steps.outcome import Outcome
from resources.models import ComputeResource, JudgeResource, LanguageModelResource
from resources.store import StoreResource, TrackingResource


@asset_per_arm(
    deps=["raw_dataset", "adapter"],
    group_name="evaluation",
    kinds={"pytorch", "huggingface", "mlflow"},
    pool=GPU_POOL,
    code_version=report.CODE_VERSION,
)
def eval_report(
    context: dg.AssetExecutionContext,
    store: StoreResource,
    language_model: LanguageModelResource,
    compute: ComputeResource,
    tracking: TrackingResource,
    judge: JudgeResource,
) -> Iterator[Any]:
    """The arm on the held-out set, beside the base model and the stage's random and full arms."""

    def step() -> Outcome:
        home = store.open()
        version, name = version_and_arm_of(context)
        made = report.make_report(
            home,
            version,
            store.arms().arm(name),
            language_model.options(home, version, compute),
            tracking.tracker(home),
            progress(context),
            context.run_id,
        )
        return with_judgement(made, judge.panel(home), version, name, progress(context))

    yield from enter(context, step)


@asset_without_partitions(
    deps=["eval_report"],
    group_name="evaluation",
    kinds={"polars", "duckdb"},
    automation_condition=on_any_report,
    code_version=leaderboard_step.CODE_VERSION,
)
def leaderboard(context: dg.AssetExecutionContext, store: StoreResource) -> Iterator[Any]:
    """All reports in one table: stage, selector, metrics, and differences to random."""
    yield from enter(
        context, lambda: leaderboard_step.make_leaderboard(store.open(), context.run_id)
    )
