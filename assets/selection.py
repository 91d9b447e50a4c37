"""Selection: the utility kernel, and the subset each arm takes from it."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from assets.common import asset_per_arm, asset_per_version
from assets.door import enter, progress
from assets.pool import gpu_place
from delift_pipeline.automation import on_new_data_version
from delift_pipeline.partitions import version_and_arm_of
from delift_pipeline.selection.language_model import LanguageModel
from delift_pipeline.steps import kernel
from delift_pipeline.steps import subset as subset_step
from delift_pipeline.steps.outcome import Outcome
from resources.models import ComputeResource, LanguageModelResource
from resources.store import StoreResource


@asset_per_version(
    deps=["baseline_logprobs", "in_context_logprobs"],
    group_name="selection",
    kinds={"numpy"},
    automation_condition=on_new_data_version,
    code_version=kernel.CODE_VERSION,
)
def utility_kernel(
    context: dg.AssetExecutionContext,
    store: StoreResource,
    language_model: LanguageModelResource,
    compute: ComputeResource,
) -> Iterator[Any]:
    """How much showing record j helps the model answer record i, as memory-mapped blocks."""

    def step() -> Outcome:
        home, version = store.open(), context.partition_key
        options = language_model.options(home, version, compute)
        return kernel.make_kernel(home, version, options, context.run_id)

    yield from enter(context, step)


@asset_per_arm(
    deps=["raw_dataset", "utility_kernel"],
    group_name="selection",
    kinds={"numpy", "parquet"},
    code_version=subset_step.CODE_VERSION,
)
def subset(
    context: dg.AssetExecutionContext,
    store: StoreResource,
    language_model: LanguageModelResource,
    compute: ComputeResource,
) -> Iterator[Any]:
    """The records an arm chose: a ranking with marginal gains, and why each is in or out.

    Only a selector that reads the model itself takes a place in the gpu pool, while it does.
    """

    def step() -> Outcome:
        home = store.open()
        version, name = version_and_arm_of(context)
        arm = store.arms().arm(name)
        options = language_model.options(home, version, compute)
        with gpu_place(context) as claim:
            reader = LanguageModel(options, home, progress(context), claim)
            return subset_step.make_subset(home, version, arm, options, context.run_id, reader)

    yield from enter(context, step)
