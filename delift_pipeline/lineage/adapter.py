"""From an adapter to its causes: data, records, reasons, model, scores, code and runs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from delift_pipeline.core.atomic import read_json
from delift_pipeline.core.errors import Refused
from delift_pipeline.core.home import Home, checked_arm, checked_version
from delift_pipeline.core.manifest import rebuild_reason
from delift_pipeline.evaluation.result import REPORT
from delift_pipeline.lineage.artifacts import Artifact, causes, found
from delift_pipeline.lineage.tracked import tracked
from delift_pipeline.lineage.trained_on import trained_on
from delift_pipeline.selection.run import SUBSET

_BASICS = {"content_hash", "created", "counts"}
_REASONS = {
    "source_id": pl.String,
    "gain": pl.Float64,
    "trust": pl.Float64,
    "replayed": pl.Boolean,
    "covers": pl.List(pl.String),
}


@dataclass(frozen=True)
class AdapterLineage:
    """What made one adapter.

    Attributes:
        adapter: Its name, path, content hash, date, method and what it started from.
        data: The versions it rests on, its own first.
        records: Each record that shaped its weights: rank, reason, and which adapter trained on it;
            None where the list is lost (`notes` says why).
        subset: What was asked of the selector and what it found.
        model: The base model's fingerprint and what it covers.
        scores: The score and kernel artifacts read, with their hashes.
        runs: Dagster run ids by artifact, and the MLflow run with its link.
        code: Code version, package versions and git commit by artifact.
        metrics: The report's metrics, empty where it is not evaluated.
        causes: Every edge of the graph above it, with its state.
        notes: What is not as it was when the adapter was made.
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
    """Everything an adapter was made of.

    Raises:
        Refused: there is no such adapter.
        DeliftError: a manifest is damaged.
    """
    adapter = stored_adapter(home, version, arm)
    edges = causes(home, adapter)
    report, subset = (found(home, f"{kind}:{version}:{arm}") for kind in ("report", "subset"))
    own = adapter.manifest
    fingerprint = own.parents.get("model") or own.fingerprint
    model = {"fingerprint": fingerprint} if fingerprint else {}
    base = found(home, "model", fingerprint)
    measured = report.manifest.parents.get(adapter.name) if report else None
    own_report = report is not None and measured == own.content_hash
    known = tracked(adapter.folder)
    records = _records(home, adapter)
    # The stored parents, nearest first; a kernel's blocks are one artifact.
    by_folder: dict[Path, Artifact] = {}
    for edge in edges:
        if edge.stored is not None:
            by_folder.setdefault(edge.stored.folder, edge.stored)
    above = {one.name: one for one in by_folder.values()}
    artifacts = [adapter, *above.values(), *([report] if report else [])]

    notes = [
        f"{edge.parent} is {edge.state} {edge.child} was made"
        for edge in edges
        if edge.state != "as recorded"
    ]
    if marked := rebuild_reason(adapter.folder):
        notes.append(f"{adapter.name} is marked for rebuilding: {marked}")
    if records is None:
        notes.append("the list of its records is lost: its subset was chosen anew since")
    if report and not own_report:
        notes.append(f"{report.name} measures another adapter than the one that is stored")
    metrics = {}
    if report and own_report and (report.folder / REPORT).is_file():
        metrics = read_json(report.folder / REPORT)["evaluation"]["metrics"]

    return AdapterLineage(
        adapter={
            "name": adapter.name,
            "version": adapter.version,
            "arm": adapter.arm,
            "path": adapter.folder.relative_to(home.root).as_posix(),
            **own.model_dump(include=_BASICS),
            **{key: own.request.get(key) for key in ("training", "seed")},
            **{key: own.details.get(key) for key in ("method", "started_from")},
            "rebuild": marked,
        },
        data=_data(home, adapter, above),
        records=None if records is None else records.to_dicts(),
        subset=_asked_and_found(subset) if subset else {},
        model=model | (base.manifest.details if base else {}),
        scores=[
            {
                **edge.as_json(home.root),
                "counts": edge.stored.manifest.counts if edge.stored else {},
            }
            for edge in edges
            if edge.parent.startswith(("kernel:", "scores:", "plan:"))
        ],
        runs={
            "dagster": {one.name: one.manifest.run_id for one in artifacts if one.manifest.run_id},
            "mlflow": {key: known.get(key) for key in ("run_id", "link")} if known else None,
        },
        code={
            one.name: {
                "delift": one.manifest.delift_version,
                **one.manifest.model_dump(include={"code_version", "git_commit", "packages"}),
            }
            for one in artifacts
        },
        metrics=metrics,
        causes=[edge.as_json(home.root) for edge in edges],
        notes=notes,
    )


def stored_adapter(home: Home, version: str, arm: str) -> Artifact:
    """The adapter of an arm.

    Raises:
        Refused: the names are no names, or there is none.
    """
    name = f"adapter:{checked_version(version)}:{checked_arm(arm)}"
    adapter = found(home, name)
    if adapter is None:
        reason = f"{version} has no adapter of {arm}: delift run --version {version} --arm {arm}"
        raise Refused(reason, field="--adapter")
    return adapter


def _data(home: Home, adapter: Artifact, above: dict[str, Artifact]) -> list[dict[str, Any]]:
    names = [f"dataset:{adapter.version}", *(one for one in above if one.startswith("dataset:"))]
    stored = [one for name in dict.fromkeys(names) if (one := found(home, name)) is not None]
    return [
        {
            "version": one.version,
            **one.manifest.model_dump(include={"content_hash", "counts"}),
            **{
                key: one.manifest.details.get(key)
                for key in ("dataset", "parents", "model", "template")
            },
        }
        for one in stored
    ]


def _asked_and_found(subset: Artifact) -> dict[str, Any]:
    own = subset.manifest
    facts = ("objective", "value", "value_random", "notes")
    return {
        "name": subset.name,
        **own.model_dump(include=_BASICS),
        **own.request,
        **{key: own.details.get(key) for key in facts},
    }


def _records(home: Home, adapter: Artifact) -> pl.DataFrame | None:
    """The records with their reasons, where the subset that names them is still stored."""
    records = trained_on(home, adapter)
    if records is None:
        return None
    reasons = [pl.DataFrame(schema={"record_id": pl.String, **_REASONS, "adapter": pl.String})]
    for name in records["adapter"].unique(maintain_order=True):
        stored, subset = found(home, name), found(home, name.replace("adapter:", "subset:", 1))
        if not stored or not subset or not (subset.folder / SUBSET).is_file():
            continue
        if stored.manifest.parents.get(subset.name) != subset.manifest.content_hash:
            continue  # It was chosen anew since.
        frame = pl.read_parquet(subset.folder / SUBSET)
        columns = [
            (pl.col(key) if key in frame.columns else pl.lit(None)).cast(kind).alias(key)
            for key, kind in _REASONS.items()
        ]
        reasons.append(frame.select("record_id", *columns, pl.lit(name).alias("adapter")))
    known = pl.concat(reasons)
    return records.join(known, on=["record_id", "adapter"], how="left", maintain_order="left")
