"""Ingest: files become an immutable dataset version."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from assets.common import asset_per_version
from assets.door import enter
from delift_pipeline.steps import dataset
from resources.store import StoreResource


@asset_per_version(
    group_name="ingest",
    kinds={"polars", "parquet"},
    code_version=dataset.CODE_VERSION,
)
def raw_dataset(context: dg.AssetExecutionContext, store: StoreResource) -> Iterator[Any]:
    """A dataset version: pool, held-out set and perhaps a target set, typed and identified.

    Stored by `delift ingest`, or taken from `inbox/<version>/`. It never changes.
    """
    yield from enter(context, lambda: dataset.open_dataset(store.open(), context.partition_key))
