"""The step behind `adapter`: the base model fine-tuned on an arm's subset."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from delift_pipeline.arms import Arm
from delift_pipeline.errors import DeliftError, Fault, Refused
from delift_pipeline.lineage.card import CARD, write_card
from delift_pipeline.lineage.existing import SUBSET_FILE, ancestors
from delift_pipeline.lineage.tracked import TrackedArm, is_tracked, links_of
from delift_pipeline.lineage.tracking import Tracker
from delift_pipeline.lineage.trained_on import write_trained_on
from delift_pipeline.plots import loss_curve_png
from delift_pipeline.progress import Progress
from delift_pipeline.records.stored import DatasetVersion, load_version
from delift_pipeline.scoring.fingerprint import fingerprint_of
from delift_pipeline.scoring.names import portable_name
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.steps.outcome import Check, Outcome, kept_plot
from delift_pipeline.storage.atomic import replacing_folder
from delift_pipeline.storage.home import Home
from delift_pipeline.storage.manifest import Manifest, read_manifest, up_to_date
from delift_pipeline.training.log import TrainingLog, read_training_log, weights_hash

CODE_VERSION = "1"
"""The selector whose adapter is the base model."""
FOUND_INTACT = Check(True, "found, byte for byte as it was checked when it was made")


@dataclass(frozen=True)
class Job:
    """One fine-tuning to be done or found.

    Attributes:
        dataset: The version.
        arm: The arm.
        model: The base model.
        fingerprint: The scoring fingerprint of the base model.
        records: The subset, in rank order.
        subset: The subset's manifest.
        start: The parent's adapter that training goes on from, or None for the base model.
        parents: Name of each artifact read -> its hash.
    """

    dataset: DatasetVersion
    arm: Arm
    model: ModelOptions
    fingerprint: str
    records: pl.DataFrame = field(repr=False)
    subset: Manifest = field(repr=False)
    start: Path | None
    parents: dict[str, str]

    @property
    def request(self) -> dict[str, Any]:
        """What is asked for, apart from the parents."""
        return {
            "training": self.arm.training.request,
            "seed": self.arm.seed,
            "dtype": self.model.dtype,
        }


def make_adapter(
    home: Home,
    version: str,
    arm: Arm,
    model: ModelOptions,
    tracker: Tracker | None,
    progress: Progress,
    run_id: str | None = None,
) -> Outcome:
    """Fine-tune on the arm's subset, unless the same was done on the same records.

    The continual arm goes on from its parent's adapter where there is one.

    Raises:
        Refused: there is no subset yet, or it holds no record that fits the window.
        DeliftError: training failed.
    """
    job = _job(home, version, arm, model)
    folder = home.adapter(version, arm.name)
    run = _tracked_arm(home, job, tracker, run_id) if tracker else None
    stored = _intact(folder, up_to_date(folder, job.request, job.parents, CODE_VERSION))
    manifest = stored or _train_tracked(home, job, run, progress, run_id)
    log = read_training_log(folder)
    if not (folder / CARD).is_file():
        _write_card(folder, job, manifest, log)
    if run and not is_tracked(run.tracker, folder, adapter=manifest.content_hash):
        run.replay(manifest, log)
    links = links_of(folder, run.tracker) if run else {}
    return _outcome(home, job, manifest, log, stored is not None, links)


def _job(home: Home, version: str, arm: Arm, model: ModelOptions) -> Job:
    dataset = load_version(home, version)
    subset = subset_manifest(home, version, arm.name)
    fingerprint = fingerprint_of(model).digest
    start, parents = _start(home, dataset, arm)
    return Job(
        dataset=dataset,
        arm=arm,
        model=model,
        fingerprint=fingerprint,
        records=subset_records(home, dataset, arm.name),
        subset=subset,
        start=start,
        parents={
            f"subset:{version}:{arm.name}": subset.content_hash,
            "model": fingerprint,
            **parents,
        },
    )


def subset_manifest(home: Home, version: str, arm: str) -> Manifest:
    """The manifest of an arm's subset.

    Raises:
        Refused: it is not materialised yet.
    """
    manifest = read_manifest(home.subset(version, arm))
    if manifest is None:
        raise Refused(
            Fault(f"{version} has no subset of {arm} yet: materialise `subset` first", field="arm")
        )
    return manifest


def subset_records(home: Home, dataset: DatasetVersion, arm: str) -> pl.DataFrame:
    """The subset's records (`RECORD_SCHEMA`) in rank order.

    A record that is replayed and no longer in the pool is taken from the version it came with.
    """
    ranked = pl.read_parquet(home.subset(dataset.version, arm) / SUBSET_FILE, columns=["record_id"])
    known = dataset.pool
    if not ranked["record_id"].is_in(known["record_id"].implode()).all():
        older = [load_version(home, name).pool for name in ancestors(home, dataset)]
        known = pl.concat([known, *older]).unique("record_id", keep="first")
    return ranked.join(known, on="record_id", how="left", maintain_order="left")


def _start(home: Home, dataset: DatasetVersion, arm: Arm) -> tuple[Path | None, dict[str, str]]:
    """The parent's adapter that a continual arm goes on from: its own, else its kin's."""
    if arm.stage != "continual" or arm.traits.reference == "base":
        return None, {}
    for parent in dataset.parents:
        for name in (arm.name, arm.kin):
            manifest = read_manifest(home.adapter(parent, name))
            if manifest is not None and manifest.details["method"] == arm.training.method:
                parents = {f"adapter:{parent}:{name}": manifest.content_hash}
                return home.adapter(parent, name), parents
    return None, {}


def _tracked_arm(home: Home, job: Job, tracker: Tracker, run_id: str | None) -> TrackedArm:
    return TrackedArm(
        tracker=tracker,
        home=home,
        dataset=job.dataset,
        arm=job.arm.name,
        settings=job.arm.model_dump(mode="json"),
        records=job.records,
        parents=job.parents,
        model=portable_name(job.model.model),
        dagster_run=run_id,
    )


def _train_tracked(
    home: Home, job: Job, run: TrackedArm | None, progress: Progress, run_id: str | None
) -> Manifest:
    """Train, with the curve going to MLflow meanwhile; a failure closes its run as failed."""
    if run is None:
        return _train(home, job, progress, run_id, None)
    run.begin()
    try:
        manifest = _train(home, job, progress, run_id, run.on_step)
    except BaseException:
        run.failed()
        raise
    run.trained(manifest, read_training_log(run.folder))
    return manifest


def _train(
    home: Home,
    job: Job,
    progress: Progress,
    run_id: str | None,
    on_step: Callable[[int, Mapping[str, float]], None] | None,
) -> Manifest:
    from delift_pipeline.training.run import train, untrained

    folder = home.adapter(job.dataset.version, job.arm.name)
    checkpoints = folder.with_name(f".checkpoints-{folder.name}")
    with replacing_folder(folder) as temporary:
        if job.arm.traits.reference == "base":
            log = untrained(job.arm.training, job.model, job.arm.seed, temporary)
        else:
            log = train(
                job.arm.training,
                job.model,
                job.records,
                job.arm.seed,
                temporary,
                start=job.start,
                progress=progress,
                on_step=on_step,
                checkpoints=checkpoints if job.arm.training.checkpoint_every else None,
            )
        name = f"adapter:{job.dataset.version}:{job.arm.name}"
        ranking = job.records["record_id"]
        write_trained_on(temporary, name, ranking, log.records_left_out, job.start)
        manifest = Manifest(
            kind="adapter",
            content_hash=weights_hash(temporary),
            parents=job.parents,
            fingerprint=job.fingerprint,
            counts={
                "records": log.records_used,
                "left_out": len(log.records_left_out),
                "steps": log.steps,
                "trainable_parameters": log.trainable_parameters,
            },
            details={
                "method": log.method,
                "started_from": next((p for p in job.parents if p.startswith("adapter:")), None),
            },
            request=job.request,
            code_version=CODE_VERSION,
            run_id=run_id,
        )
        manifest.write(temporary)
        _write_card(temporary, job, manifest, log)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return manifest


def _write_card(folder: Path, job: Job, manifest: Manifest, log: TrainingLog) -> None:
    model = portable_name(job.model.model)
    arm = job.arm
    settings = arm.model_dump(mode="json")
    write_card(
        folder, job.dataset, arm.name, settings, model, job.records, manifest, job.subset, log
    )


def _outcome(
    home: Home,
    job: Job,
    manifest: Manifest,
    log: TrainingLog,
    reused: bool,
    links: dict[str, str],
) -> Outcome:
    folder = home.adapter(job.dataset.version, job.arm.name)
    left_out = pl.DataFrame(
        list(log.records_left_out.items()), schema=["record_id", "why"], orient="row"
    )
    return Outcome(
        manifest=manifest,
        path=folder.relative_to(home.root).as_posix(),
        reused=reused,
        facts={
            **manifest.counts,
            "method": log.method,
            **{name: mean for name, mean in log.means.items() if mean is not None},
            "training_seconds": log.seconds,
            "started_from": manifest.details["started_from"] or "the base model",
        },
        plots={"loss": kept_plot(folder / "loss.png", lambda: loss_curve_png(log.losses))},
        tables={"records left out": left_out.head(20)},
        checks={
            "loads": FOUND_INTACT if reused else _loads(folder),
            "loss_fell": Check(
                log.loss_fell,
                f"loss per answer token {log.first_loss:.3f} -> {log.last_loss:.3f} nats"
                if log.losses
                else "nothing was trained: this is the base model",
            ),
        },
        links=links,
    )


def _intact(folder: Path, stored: Manifest | None) -> Manifest | None:
    """The stored manifest, if the weights are byte for byte those that were checked when made."""
    try:
        return stored if stored and weights_hash(folder) == stored.content_hash else None
    except DeliftError:
        return None


def _loads(folder: Path) -> Check:
    """Whether every weight can be read and is finite."""
    import torch
    from safetensors import SafetensorError, safe_open

    weights = 0
    try:
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - no mapping
                    weights += 1
                    if not torch.isfinite(file.get_tensor(name)).all():
                        return Check(False, f"{name} in {path.name} is not finite")
    except (OSError, SafetensorError, DeliftError) as error:
        return Check(False, f"the weights cannot be read: {error}")
    return Check(weights > 0, f"{weights} weight tensors, all finite", {"tensors": weights})
