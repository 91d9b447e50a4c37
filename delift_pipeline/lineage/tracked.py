"""What an arm leaves in MLflow: one run with its data sets, curves, subset, adapter and metrics."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from delift_pipeline.arms import Arm
from delift_pipeline.lineage.card import CARD, card_text
from delift_pipeline.lineage.tracked_models import (
    log_adapter,
    log_card,
    model_link,
    register,
    registered_name,
)
from delift_pipeline.lineage.tracking import Tracker
from delift_pipeline.records.stored import DatasetVersion
from delift_pipeline.storage.atomic import read_json, write_json
from delift_pipeline.storage.hashing import digest_frame, digest_json
from delift_pipeline.storage.home import Home
from delift_pipeline.storage.manifest import Manifest
from delift_pipeline.training.log import TrainingLog

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

TRACKED = "tracking.json"
POINTS_PER_CALL = 50
DAGSTER_VARIABLE = "DELIFT_DAGSTER_URL"
DEFAULT_DAGSTER = "http://127.0.0.1:3000"


@dataclass
class TrackedArm:
    """The MLflow run of one version's arm.

    Attributes:
        tracker: Where it is logged.
        home: The home.
        dataset: The version.
        arm: The arm.
        records: The subset, in rank order.
        parents: Name of each artifact the adapter is made of -> its hash.
        model: The base model's name, never a path.
        dagster_run: The Dagster run, if any.
    """

    tracker: Tracker
    home: Home
    dataset: DatasetVersion
    arm: Arm
    records: pl.DataFrame = field(repr=False)
    parents: Mapping[str, str]
    model: str
    dagster_run: str | None = None
    run_id: str = ""
    _points: list[tuple[int, Mapping[str, float]]] = field(default_factory=list, repr=False)

    @property
    def folder(self) -> Path:
        """The adapter's folder."""
        return self.home.adapter(self.dataset.version, self.arm.name)

    def begin(self) -> None:
        """Start the run, with parameters, tags that lead back, and the data sets as inputs."""
        arm, version = self.arm, self.dataset.version
        asked = {
            "version": version,
            "arm": arm.name,
            "budget": arm.budget,
            "seed": arm.seed,
            "model": self.model,
            "selector": arm.options,
            "training": arm.training.model_dump(mode="json"),
            "evaluation": arm.evaluation.model_dump(mode="json"),
        }
        made_of = {"parents": dict(self.parents), "training": asked["training"], "seed": arm.seed}
        tags: dict[str, Any] = {
            "content": digest_json(made_of),
            "dataset": self.dataset.manifest.details["dataset"],
            "manifest": f"adapters/{version}/{arm.name}/manifest.json",
            **{f"parent {name}": digest for name, digest in self.parents.items()},
        }
        if self.dagster_run:
            tags["dagster_run_id"] = self.dagster_run
            tags["mlflow.note.content"] = _note(self.dagster_run, version, arm.name)
        parent = self._version_run()
        self.run_id = self.tracker.start_run(version, arm.name, tags, asked, parent)
        self._log_datasets()

    def _version_run(self) -> str:
        """The run of the version, under which MLflow shows those of its arms."""
        manifest = self.dataset.manifest
        tags = {
            "dataset": manifest.details["dataset"],
            "data_version": manifest.content_hash,
            "parent_versions": ", ".join(self.dataset.parents) or None,
            "records": manifest.counts.get("pool"),
        }
        return self.tracker.version_run(self.dataset.version, tags)

    def _log_datasets(self) -> None:
        version, details = self.dataset.version, self.dataset.manifest.details
        sets = (
            (self.dataset.pool, "pool", details["pool_hash"], "pool"),
            (self.records, f"{self.arm.name}/subset", digest_frame(self.records), "training"),
            (self.dataset.heldout, "heldout", details["heldout_hash"], "evaluation"),
        )
        for frame, name, digest, context in sets:
            where = f"datasets/{version}"
            texts = frame.drop("source_ids")
            self.tracker.log_dataset(
                self.run_id, texts, f"{version}/{name}", digest, context, where
            )

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        """Take one step's values; they are logged some at a time, while training goes on."""
        self._points.append((step, values))
        if len(self._points) >= POINTS_PER_CALL:
            self._flush()

    def _flush(self) -> None:
        names = {name for _, values in self._points for name in values}
        for name in sorted(names):
            series = [(step, values[name]) for step, values in self._points if name in values]
            self.tracker.log_series(self.run_id, name, series)
        self._points.clear()

    def trained(self, manifest: Manifest, log: TrainingLog) -> None:
        """Log the rest of the curve, the subset and the adapter."""
        self._flush()
        summary = {
            **{f"train_{name}": mean for name, mean in log.means.items() if mean is not None},
            "train_seconds": log.seconds,
            "records": float(log.records_used),
        }
        self.tracker.log_metrics(self.run_id, summary)
        self.tracker.set_tags(self.run_id, {"adapter": manifest.content_hash})
        subset = self.home.subset(self.dataset.version, self.arm.name)
        self.tracker.log_artifacts(self.run_id, subset, "subset")
        self.tracker.log_artifacts(self.run_id, self.folder, "adapter")
        version = self._register(manifest)
        self.tracker.end_run(self.run_id)
        note_tracked(
            self.folder,
            self.tracker,
            self.run_id,
            adapter=manifest.content_hash,
            model=model_link(self.tracker, self.registered, version),
            registered=self.registered,
            registered_version=str(version.version),
        )

    @property
    def registered(self) -> str:
        """The registered model that the adapter is a version of."""
        dataset = self.dataset.manifest.details["dataset"]
        return registered_name(self.tracker.experiment, dataset, self.arm.stage, self.model)

    def _register(self, manifest: Manifest) -> "ModelVersion":
        version, arm = self.dataset.version, self.arm.name
        model_id = log_adapter(self.tracker, self.run_id, self.folder, f"{version}-{arm}")
        tags = {"version": version, "arm": arm, "adapter": manifest.content_hash}
        return register(self.tracker, self.registered, model_id, tags, card_text(self.folder))

    def replay(self, manifest: Manifest, log: TrainingLog) -> None:
        """Log a training that was done before, from its log."""
        self.begin()
        for step, (loss, rate) in enumerate(zip(log.losses, log.learning_rates, strict=True)):
            self.on_step(step, {"loss": loss, "learning_rate": rate})
        self.trained(manifest, log)

    def failed(self) -> None:
        """Close the run as failed, with what was logged so far."""
        if self.run_id:
            self._flush()
            self.tracker.end_run(self.run_id, ok=False)


