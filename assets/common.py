"""What every asset of the graph is declared with."""

from typing import Any

from assets.checks import specs
from assets.columns import column_metadata
from assets.freshness import within_a_week
from delift_pipeline.automation import RETRIES


def common(asset: str) -> dict[str, Any]:
    """Arguments of `dagster.asset`: owner, columns, freshness, checks and retries."""
    return {
        "owners": ["team:delift"],
        "metadata": column_metadata(asset),
        "freshness_policy": within_a_week,
        "check_specs": specs(asset),
        "retry_policy": RETRIES,
    }
