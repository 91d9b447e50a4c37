"""What every asset of the graph is declared with."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import wraps
from inspect import signature
from typing import Any

import dagster as dg

from assets.checks import specs
from assets.columns import column_metadata
from assets.door import enter
from assets.outcome import Outcome
from assets.source import code_references
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

# The weekly schedule looks at everything once a week: a day over it warns, a month fails. Dagster
# judges an asset by its newest partition; versions are immutable and older ones do not go stale.
within_a_week = dg.FreshnessPolicy.time_window(
    warn_window=timedelta(days=8), fail_window=timedelta(days=31)
)

AssetFactory = Callable[[Arms], dg.AssetsDefinition]
"""Makes an asset for the arms of one home: its partitions and its retries depend on them."""
AssetDecorator = Callable[[Callable[..., Outcome]], AssetFactory]


def asset_per_version(**declaration: Any) -> AssetDecorator:
    """Declare an asset of every dataset version; arguments are those of `dagster.asset`."""
    return _factory(lambda arms: dataset_version, declaration)


def asset_per_arm(**declaration: Any) -> AssetDecorator:
    """Declare an asset of every arm of every dataset version."""
    return _factory(version_and_arm, declaration)


def asset_without_partitions(
    **declaration: Any,
) -> AssetDecorator:
    """Declare an asset without partitions."""
    return _factory(lambda arms: None, declaration)


def _factory(
    partitions_of: Callable[[Arms], dg.PartitionsDefinition | None], declaration: dict[str, Any]
) -> AssetDecorator:
    """A decorator that adds owner, columns, freshness, checks, partitions and retries.

    The decorated body returns its outcome; as an asset it yields what Dagster is to know of it.
    """

    def decorate(body: Callable[..., Outcome]) -> AssetFactory:
        @wraps(body)
        def steps(context: dg.AssetExecutionContext, **resources: Any) -> Iterator[Any]:
            yield from enter(context, lambda: body(context, **resources))

        shown = signature(body).replace(return_annotation=Iterator[Any])
        steps.__signature__ = shown  # pyright: ignore[reportAttributeAccessIssue]

        def build(arms: Arms) -> dg.AssetsDefinition:
            partitions = partitions_of(arms)
            return dg.asset(
                owners=["team:delift"],
                metadata={**column_metadata(body.__name__), **code_references(body)},
                freshness_policy=within_a_week,
                check_specs=specs(body.__name__, partitions),
                partitions_def=partitions,
                retry_policy=retry_policy(arms.automation),
                **declaration,
            )(steps)

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
