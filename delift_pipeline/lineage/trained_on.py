"""The records that shaped an adapter's weights, kept beside the weights.

A subset may be chosen again and a parent's adapter trained again while this adapter stands, so it
keeps its own list: the records of its subset, and those of the adapter that training went on from.
"""

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from delift_pipeline.core.atomic import write_parquet
from delift_pipeline.core.hashing import digest_text
from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import read_manifest
from delift_pipeline.lineage.artifacts import Artifact
from delift_pipeline.selection.run import SUBSET

TRAINED_ON = "trained_on.parquet"
SCHEMA = pl.Schema(
    {
        "record_id": pl.String(),
        "adapter": pl.String(),  # `adapter:V:ARM` that was trained on it, this one or one before it
        "rank": pl.UInt32(),  # in that adapter's subset
        "left_out": pl.String(),  # why it was in the subset and not trained on; else null
    }
)


def write_trained_on(
    folder: Path,
    name: str,
    ranking: pl.Series,
    left_out: Mapping[str, str],
    start: Path | None,
) -> None:
    """Write the list into an adapter's folder.

    `name` is `adapter:V:ARM`, `ranking` the subset's record_ids in rank order, `left_out` record_id
    -> why it could not be trained on, and `start` the folder of the adapter that was continued.
    """
    records = _listed(name, ranking, left_out)
    if start is not None and (start / TRAINED_ON).is_file():
        records = pl.concat([records, pl.read_parquet(start / TRAINED_ON)])
    write_parquet(folder / TRAINED_ON, records)


def trained_on(home: Home, adapter: Artifact) -> pl.DataFrame | None:
    """The records that shaped an adapter (`SCHEMA`), or None where the list is lost.

    For an adapter that kept no list it is its subset, where that is still the one it was made of.
    """
    kept = adapter.folder / TRAINED_ON
    if kept.is_file():
        return pl.read_parquet(kept)
    folder = home.subset(str(adapter.version), str(adapter.arm))
    subset = read_manifest(folder)
    recorded = adapter.manifest.parents.get(adapter.name.replace("adapter:", "subset:", 1))
    if subset is None or subset.content_hash != recorded:
        return None
    ranking = pl.read_parquet(folder / SUBSET, columns=["record_id"])["record_id"]
    if adapter.manifest.details.get("started_from") or digest_text(*ranking) != recorded:
        return None
    return _listed(adapter.name, ranking, {})


def _listed(name: str, ranking: pl.Series, left_out: Mapping[str, str]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "record_id": ranking,
            "adapter": [name] * ranking.len(),
            "rank": range(ranking.len()),
            "left_out": [left_out.get(record) for record in ranking],
        },
        schema=SCHEMA,
    )
