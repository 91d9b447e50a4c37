"""The decorator that declares an asset of a stage, and the inputs of an asset's body."""

import inspect
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cached_property
from typing import Any

import dagster as dg

from assets.checks import check_specs
from assets.columns import column_metadata
from assets.execution import execute_stage, progress
from assets.outcome import Outcome
from assets.source import code_references
from delift_pipeline.core.home import Home
from delift_pipeline.orchestration.jobs import retry_policy
from delift_pipeline.orchestration.partitions import version_and_arm_of
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.stages.arms import Arm, Arms

MODEL_RESOURCES = {"store", "language_model", "compute"}
"""The resources of an asset whose stage needs the version's model."""

# The weekly schedule checks everything once a week: eight days without a run warn, a month fails.
# Dagster judges an asset by its newest partition; older versions are immutable and stay fresh.
within_a_week = dg.FreshnessPolicy.time_window(
    warn_window=timedelta(days=8), fail_window=timedelta(days=31)
)


class Step:
    """The inputs of an asset's body: home, partition, resources and progress.

    `resources` has those that the asset declares in `required_resource_keys`.
    """

    def __init__(self, context: dg.AssetExecutionContext) -> None:
        self.context, self.run_id = context, context.run_id
        self.resources: Any = context.resources
        self.home: Home = self.resources.store.open()
        self.progress = progress(context)

    @property
    def version(self) -> str:
        """The dataset version of the partition."""
        key = self.context.partition_key
        return version_and_arm_of(self.context)[0] if isinstance(key, dg.MultiPartitionKey) else key

    @cached_property
    def arm(self) -> Arm:
        """The arm of the partition."""
        return self.resources.store.arms().arm(version_and_arm_of(self.context)[1])

    @cached_property
    def model(self) -> ModelOptions:
        """The version's model."""
        compute = self.resources.compute
        return self.resources.language_model.options(self.home, self.version, compute)


Partitions = dg.PartitionsDefinition | None
AssetFactory = Callable[[Arms], dg.AssetsDefinition]
"""Builds an asset for the arms of one home, which decide its partitions and retries."""


def asset_of(
    stage: Callable[..., Any], partitions: Partitions | Callable[[Arms], Partitions], **options: Any
) -> Callable[[Callable[[Step], Outcome]], AssetFactory]:
    """Declare the asset of a stage of the library. `options` are passed to `dagster.asset`.

    The decorated body returns an `Outcome`, and the asset yields it as Dagster's results. The
    decorator adds owner, columns, freshness, checks, retries and links to the code.
    """

    def decorate(body: Callable[[Step], Outcome]) -> AssetFactory:
        name = body.__name__

        def run(context: dg.AssetExecutionContext) -> Iterator[Any]:
            yield from execute_stage(context, lambda: body(Step(context)))

        def build(arms: Arms) -> dg.AssetsDefinition:
            partitions_def = partitions(arms) if callable(partitions) else partitions
            return dg.asset(
                name=name,
                description=inspect.getdoc(body),
                owners=["team:delift"],
                code_version=sys.modules[stage.__module__].CODE_VERSION,
                metadata={**column_metadata(name), **code_references(stage, body)},
                freshness_policy=within_a_week,
                check_specs=check_specs(name, partitions_def),
                partitions_def=partitions_def,
                retry_policy=retry_policy(arms.automation),
                **{"required_resource_keys": {"store"}, **options},
            )(run)

        return build

    return decorate
