"""The records that shaped an adapter's weights, kept beside the weights.

A subset may be chosen again and a parent's adapter trained again while this adapter stands, so it
keeps its own list: the records of its subset, and those of the adapter that training went on from.
"""

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from delift_pipeline.lineage.existing import SUBSET_FILE
from delift_pipeline.storage.atomic import write_parquet
from delift_pipeline.storage.hashing import digest_text
from delift_pipeline.storage.manifest import Manifest, read_manifest

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

    Args:
        folder: The adapter's folder, or the temporary one that takes its place.
        name: `adapter:V:ARM`.
        ranking: The subset's record_ids in rank order.
        left_out: record_id -> why it could not be trained on.
        start: The folder of the adapter that training went on from.
    """
    own = pl.DataFrame(
        {
            "record_id": ranking,
            "adapter": [name] * ranking.len(),
            "rank": range(ranking.len()),
            "left_out": [left_out.get(record) for record in ranking],
        },
        schema=SCHEMA,
    )
    before = read_trained_on(start) if start is not None else None
    write_parquet(folder / TRAINED_ON, own if before is None else pl.concat([own, before]))


def read_trained_on(folder: Path) -> pl.DataFrame | None:
    """The list in an adapter's folder (`SCHEMA`), or None where none was kept."""
    path = folder / TRAINED_ON
    return pl.read_parquet(path) if path.is_file() else None


def trained_on(adapter: Path, manifest: Manifest, name: str, subset: Path) -> pl.DataFrame | None:
    """The adapter's list; for one without, its subset where that is still the one it was made of.

    Args:
        adapter: The adapter's folder.
        manifest: Its manifest.
        name: `adapter:V:ARM`.
        subset: The folder of the arm's subset.
    """
    kept = read_trained_on(adapter)
    if kept is not None:
        return kept
    stored = read_manifest(subset)
    recorded = manifest.parents.get(name.replace("adapter:", "subset:", 1))
    if stored is None or stored.content_hash != recorded or manifest.details.get("started_from"):
        return None
    ranking = pl.read_parquet(subset / SUBSET_FILE, columns=["record_id"])["record_id"]
    if digest_text(*ranking) != recorded:
        return None
    rows = {"record_id": ranking, "adapter": [name] * ranking.len(), "rank": range(ranking.len())}
    return pl.DataFrame({**rows, "left_out": [None] * ranking.len()}, schema=SCHEMA)
