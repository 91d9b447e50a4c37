"""What every asset of the graph is declared with."""

from collections.abc import Callable
from typing import Any

import dagster as dg

from assets.checks import specs
from assets.columns import column_metadata
from assets.freshness import within_a_week
from delift_pipeline.arms import Arms
from delift_pipeline.automation import retry_policy
from delift_pipeline.partitions import dataset_version, version_and_arm

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
