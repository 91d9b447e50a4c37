"""Training: the base model fine-tuned on a subset."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from assets.common import asset_per_arm
from assets.door import enter, progress
from assets.pool import GPU_POOL
from delift_pipeline.partitions import version_and_arm_of
from delift_pipeline.steps import adapter as adapter_step
from delift_pipeline.steps.outcome import Outcome
from resources.models import ComputeResource, LanguageModelResource
from resources.store import StoreResource, TrackingResource


@asset_per_arm(
    deps=["raw_dataset", "subset"],
    group_name="training",
    kinds={"pytorch", "huggingface", "mlflow"},
    pool=GPU_POOL,
    code_version=adapter_step.CODE_VERSION,
)
def adapter(
    context: dg.AssetExecutionContext,
    store: StoreResource,
    language_model: LanguageModelResource,
    compute: ComputeResource,
    tracking: TrackingResource,
) -> Iterator[Any]:
    """The fine-tuned adapter (or full model) of one version's arm, as safetensors."""

    def step() -> Outcome:
        home = store.open()
        version, name = version_and_arm_of(context)
        return adapter_step.make_adapter(
            home,
            version,
            store.arms().arm(name),
            language_model.options(home, version, compute),
            tracking.tracker(home),
            progress(context),
            context.run_id,
        )

    yield from enter(context, step)
