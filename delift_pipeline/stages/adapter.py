"""The stage behind `adapter`: fine-tune the base model on an arm's subset."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from delift_pipeline.core.atomic import replace_folder
from delift_pipeline.core.errors import DeliftError
from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import Manifest, read_manifest, up_to_date
from delift_pipeline.core.progress import Progress
from delift_pipeline.lineage.adapter import write_trained_on
from delift_pipeline.lineage.card import CARD, write_card
from delift_pipeline.lineage.tracked import TrackedArm, is_tracked, links_of
from delift_pipeline.lineage.tracking import Tracker
from delift_pipeline.lineage.version import fallback_arm
from delift_pipeline.records.stored import DatasetVersion, load_version
from delift_pipeline.scoring.fingerprint import fingerprint_of
from delift_pipeline.scoring.options import ModelOptions, portable_name
from delift_pipeline.selection.run import SUBSET
from delift_pipeline.stages.arms import Arm
from delift_pipeline.stages.result import Result, known_records, required_manifest
from delift_pipeline.training.log import TrainingLog, read_training_log, weights_hash

CODE_VERSION = "1"


@dataclass(frozen=True)
class AdapterResult(Result):
    """A stored adapter.

    A reused adapter has the same bytes as when it was trained and checked.

    Attributes:
        template: The name of the prompt template that the records were written with.
        links: Addresses in MLflow by title.
    """

    log: TrainingLog
    template: str
    links: dict[str, str]


def make_adapter(
    home: Home,
    version: str,
    arm: Arm,
    model: ModelOptions,
    tracker: Tracker | None,
    progress: Progress,
    run_id: str | None = None,
) -> AdapterResult:
    """Fine-tune on the arm's subset, unless the stored adapter comes from the same inputs.

    A continual arm starts from an adapter of a parent version, if there is one.

    Raises:
        InputError: there is no subset yet, or none of its records fits the window.
        DeliftError: training failed.
    """
    dataset, folder = load_version(home, version), home.adapter(version, arm.name)
    subset = subset_manifest(home, version, arm.name)
    records = subset_records(home, dataset, arm.name)
    known, name = fingerprint_of(model), portable_name(model.model)
    fingerprint, template = known.digest, known.template
    start, start_parents = _parent_adapter(home, dataset, arm)
    parents = {
        f"subset:{version}:{arm.name}": subset.content_hash,
        "model": fingerprint,
        **start_parents,
    }
    settings = arm.model_dump(mode="json")
    request = {"training": arm.training.request, "seed": arm.seed, "dtype": model.dtype}
    run = None
    if tracker:
        about = (settings, records, parents, name, template, run_id)
        run = TrackedArm(tracker, home, dataset, arm.name, *about)
    stored = up_to_date(folder, request, parents, CODE_VERSION)
    manifest = stored if stored and _is_intact(folder, stored) else None
    reused = manifest is not None
    if manifest is None:
        from delift_pipeline.training.run import train, write_untrained

        checkpoints = folder.with_name(f".checkpoints-{folder.name}")
        with _track_run(run), replace_folder(folder) as temporary:
            if arm.traits.reference == "base":
                log = write_untrained(arm.training, model, arm.seed, temporary)
            else:
                resume = checkpoints if arm.training.checkpoint_every else None
                how = (arm.seed, temporary, start, progress, run and run.on_step, resume)
                log = train(arm.training, model, records, *how)
            artifact = f"adapter:{version}:{arm.name}"
            write_trained_on(temporary, artifact, records["record_id"], log.records_left_out, start)
            manifest = Manifest(
                kind="adapter",
                content_hash=weights_hash(temporary),
                parents=parents,
                fingerprint=fingerprint,
                counts={
                    "records": log.records_used,
                    "left_out": len(log.records_left_out),
                    "steps": log.steps,
                    "trainable_parameters": log.trainable_parameters,
                },
                details={
                    "method": log.method,
                    "started_from": next(iter(start_parents), None),
                    "template": template,
                },
                request=request,
                code_version=CODE_VERSION,
                run_id=run_id,
            )
            manifest.write(temporary)
            write_card(temporary, dataset, arm.name, settings, name, records, manifest, subset, log)
        shutil.rmtree(checkpoints, ignore_errors=True)
    log = read_training_log(folder)
    if run and not reused:
        run.log_trained_adapter(manifest, log)
    if not (folder / CARD).is_file():
        write_card(folder, dataset, arm.name, settings, name, records, manifest, subset, log)
    if run and not is_tracked(run.tracker, folder, adapter=manifest.content_hash):
        run.replay(manifest, log)
    links = links_of(folder, run.tracker) if run else {}
    return AdapterResult(home, folder, manifest, reused, log, template, links)


def subset_manifest(home: Home, version: str, arm: str) -> Manifest:
    """Return the manifest of an arm's subset.

    Raises:
        InputError: the subset is not materialised yet.
    """
    reason = f"{version} has no subset of {arm} yet. Materialise `subset` first"
    return required_manifest(home.subset(version, arm), reason, field="arm")


def subset_records(home: Home, dataset: DatasetVersion, arm: str) -> pl.DataFrame:
    """Return the subset's records (`RECORD_SCHEMA`) in rank order.

    A replayed record that the pool does not hold is read from the version that holds it.
    """
    ranked = pl.read_parquet(home.subset(dataset.version, arm) / SUBSET, columns=["record_id"])
    known = dataset.pool
    if not ranked["record_id"].is_in(known["record_id"].implode()).all():
        known = known_records(home, dataset)
    return ranked.join(known, on="record_id", how="left", maintain_order="left")


def _parent_adapter(
    home: Home, dataset: DatasetVersion, arm: Arm
) -> tuple[Path | None, dict[str, str]]:
    """Return the adapter that a continual arm starts from, and its entry in the lineage.

    It is the parent version's adapter of the same arm, else of its instruction-tuning arm.
    """
    if arm.stage != "continual" or arm.traits.reference == "base":
        return None, {}
    for parent in dataset.parents:
        for name in (arm.name, fallback_arm(arm.name)):
            manifest = read_manifest(home.adapter(parent, name))
            if manifest is not None and manifest.details["method"] == arm.training.method:
                parents = {f"adapter:{parent}:{name}": manifest.content_hash}
                return home.adapter(parent, name), parents
    return None, {}


@contextmanager
def _track_run(run: TrackedArm | None) -> Iterator[None]:
    """Begin an arm's run in MLflow, and mark it as failed if the work inside fails."""
    if run is not None:
        run.begin()
    try:
        yield
    except BaseException:
        if run is not None:
            run.mark_failed()
        raise


def _is_intact(folder: Path, stored: Manifest) -> bool:
    """Whether the stored weights have the bytes that the manifest was written for."""
    try:
        return weights_hash(folder) == stored.content_hash
    except DeliftError:
        return False
