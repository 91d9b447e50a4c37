"""Ingest: files become an immutable dataset version."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from assets.checks import specs
from assets.columns import column_metadata
from assets.door import enter
from assets.freshness import within_a_week
from delift_pipeline.automation import RETRIES
from delift_pipeline.partitions import dataset_version
from delift_pipeline.steps import dataset
from resources.store import StoreResource


@dg.asset(
    partitions_def=dataset_version,
    group_name="ingest",
    kinds={"polars", "parquet"},
    owners=["team:delift"],
    metadata=column_metadata("raw_dataset"),
    freshness_policy=within_a_week,
    code_version=dataset.CODE_VERSION,
    check_specs=specs("raw_dataset"),
    retry_policy=RETRIES,
)
def raw_dataset(context: dg.AssetExecutionContext, store: StoreResource) -> Iterator[Any]:
    """A dataset version: pool, held-out set and perhaps a target set, typed and identified.

    Stored by `delift ingest`, or taken from `inbox/<version>/`. It never changes.
    """
    yield from enter(context, lambda: dataset.open_dataset(store.open(), context.partition_key))