def _note(run: str, version: str, arm: str) -> str:
    """The description of an MLflow run: where Dagster shows what made it."""
    site = (os.environ.get(DAGSTER_VARIABLE) or DEFAULT_DAGSTER).rstrip("/")
    return f"Arm `{arm}` of `{version}`, made by [Dagster run {run[:8]}]({site}/runs/{run})."


def links_of(folder: Path, tracker: Tracker) -> dict[str, str]:
    """The pages of an adapter in MLflow by title, on the site the tracker has now."""
    known = tracked(folder)
    titles = {"MLflow": "link", "MLflow model": "model"}
    pages = {title: known[name] for title, name in titles.items() if name in known}
    return {title: f"{tracker.site}/#/{url.split('/#/', 1)[1]}" for title, url in pages.items()}


def publish_card(tracker: Tracker, folder: Path) -> None:
    """Put an adapter's rewritten model card to its run, logged model and registered version."""
    known = tracked(folder)
    tracker.log_artifacts(known["run_id"], folder / CARD, "adapter")
    if "registered" in known:
        log_card(tracker, known["registered"], known["registered_version"], folder)


def note_tracked(folder: Path, tracker: Tracker, run_id: str, **hashes: str) -> None:
    """Keep beside the adapter which MLflow run it is, and what of it is logged."""
    known = tracked(folder)
    kept = known if known.get("run_id") == run_id else {}
    fresh = {"run_id": run_id, "link": tracker.link(run_id), "server": tracker.uri or "home"}
    write_json(folder / TRACKED, {**kept, **fresh, **hashes})


def tracked(folder: Path) -> dict[str, str]:
    """What `note_tracked` kept beside an adapter; empty where nothing was tracked."""
    path = folder / TRACKED
    return read_json(path) if path.is_file() else {}


def is_tracked(tracker: Tracker, folder: Path, **hashes: str) -> bool:
    """Whether these artifacts are logged in the tracker's present store."""
    known = tracked(folder)
    same = all(known.get(name) == digest for name, digest in hashes.items())
    if not known or not same or known.get("server") != (tracker.uri or "home"):
        return False
    return tracker.exists(known["run_id"])
