"""What every asset of the graph is declared with."""

from collections.abc import Callable
from typing import Any

import dagster as dg

from assets.checks import specs
from assets.columns import column_metadata
from assets.freshness import within_a_week
from delift_pipeline.core.home import Home
from delift_pipeline.orchestration.automation import retry_policy
from delift_pipeline.orchestration.partitions import (
    dataset_version,
    version_and_arm,
    version_and_arm_of,
)
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.stages.arms import Arm, Arms
from resources import ComputeResource, LanguageModelResource, StoreResource

AssetFactory = Callable[[Arms], dg.AssetsDefinition]
"""Makes an asset for the arms of one home: its partitions and its retries depend on them."""


def asset_per_version(**declaration: Any) -> Callable[[Callable[..., Any]], AssetFactory]:
    """Declare an asset of every dataset version; arguments are those of `dagster.asset`."""
    return _factory(lambda arms: dataset_version, declaration)


def asset_per_arm(**declaration: Any) -> Callable[[Callable[..., Any]], AssetFactory]:
    """Declare an asset of every arm of every dataset version."""
    return _factory(version_and_arm, declaration)


def asset_without_partitions(**declaration: Any) -> Callable[[Callable[..., Any]], AssetFactory]:
    """Declare an asset without partitions."""
    return _factory(lambda arms: None, declaration)


def _factory(
    partitions_of: Callable[[Arms], dg.PartitionsDefinition | None], declaration: dict[str, Any]
) -> Callable[[Callable[..., Any]], AssetFactory]:
    """A decorator that adds owner, columns, freshness, checks, partitions and retries."""

    def decorate(body: Callable[..., Any]) -> AssetFactory:
        def build(arms: Arms) -> dg.AssetsDefinition:
            partitions = partitions_of(arms)
            return dg.asset(
                owners=["team:delift"],
                metadata=column_metadata(body.__name__),
                freshness_policy=within_a_week,
                check_specs=specs(body.__name__, partitions),
                partitions_def=partitions,
                retry_policy=retry_policy(arms.automation),
                **declaration,
            )(body)

        return build

    return decorate


def version_of(
    context: dg.AssetExecutionContext,
    store: StoreResource,
    language_model: LanguageModelResource,
    compute: ComputeResource,
) -> tuple[Home, str, ModelOptions]:
    """The home, the dataset version of the partition, and its model."""
    home, version = store.open(), context.partition_key
    return home, version, language_model.options(home, version, compute)


def arm_of(
    context: dg.AssetExecutionContext,
    store: StoreResource,
    language_model: LanguageModelResource,
    compute: ComputeResource,
) -> tuple[Home, str, Arm, ModelOptions]:
    """The home, the dataset version and the arm of the partition, and the version's model."""
    home, (version, name) = store.open(), version_and_arm_of(context)
    arm = store.arms().arm(name)
    return home, version, arm, language_model.options(home, version, compute)
