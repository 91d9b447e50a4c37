"""From a record to everything it is part of, and why it was chosen or not."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from delift_pipeline.core.home import Home
from delift_pipeline.evaluation.options import METRICS
from delift_pipeline.evaluation.result import SAMPLE_SCHEMA, SAMPLES
from delift_pipeline.lineage.adapter import TRAINED_ON, training_records
from delift_pipeline.lineage.artifacts import (
    Artifact,
    arm_artifacts,
    folders,
    metrics_of,
    stored_versions,
    version_kernels,
)
from delift_pipeline.records.stored import find_record, stored_records, version_manifest
from delift_pipeline.selection.run import DROPPED, SUBSET

Rows = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class RecordLineage:
    """Everything that one record is part of.

    Attributes:
        texts: Its texts, task and source in the first version that has it.
        versions: Each place: version, part (`pool`, `target`, `heldout`), source ids, copies.
        subsets: For each arm that could choose it: whether it did, at which rank, and why.
        adapters: Adapters whose weights it shaped, directly or through the one they started from.
        reports: Metrics of these adapters.
        measured: For a held-out record, its own metrics under each arm.
        unscorable: Version -> why it cannot be scored.
    """

    record_id: str
    texts: dict[str, Any]
    versions: list[dict[str, Any]]
    subsets: list[dict[str, Any]]
    adapters: list[dict[str, Any]]
    reports: list[dict[str, Any]]
    measured: list[dict[str, Any]] = field(default_factory=list)
    unscorable: dict[str, str] = field(default_factory=dict)


def record_lineage(home: Home, record: str) -> RecordLineage:
    """Find everything that a record is part of.

    `record` is a record_id, the beginning of one, or a source id.

    Raises:
        InputError: no stored record matches, or several do.
    """
    records = stored_records(home)
    name = find_record(records, record, "no record of any version")
    own = records.filter(pl.col("record_id") == name)
    reached = _reachable_versions(home, own["version"])
    adapters = _adapters(home, name, reached)
    hashes = {(one["version"], one["arm"]): one["content_hash"] for one in adapters}
    first = own.row(0, named=True)
    frame = pl.read_parquet(home.dataset(first["version"]) / f"{first['part']}.parquet")
    texts = frame.select("instruction", "input", "output", "task", "source")
    return RecordLineage(
        record_id=name,
        texts=texts.row(frame["record_id"].index_of(name), named=True),
        versions=own.select("version", "part", "source_ids", "copies").to_dicts(),
        subsets=_subsets(home, name, reached),
        adapters=adapters,
        reports=[
            {"version": version, "arm": arm, "metrics": metrics}
            for (version, arm), digest in hashes.items()
            if (metrics := metrics_of(home, version, arm, digest)) is not None
        ],
        measured=_heldout_metrics(home, name, own.filter(pl.col("part") == "heldout")["version"]),
        unscorable={
            version: kernel.manifest.details["unscorable"][name]
            for version in own["version"].unique(maintain_order=True)
            for kernel in version_kernels(home, version)
            if name in kernel.manifest.details.get("unscorable", {})
        },
    )


def _reachable_versions(home: Home, holders: pl.Series) -> set[str]:
    """Return the versions whose artifacts may have a record: those with it, and all that follow.

    A subset chooses records from its version and earlier ones, and an adapter may continue an
    earlier one. Versions whose dataset is gone are included as well.
    """
    parents = {name: version_manifest(home, name).details["parents"] for name in home.versions()}
    reached, grew = set(holders), True
    while grew:
        followers = {n for n, before in parents.items() if not reached.isdisjoint(before)}
        grew = not followers <= reached
        reached |= followers
    gone = {name for kind in ("subset", "adapter") for name in stored_versions(home, kind)}
    return reached | (gone - set(parents))


def _artifacts(home: Home, kind: str, versions: Collection[str]) -> dict[str, Artifact]:
    """Return the artifacts of some versions by folder."""
    return {
        artifact.folder.as_posix(): artifact
        for version in stored_versions(home, kind)
        if version in versions
        for artifact in arm_artifacts(home, kind, version)
    }


def _rows(places: Iterable[str], file: str, name: str, schema: pl.Schema | None = None) -> Rows:
    """Read the record's rows from one table in each folder, all in one pass.

    A column that a table lacks is null; without a schema, the columns are those of the first table.
    """
    paths = [f"{folder}/{file}" for folder in places]
    rows: Rows = {}
    if paths:
        scanned = pl.scan_parquet(
            paths,
            schema=schema,
            include_file_paths="path",
            missing_columns="insert",
            extra_columns="ignore",
        )
        for row in scanned.filter(pl.col("record_id") == name).collect().iter_rows(named=True):
            rows.setdefault(row["path"].rpartition("/")[0], []).append(row)
    return rows


def _subsets(home: Home, name: str, versions: Collection[str]) -> list[dict[str, Any]]:
    """Return every stored subset that could choose the record, and why it did or did not."""
    artifacts = _artifacts(home, "subset", versions)
    chosen, dropped = (_rows(artifacts, file, name) for file in (SUBSET, DROPPED))
    facts = ("rank", "gain", "trust", "replayed", "covered_by", "coverage")
    return [
        {
            "version": one.version,
            "arm": one.arm,
            "content_hash": one.manifest.content_hash,
            "taken": folder in chosen,
            **{fact: row.get(fact) for fact in facts},
            "reason": _reason(row, folder in chosen),
        }
        for folder, one in artifacts.items()
        for row in (chosen.get(folder) or dropped.get(folder) or [])[:1]
    ]


def _reason(row: dict[str, Any], is_selected: bool) -> str:
    """Return why a record is in a subset or not, in one sentence."""
    if not is_selected and row["covered_by"] is None:
        return "dropped: beyond the budget, and no chosen record covers it"
    if not is_selected:
        return f"dropped: {row['covered_by']} covers it ({row['coverage']:.3f})"
    if row.get("replayed"):
        return f"replayed from existing records, at rank {row['rank']}"
    covers = len(row.get("covers") or ())
    covered = f", covers {covers} record{'' if covers == 1 else 's'}" if covers else ""
    gain = "" if row["gain"] is None else f", gain {row['gain']:.4g}"
    return f"chosen at rank {row['rank']}{gain}{covered}"


def _adapters(home: Home, name: str, versions: Collection[str]) -> list[dict[str, Any]]:
    """Return every stored adapter of some versions whose weights a record shaped."""
    arms = {a.as_posix(): a for v in sorted(versions) for a in folders(home.root / "adapters" / v)}
    listed = [place for place, arm in arms.items() if (arm / TRAINED_ON).is_file()]
    rows = _rows(listed, TRAINED_ON, name)
    # Only the manifests of adapters that may hold it are read: there can be thousands of others.
    empty = set(listed) - rows.keys()
    holding = {arm.parent.name for place, arm in arms.items() if place not in empty}
    adapters = _artifacts(home, "adapter", holding)
    for place in adapters.keys() - listed:
        if (frame := training_records(home, adapters[place])) is not None:
            rows[place] = frame.filter(pl.col("record_id") == name).to_dicts()
    return [
        {
            "adapter": adapter.name,
            "version": adapter.version,
            "arm": adapter.arm,
            "content_hash": adapter.manifest.content_hash,
            "through": None if row["adapter"] == adapter.name else row["adapter"],
            "rank": row["rank"],
            "left_out": row["left_out"],
        }
        for place, adapter in adapters.items()
        for row in rows.get(place, ())
    ]


def _heldout_metrics(home: Home, name: str, versions: pl.Series) -> list[dict[str, Any]]:
    """Return a held-out record's own metrics under each arm of the versions that hold it out."""
    reports = [one for v in versions.unique() for one in arm_artifacts(home, "report", v)]
    rows = _rows((one.folder.as_posix() for one in reports), SAMPLES, name, SAMPLE_SCHEMA)
    return [
        {
            "version": one.version,
            "arm": one.arm,
            **{metric: row[metric] for metric in METRICS if row.get(metric) is not None},
        }
        for one in reports
        for row in rows.get(one.folder.as_posix(), ())
    ]
