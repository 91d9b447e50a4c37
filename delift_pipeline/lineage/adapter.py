"""From an adapter to its causes: data, records, reasons, model, scores, code and runs."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.evaluation.result import REPORT
from delift_pipeline.lineage.artifacts import Artifact, Cause, causes, found
from delift_pipeline.lineage.existing import SUBSET_FILE
from delift_pipeline.lineage.tracked import tracked
from delift_pipeline.lineage.trained_on import trained_on
from delift_pipeline.storage.atomic import read_json
from delift_pipeline.storage.home import Home, checked_arm, checked_version
from delift_pipeline.storage.manifest import rebuild_reason


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

    def as_json(self) -> dict[str, Any]:
        """The lineage as plain data."""
        return asdict(self)


def adapter_lineage(home: Home, version: str, arm: str) -> AdapterLineage:
    """Everything an adapter was made of.

    Raises:
        Refused: there is no such adapter.
        DeliftError: a manifest is damaged.
    """
    adapter = stored_adapter(home, version, arm)
    edges = causes(home, adapter)
    report = found(home, f"report:{version}:{arm}")
    above = _distinct(edges)
    records = _records(home, adapter)
    artifacts = [adapter, *above.values(), *([report] if report else [])]
    return AdapterLineage(
        adapter=_described(home, adapter),
        data=_data(home, adapter, above),
        records=None if records is None else records.to_dicts(),
        subset=_subset(home, f"subset:{version}:{arm}"),
        model=_model(home, adapter),
        scores=_scores(home, edges),
        runs=_runs(adapter, artifacts),
        code={one.name: _code(one) for one in artifacts},
        metrics=_metrics(report, adapter),
        causes=[edge.as_json(home.root) for edge in edges],
        notes=_notes(adapter, edges, records, report),
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
        raise Refused(Fault(reason, field="--adapter"))
    return adapter


def adapter_records(home: Home, adapter: Artifact) -> pl.DataFrame | None:
    """The records that shaped an adapter (`trained_on.SCHEMA`), or None where the list is lost."""
    subset = home.subset(str(adapter.version), str(adapter.arm))
    return trained_on(adapter.folder, adapter.manifest, adapter.name, subset)


def _distinct(edges: list[Cause]) -> dict[str, Artifact]:
    """The stored parents by name, nearest first; a kernel's blocks are one artifact."""
    known: dict[Path, Artifact] = {}
    for edge in edges:
        if edge.stored is not None:
            known.setdefault(edge.stored.folder, edge.stored)
    return {one.name: one for one in known.values()}


def _described(home: Home, adapter: Artifact) -> dict[str, Any]:
    own = adapter.manifest
    return {
        "name": adapter.name,
        "version": adapter.version,
        "arm": adapter.arm,
        "path": adapter.folder.relative_to(home.root).as_posix(),
        "content_hash": own.content_hash,
        "created": own.created,
        "counts": own.counts,
        "training": own.request.get("training"),
        "seed": own.request.get("seed"),
        **{key: own.details.get(key) for key in ("method", "started_from")},
        "rebuild": rebuild_reason(adapter.folder),
    }


def _data(home: Home, adapter: Artifact, above: dict[str, Artifact]) -> list[dict[str, Any]]:
    names = dict.fromkeys([f"dataset:{adapter.version}"])
    names |= dict.fromkeys(name for name in above if name.startswith("dataset:"))
    stored = [one for one in (found(home, name) for name in names) if one is not None]
    return [
        {
            "version": one.version,
            "dataset": one.manifest.details["dataset"],
            "content_hash": one.manifest.content_hash,
            "parents": one.manifest.details["parents"],
            "counts": one.manifest.counts,
            "model": one.manifest.details.get("model"),
            "template": one.manifest.details.get("template"),
        }
        for one in stored
    ]


def _records(home: Home, adapter: Artifact) -> pl.DataFrame | None:
    """The records with their reasons, where the subset that names them is still stored."""
    records = adapter_records(home, adapter)
    if records is None:
        return None
    reasons = [_reasons(home, name) for name in records["adapter"].unique(maintain_order=True)]
    known = pl.concat([one for one in reasons if one is not None] or [_no_reasons()])
    return records.join(known, on=["record_id", "adapter"], how="left", maintain_order="left")


