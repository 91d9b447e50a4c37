"""Ingest: files become an immutable dataset version."""

import polars as pl

from assets.common import Step, asset_of
from assets.outcome import Check, Facts, Outcome, load_plot, preview
from delift_pipeline.core.home import Home
from delift_pipeline.core.plots import histogram_png
from delift_pipeline.orchestration.partitions import dataset_version
from delift_pipeline.records.schema import RECORD_SCHEMA
from delift_pipeline.records.stored import DatasetVersion, compare_with_parents, pool_ids
from delift_pipeline.stages.dataset import DatasetResult, open_dataset

PREVIEW_COLUMNS = ("record_id", "instruction", "input", "output", "task", "copies")


@asset_of(open_dataset, dataset_version, group_name="ingest", kinds={"polars", "parquet"})
def raw_dataset(step: Step) -> Outcome:
    """A dataset version: a pool, a held-out set and perhaps a target set.

    `delift ingest` stored it, or it comes from `inbox/<version>/`. It never changes.
    """
    return dataset_outcome(open_dataset(step.home, step.version))


def dataset_outcome(result: DatasetResult) -> Outcome:
    """Convert a dataset version to what Dagster shows."""
    dataset = result.dataset

    def draw() -> bytes:
        words = dataset.pool["output"].str.split(" ").list.len().to_numpy()
        return histogram_png(words, "answers of the pool", "words, split at blanks")

    return Outcome.of(
        result,
        facts=_facts(result.home, dataset),
        plots={"answer lengths": load_plot(result.folder / "lengths.png", draw)},
        tables={"first records": preview(dataset.pool, PREVIEW_COLUMNS)},
        checks=_checks(result),
    )


def _facts(home: Home, dataset: DatasetVersion) -> Facts:
    details = dataset.manifest.details
    facts: Facts = {
        **dataset.manifest.counts,
        "stages": ", ".join(dataset.stages()),
        "dataset": details["dataset"],
        "coverage": details["coverage"],
    }
    if same := details.get("same_as"):
        facts["same_as"] = same
    if dataset.parents:
        change = compare_with_parents(home, dataset.version)
        facts["parent_versions"] = ", ".join(dataset.parents)
        facts |= {"added": change.added, "removed": change.removed, "changed": change.changed}
    return facts


def _checks(result: DatasetResult) -> dict[str, Check]:
    dataset, rejected = result.dataset, result.rejected
    parts = {"pool": dataset.pool, "target": dataset.target, "heldout": dataset.heldout}
    parts = {name: frame for name, frame in parts.items() if frame is not None}
    wrong = [name for name, frame in parts.items() if frame.schema != RECORD_SCHEMA]
    empty = [name for name, frame in parts.items() if frame.is_empty()]
    shared = _overlap(result.home, dataset, parts)
    return {
        "schema": Check(not wrong, f"columns and types differ in: {', '.join(wrong) or 'none'}"),
        "not_empty": Check(not empty, f"empty sets: {', '.join(empty) or 'none'}"),
        "disjoint": Check(
            not shared,
            f"{len(shared)} records are shared between pool, target and held-out set",
            {"shared": len(shared), "first": ", ".join(shared[:5])},
        ),
        "inbox": Check(
            rejected is None,
            f"the inbox entry was rejected, see inbox/rejected/: {rejected}"
            if rejected
            else "no inbox entry of this name was rejected",
        ),
    }


def _overlap(home: Home, dataset: DatasetVersion, parts: dict[str, pl.DataFrame]) -> list[str]:
    """Return record_ids in more than one of pool (with parents' pools), target and held-out set."""
    seen, shared = set(pool_ids(home, dataset.parents)), set[str]()
    for name, frame in parts.items():
        ids = set(frame["record_id"])
        shared |= seen & ids if name != "pool" else set()
        seen |= ids
    return sorted(shared)
