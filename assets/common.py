"""What every asset of the graph is declared with."""

from collections.abc import Mapping
from typing import TypedDict

import dagster as dg

from assets.checks import specs
from assets.columns import column_metadata
from assets.freshness import within_a_week
from delift_pipeline.automation import RETRIES


class Common(TypedDict):
    """Arguments of `dagster.asset`."""

    owners: list[str]
    metadata: Mapping[str, dg.MetadataValue]
    freshness_policy: dg.FreshnessPolicy
    check_specs: list[dg.AssetCheckSpec]
    retry_policy: dg.RetryPolicy


def common(asset: str) -> Common:
    """The asset's owner, columns, freshness, checks and retries."""
    return {
        "owners": ["team:delift"],
        "metadata": column_metadata(asset),
        "freshness_policy": within_a_week,
        "check_specs": specs(asset),
        "retry_policy": RETRIES,
    }