_REASONS = {
    "source_id": pl.String,
    "gain": pl.Float64,
    "trust": pl.Float64,
    "replayed": pl.Boolean,
    "covers": pl.List(pl.String),
}


def _no_reasons() -> pl.DataFrame:
    return pl.DataFrame(schema={"record_id": pl.String, **_REASONS, "adapter": pl.String})


def _reasons(home: Home, adapter: str) -> pl.DataFrame | None:
    """Reasons of the subset an adapter was trained on, unless it was chosen anew since."""
    _, version, arm = adapter.split(":")
    path = home.subset(version, arm) / SUBSET_FILE
    stored, subset = found(home, adapter), found(home, f"subset:{version}:{arm}")
    if stored is None or subset is None or not path.is_file():
        return None
    if stored.manifest.parents.get(subset.name) != subset.manifest.content_hash:
        return None
    frame = pl.read_parquet(path)
    columns = [
        pl.col(name).cast(kind) if name in frame.columns else pl.lit(None, dtype=kind).alias(name)
        for name, kind in _REASONS.items()
    ]
    return frame.select("record_id", *columns, pl.lit(adapter).alias("adapter"))


def _subset(home: Home, name: str) -> dict[str, Any]:
    subset = found(home, name)
    if subset is None:
        return {}
    own = subset.manifest
    facts = ("objective", "value", "value_random", "notes")
    return {
        "name": name,
        "content_hash": own.content_hash,
        "created": own.created,
        "counts": own.counts,
        **own.request,
        **{key: own.details.get(key) for key in facts},
    }


def _model(home: Home, adapter: Artifact) -> dict[str, Any]:
    fingerprint = adapter.manifest.parents.get("model") or adapter.manifest.fingerprint
    if fingerprint is None:
        return {}
    store = found(home, "model", fingerprint)
    return {"fingerprint": fingerprint, **(store.manifest.details if store else {})}


def _scores(home: Home, edges: list[Cause]) -> list[dict[str, Any]]:
    kinds = ("kernel:", "scores:", "plan:")
    return [
        {**edge.as_json(home.root), "counts": edge.stored.manifest.counts if edge.stored else {}}
        for edge in edges
        if edge.parent.startswith(kinds)
    ]


def _runs(adapter: Artifact, artifacts: list[Artifact]) -> dict[str, Any]:
    known = tracked(adapter.folder)
    return {
        "dagster": {one.name: one.manifest.run_id for one in artifacts if one.manifest.run_id},
        "mlflow": {"run_id": known.get("run_id"), "link": known.get("link")} if known else None,
    }


def _code(artifact: Artifact) -> dict[str, Any]:
    own = artifact.manifest
    return {
        "code_version": own.code_version,
        "delift": own.delift_version,
        "git_commit": own.git_commit,
        "packages": own.packages,
    }


def _metrics(report: Artifact | None, adapter: Artifact) -> dict[str, Any]:
    """The report's metrics, if they are this adapter's."""
    if report is None or not (report.folder / REPORT).is_file():
        return {}
    if report.manifest.parents.get(adapter.name) != adapter.manifest.content_hash:
        return {}
    return read_json(report.folder / REPORT)["evaluation"]["metrics"]


def _notes(
    adapter: Artifact,
    edges: list[Cause],
    records: pl.DataFrame | None,
    report: Artifact | None,
) -> list[str]:
    notes = [f"{edge.parent} is {edge.state} {edge.child} was made" for edge in _not_as(edges)]
    if marked := rebuild_reason(adapter.folder):
        notes.append(f"{adapter.name} is marked for rebuilding: {marked}")
    if records is None:
        notes.append("the list of its records is lost: its subset was chosen anew since")
    if report and report.manifest.parents.get(adapter.name) != adapter.manifest.content_hash:
        notes.append(f"{report.name} measures another adapter than the one that is stored")
    return notes


def _not_as(edges: list[Cause]) -> list[Cause]:
    return [edge for edge in edges if edge.state != "as recorded"]
