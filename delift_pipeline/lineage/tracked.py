"""Logging an arm to MLflow: one run with its datasets, curves, subset, adapter and metrics.

The adapter is a logged model of the run and a version of a registered model. A registered model
has all adapters for one dataset, stage and base model of a project: what one would deploy.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import polars as pl

from delift_pipeline.core.atomic import read_json, write_json
from delift_pipeline.core.hashing import digest_files, digest_frame, digest_json
from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import Manifest
from delift_pipeline.lineage.card import CARD, card_text
from delift_pipeline.lineage.tracking import PREFIX, Tracker, split_arm, tag_names
from delift_pipeline.lineage.tracking_store import store_lock
from delift_pipeline.records.stored import DatasetVersion
from delift_pipeline.training.log import TrainingLog

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

TRACKED = "tracking.json"
MODEL_TYPE = "adapter"
DIGEST = f"{PREFIX}digest"
# These files are about an adapter. They may change while the adapter stays the same.
_NOT_THE_MODEL = {CARD, TRACKED, "loss.png"}
POINTS_PER_CALL = 100
DAGSTER_VARIABLE = "DELIFT_DAGSTER_URL"
DEFAULT_DAGSTER = "http://127.0.0.1:3000"


@dataclass
class TrackedArm:
    """The MLflow run of one version's arm.

    Attributes:
        settings: The arm's settings in `arms.yaml`, as plain data.
        records: The subset, in rank order.
        parents: Name of each artifact the adapter is made of -> its hash.
        model: The base model's name, never a path.
        template: The name of the prompt template.
    """

    tracker: Tracker
    home: Home
    dataset: DatasetVersion
    arm: str
    settings: Mapping[str, Any]
    records: pl.DataFrame = field(repr=False)
    parents: Mapping[str, str]
    model: str
    template: str
    dagster_run: str | None = None
    run_id: str = ""
    _points: list[tuple[str, int, float]] = field(default_factory=list, repr=False)

    @property
    def folder(self) -> Path:
        """The adapter's folder."""
        return self.home.adapter(self.dataset.version, self.arm)

    def begin(self) -> None:
        """Start the run with parameters, tags that lead to the home, and datasets as inputs."""
        arm, version, manifest = self.arm, self.dataset.version, self.dataset.manifest
        details, dataset = manifest.details, {"dataset": manifest.details["dataset"]}
        logged = ("budget", "seed", "training", "evaluation")
        params = {key: self.settings[key] for key in logged} | {
            "version": version,
            "arm": arm,
            "model": self.model,
            "template": self.template,
            "selector": self.settings["options"],
        }
        content = {"parents": dict(self.parents)} | {k: params[k] for k in ("training", "seed")}
        tags = dataset | {f"parent {name}": digest for name, digest in self.parents.items()}
        tags["content"] = digest_json(content)
        tags["manifest"] = f"adapters/{version}/{arm}/manifest.json"
        if run := self.dagster_run:
            site = (os.environ.get(DAGSTER_VARIABLE) or DEFAULT_DAGSTER).rstrip("/")
            link = f"[Dagster run {run[:8]}]({site}/runs/{run})"
            tags["dagster_run_id"] = run
            tags["mlflow.note.content"] = f"Arm `{arm}` of `{version}`, made by {link}."
        above = dataset | {
            "data_version": manifest.content_hash,
            "parent_versions": ", ".join(self.dataset.parents) or None,
            "records": manifest.counts.get("pool"),
        }
        parent = self.tracker.run_of_version(version, above)
        self.run_id = self.tracker.start_run(version, arm, tags, params, parent)
        for frame, name, digest, context in (
            (self.dataset.pool, "pool", details["pool_hash"], "pool"),
            (self.records, f"{arm}/subset", digest_frame(self.records), "training"),
            (self.dataset.heldout, "heldout", details["heldout_hash"], "evaluation"),
        ):
            inputs = (frame.drop("source_ids"), f"{version}/{name}", digest, context)
            self.tracker.log_dataset(self.run_id, *inputs, f"datasets/{version}")

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        """Add one step's values. They are logged in batches while training continues."""
        self._points += [(name, step, value) for name, value in values.items()]
        if len(self._points) >= POINTS_PER_CALL:
            self._flush()

    def _flush(self) -> None:
        self.tracker.log_points(self.run_id, self._points)
        self._points.clear()

    def log_trained_adapter(self, manifest: Manifest, log: TrainingLog) -> None:
        """Log the rest of the curve, the subset and the adapter."""
        self._flush()
        tracker, run_id, folder = self.tracker, self.run_id, self.folder
        version, arm, adapter = self.dataset.version, self.arm, {"adapter": manifest.content_hash}
        means = {f"train_{name}": mean for name, mean in log.means.items() if mean is not None}
        sizes = {"train_seconds": log.seconds, "records": float(log.records_used)}
        tracker.log_metrics(run_id, means | sizes)
        tracker.set_tags(run_id, adapter)
        tracker.log_artifacts(run_id, self.home.subset(version, arm), "subset")
        tracker.log_artifacts(run_id, folder, "adapter")
        dataset = self.dataset.manifest.details["dataset"]
        name = registered_name(tracker.experiment, dataset, split_arm(arm)[0], self.model)
        model_id = log_adapter(tracker, run_id, folder, f"{version}-{arm}")
        tags = {"version": version, "arm": arm, **adapter}
        number = str(register(tracker, name, model_id, tags, card_text(folder)).version)
        tracker.end_run(run_id)
        page = f"{tracker.site}/#/models/{quote(name)}/versions/{number}"
        known = {"model": page, "registered": name, "registered_version": number}
        write_tracking_note(folder, tracker, run_id, **adapter, **known)

    def replay(self, manifest: Manifest, log: TrainingLog) -> None:
        """Log a training that has already finished, from its training log."""
        self.begin()
        for step, (loss, rate) in enumerate(zip(log.losses, log.learning_rates, strict=True)):
            self.on_step(step, {"loss": loss, "learning_rate": rate})
        self.log_trained_adapter(manifest, log)

    def mark_failed(self) -> None:
        """Close the run as failed, with what was logged so far."""
        if self.run_id:
            self._flush()
            self.tracker.end_run(self.run_id, ok=False)


