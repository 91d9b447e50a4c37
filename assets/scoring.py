"""Scoring: which pairs, each record's answer alone, and after each demonstration."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from assets.common import asset_per_version
from assets.door import enter, progress
from assets.pool import GPU_POOL
from delift_pipeline.automation import on_new_data_version
from delift_pipeline.steps import plan, score
from delift_pipeline.steps.outcome import Outcome
from resources.models import ComputeResource, EmbedderResource, LanguageModelResource
from resources.store import StoreResource


@asset_per_version(
    deps=["raw_dataset"],
    group_name="scoring",
    kinds={"scikitlearn", "numpy"},
    automation_condition=on_new_data_version,
    code_version=plan.CODE_VERSION,
)
def pair_plan(
    context: dg.AssetExecutionContext, store: StoreResource, embedder: EmbedderResource
) -> Iterator[Any]:
    """Which (target, demonstration) pairs the enabled arms of this version need scored."""

    def step() -> Outcome:
        arms = embedder.applied_to(store.arms())
        return plan.plan_pairs(store.open(), context.partition_key, arms, context.run_id)

    yield from enter(context, step)


@asset_per_version(
    deps=["pair_plan"],
    group_name="scoring",
    kinds={"pytorch", "huggingface"},
    automation_condition=on_new_data_version,
    pool=GPU_POOL,
    code_version=score.CODE_VERSION,
)
def baseline_logprobs(
    context: dg.AssetExecutionContext,
    store: StoreResource,
    language_model: LanguageModelResource,
    compute: ComputeResource,
) -> Iterator[Any]:
    """Teacher-forced log-probabilities of each record's answer without a demonstration."""

    def step() -> Outcome:
        home, version = store.open(), context.partition_key
        options = language_model.options(home, version, compute)
        return score.score_alone(home, version, options, progress(context), context.run_id)

    yield from enter(context, step)


@asset_per_version(
    deps=["pair_plan", "baseline_logprobs"],
    group_name="scoring",
    kinds={"pytorch", "huggingface"},
    automation_condition=on_new_data_version,
    pool=GPU_POOL,
    code_version=score.CODE_VERSION,
)
def in_context_logprobs(
    context: dg.AssetExecutionContext,
    store: StoreResource,
    language_model: LanguageModelResource,
    compute: ComputeResource,
) -> Iterator[Any]:
    """The same log-probabilities after each planned demonstration; resumes at the first gap."""

    def step() -> Outcome:
        home, version = store.open(), context.partition_key
        options = language_model.options(home, version, compute)
        return score.score_in_context(home, version, options, progress(context), context.run_id)

    yield from enter(context, step)
