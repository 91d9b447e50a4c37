"""From an adapter to everything it was made of: data, records, model, scores, code and runs.

A subset or a parent's adapter can be replaced later while this adapter stays. So each adapter
stores its own list of the records that shaped its weights: those of its subset, and those of the
adapter that its training started from.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import polars.selectors as cs

from delift_pipeline.core.atomic import write_parquet
from delift_pipeline.core.errors import InputError
from delift_pipeline.core.hashing import digest_text
from delift_pipeline.core.home import Home, check_arm, check_version
from delift_pipeline.core.manifest import read_manifest, rebuild_reason
from delift_pipeline.lineage.artifacts import Artifact, causes, find_artifact, metrics_of
from delift_pipeline.lineage.tracked import read_tracking_note
from delift_pipeline.selection.run import SUBSET

TRAINED_ON = "trained_on.parquet"
SCHEMA = pl.Schema(
    {
        "record_id": pl.String(),
        "adapter": pl.String(),  # the `adapter:V:ARM` trained on it: this one or an earlier one
        "rank": pl.UInt32(),  # in that adapter's subset
        "left_out": pl.String(),  # why a record of the subset was not trained on; else null
    }
)
_BASICS = {"content_hash", "created", "counts"}
_REASONS = {
    "source_id": pl.String,
    "gain": pl.Float64,
    "trust": pl.Float64,
    "replayed": pl.Boolean,
    "covers": pl.List(pl.String),
}


def write_trained_on(
    folder: Path,
    name: str,
    ranking: pl.Series,
    left_out: Mapping[str, str],
    start: Path | None,
) -> None:
    """Write the list of training records into an adapter's folder.

    `name` is `adapter:V:ARM`, `ranking` the subset's record_ids in rank order, `left_out` record_id
    -> why it could not be trained on, and `start` the folder of the adapter that training
    continued.
    """
    records = _record_table(name, ranking, left_out)
    if start is not None and (start / TRAINED_ON).is_file():
        records = pl.concat([records, pl.read_parquet(start / TRAINED_ON)])
    write_parquet(folder / TRAINED_ON, records)


def training_records(home: Home, adapter: Artifact) -> pl.DataFrame | None:
    """Return the records that shaped an adapter (`SCHEMA`), or None if they are not known.

    An old adapter without a list has the records of its subset, if the subset is still the same.
    """
    path = adapter.folder / TRAINED_ON
    if path.is_file():
        return pl.read_parquet(path)
    folder = home.subset(str(adapter.version), str(adapter.arm))
    subset = read_manifest(folder)
    recorded = adapter.manifest.parents.get(adapter.name.replace("adapter:", "subset:", 1))
    if subset is None or subset.content_hash != recorded:
        return None
    ranking = pl.read_parquet(folder / SUBSET, columns=["record_id"])["record_id"]
    if adapter.manifest.details.get("started_from") or digest_text(*ranking) != recorded:
        return None
    return _record_table(adapter.name, ranking, {})


def _record_table(name: str, ranking: pl.Series, left_out: Mapping[str, str]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "record_id": ranking,
            "adapter": [name] * ranking.len(),
            "rank": range(ranking.len()),
            "left_out": [left_out.get(record) for record in ranking],
        },
        schema=SCHEMA,
    )


@dataclass(frozen=True)
class AdapterLineage:
    """Everything that one adapter was made of.

    Attributes:
        adapter: Its name, path, content hash, date, method and the adapter it started from.
        data: The dataset versions behind it, its own first.
        records: Each record that shaped its weights: rank, reason, and which adapter trained on it;
            None if the list is lost (`notes` says why).
        subset: The options of the selector and its result.
        model: The base model's fingerprint and what the fingerprint covers.
        scores: The score and kernel artifacts that were read, with their hashes.
        runs: Dagster run ids by artifact, and the MLflow run with its link.
        code: Code version, package versions and git commit by artifact.
        metrics: The report's metrics; empty if the adapter is not evaluated.
        causes: Every edge of the graph above it, with its state.
        notes: What has changed since the adapter was made.
    """

    adapter: dict[str, Any]
    data: list[dict[str, Any]]
    records: list[dict[str, Any]] | None = field(repr=False)
    subset: dict[str, Any]
    model: dict[str, Any]
    scores: list[dict[str, Any]]
    runs: dict[str, Any]
    code: dict[str, dict[str, Any]]
    metrics: dict[str, Any]
    causes: list[dict[str, str | None]] = field(repr=False)
    notes: list[str]


def adapter_lineage(home: Home, version: str, arm: str) -> AdapterLineage:
    """Collect everything that an adapter was made of.

    Raises:
        InputError: a name is not valid, or there is no such adapter.
        DeliftError: a manifest is damaged.
    """
    adapter = find_artifact(home, f"adapter:{check_version(version)}:{check_arm(arm)}")
    if adapter is None:
        run = f"delift run --version {version} --arm {arm}"
        reason = f"{version} has no adapter of {arm}. Run `{run}` to train one."
        raise InputError(reason, field="--adapter")
    own, edges, records = adapter.manifest, causes(home, adapter), _records(home, adapter)
    report, subset = (
        find_artifact(home, f"{kind}:{version}:{arm}") for kind in ("report", "subset")
    )
    fingerprint = own.parents.get("model") or own.fingerprint
    base = find_artifact(home, "model", fingerprint)
    model = {"fingerprint": fingerprint} if fingerprint else {}
    known, marked = read_tracking_note(adapter.folder), rebuild_reason(adapter.folder)
    metrics = metrics_of(home, version, arm, own.content_hash)
    # The stored parents, nearest first. The blocks of a kernel are one artifact.
    by_folder: dict[Path, Artifact] = {}
    for edge in edges:
        if edge.stored is not None:
            by_folder.setdefault(edge.stored.folder, edge.stored)
    above = {one.name: one for one in by_folder.values()}
    artifacts = [adapter, *above.values(), *([report] if report else [])]
    datasets = [f"dataset:{version}", *(name for name in above if name.startswith("dataset:"))]

    notes = [
        f"{edge.parent} is {edge.state} {edge.child} was made"
        for edge in edges
        if edge.state != "as recorded"
    ]
    if marked:
        notes.append(f"{adapter.name} is marked for rebuilding: {marked}")
    if records is None:
        notes.append("the list of its records is lost: its subset was chosen again later")
    if report and metrics is None:
        notes.append(f"{report.name} measures another adapter than the one that is stored")

    return AdapterLineage(
        adapter={
            "name": adapter.name,
            "version": adapter.version,
            "arm": adapter.arm,
            "path": adapter.folder.relative_to(home.root).as_posix(),
            **own.model_dump(include=_BASICS),
            **_select_keys(own.request, "training", "seed"),
            **_select_keys(own.details, "method", "started_from"),
            "rebuild": marked,
        },
        data=[
            {
                "version": one.version,
                **one.manifest.model_dump(include={"content_hash", "counts"}),
                **_select_keys(one.manifest.details, "dataset", "parents", "model", "template"),
            }
            for name in dict.fromkeys(datasets)
            if (one := find_artifact(home, name))
        ],
        records=None if records is None else records.to_dicts(),
        subset={
            "name": subset.name,
            **subset.manifest.model_dump(include=_BASICS),
            **subset.manifest.request,
            **_select_keys(subset.manifest.details, "objective", "value", "value_random", "notes"),
        }
        if subset
        else {},
        model=model | (base.manifest.details if base else {}),
        scores=[
            edge.as_json(home.root) | {"counts": edge.stored.manifest.counts if edge.stored else {}}
            for edge in edges
            if edge.parent.startswith(("kernel:", "scores:", "baseline:", "plan:"))
        ],
        runs={
            "dagster": {one.name: one.manifest.run_id for one in artifacts if one.manifest.run_id},
            "mlflow": _select_keys(known, "run_id", "link") if known else None,
        },
        code={
            one.name: {
                "delift": one.manifest.delift_version,
                **one.manifest.model_dump(include={"code_version", "git_commit", "packages"}),
            }
            for one in artifacts
        },
        metrics=metrics or {},
        causes=[edge.as_json(home.root) for edge in edges],
        notes=notes,
    )


def _select_keys(values: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return the values of some keys, with None for missing ones."""
    return {name: values.get(name) for name in names}


def _records(home: Home, adapter: Artifact) -> pl.DataFrame | None:
    """Return the records, with reasons if the subset that has them is still stored."""
    records = training_records(home, adapter)
    if records is None:
        return None
    reasons = [pl.DataFrame(schema={"record_id": pl.String, **_REASONS, "adapter": pl.String})]
    columns = cs.by_name("record_id", *_REASONS, require_all=False)
    for name in records["adapter"].unique(maintain_order=True):
        stored = find_artifact(home, name)
        subset = find_artifact(home, name.replace("adapter:", "subset:", 1))
        if not stored or not subset or not (subset.folder / SUBSET).is_file():
            continue
        # A subset that was chosen again later has other reasons.
        if stored.manifest.parents.get(subset.name) == subset.manifest.content_hash:
            frame = pl.read_parquet(subset.folder / SUBSET).select(columns)
            reasons.append(frame.with_columns(adapter=pl.lit(name)))
    known = pl.concat(reasons, how="diagonal_relaxed")
    return records.join(known, on=["record_id", "adapter"], how="left", maintain_order="left")