def registered_name(project: str, dataset: str, stage: str, model: str) -> str:
    """Return the name of the registered model for a project's dataset, stage and base model.

    The project (the MLflow experiment) is part of the name, because a server has one registry for
    all projects. `/` and `:` are replaced, because MLflow refuses them.
    """
    return re.sub(r"[/:\\]+", "_", f"{project}-{dataset}-{stage}-on-{model}")


def log_adapter(tracker: Tracker, run_id: str, folder: Path, name: str) -> str:
    """Log an adapter's (or a whole model's) files as a logged model of the run; return its id.

    The same files under the same name are logged once. Characters of `name` that MLflow refuses
    become `_`.
    """
    from mlflow.entities import LoggedModelOutput

    files = [path for path in folder.rglob("*") if path.is_file()]
    digest = digest_files(folder, [path for path in files if path.name not in _NOT_THE_MODEL])
    name = re.sub(r"[/:.%\"']+", "_", name)
    query = f"name = '{name}' AND source_run_id = '{run_id}' AND tags.`{DIGEST}` = '{digest}'"
    with tracker.translate_errors():
        client = tracker.client
        for model in client.search_logged_models([tracker.experiment_id], query):
            if model.status == "READY":
                return model.model_id
        run = client.get_run(run_id).data
        tags = {key: tag for key, tag in run.tags.items() if key.startswith(PREFIX)}
        tags[DIGEST] = digest
        model = client.create_logged_model(
            tracker.experiment_id, name, run_id, tags, run.params, MODEL_TYPE
        )
        status = "FAILED"
        try:
            client.log_model_artifacts(model.model_id, str(folder))
            status = "READY"
        finally:
            client.finalize_logged_model(model.model_id, status)
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return model.model_id


def register(
    tracker: Tracker, name: str, model_id: str, tags: Mapping[str, Any], card: str
) -> "ModelVersion":
    """Add a logged model as a version of a registered model. An adapter has only one version.

    `tags` (`version`, `arm`, and `adapter`: the content hash) identify an adapter. The registered
    model is created if it does not exist. The model card becomes the version's description.
    """
    from mlflow.exceptions import MlflowException

    named = tag_names(tags)
    with tracker.translate_errors(), store_lock(tracker.home):
        try:
            tracker.client.create_registered_model(name, tags=tag_names({"kind": MODEL_TYPE}))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        for version in tracker.client.search_model_versions(f"name = '{name}'"):
            if named.items() <= version.tags.items():
                return version
        model = tracker.client.get_logged_model(model_id)
        source, run_id = model.artifact_location, model.source_run_id
        return tracker.client.create_model_version(
            name, source, run_id, named, description=card, model_id=model_id
        )


def links_of(folder: Path, tracker: Tracker) -> dict[str, str]:
    """Return the MLflow pages of an adapter by title, with the tracker's present address."""
    known = read_tracking_note(folder)
    titles = {"MLflow": "link", "MLflow model": "model"}
    pages = {title: known[name] for title, name in titles.items() if name in known}
    return {title: f"{tracker.site}/#/{url.split('/#/', 1)[1]}" for title, url in pages.items()}


def publish_card(tracker: Tracker, folder: Path) -> None:
    """Copy an adapter's new model card to its run, logged model and registered version."""
    known, client, text = read_tracking_note(folder), tracker.client, card_text(folder)
    tracker.log_artifacts(known["run_id"], folder / CARD, "adapter")
    if name := known.get("registered"):
        with tracker.translate_errors():
            model = client.update_model_version(name, known["registered_version"], text).model_id
            if model:
                client.log_model_artifact(model, str(folder / CARD))


def write_tracking_note(folder: Path, tracker: Tracker, run_id: str, **hashes: str) -> None:
    """Write into the adapter's folder which MLflow run it has and which artifacts are logged."""
    known = read_tracking_note(folder)
    earlier = known if known.get("run_id") == run_id else {}
    fresh = {"run_id": run_id, "link": tracker.link(run_id), "server": tracker.uri or "home"}
    write_json(folder / TRACKED, {**earlier, **fresh, **hashes})


def read_tracking_note(folder: Path) -> dict[str, str]:
    """Read what `write_tracking_note` wrote; return an empty dict if nothing was tracked."""
    path = folder / TRACKED
    return read_json(path) if path.is_file() else {}


def is_tracked(tracker: Tracker, folder: Path, **hashes: str) -> bool:
    """Whether artifacts with these hashes are logged in the tracker's present store."""
    known = read_tracking_note(folder)
    expected = {"server": tracker.uri or "home", **hashes}
    return bool(known) and expected.items() <= known.items() and tracker.exists(known["run_id"])
