"""Record an evaluation outside its report: in the model card, in MLflow, and in the champion."""

from collections.abc import Mapping

from delift_pipeline.core.manifest import Manifest
from delift_pipeline.evaluation.result import Evaluation, differences
from delift_pipeline.lineage.card import write_card
from delift_pipeline.lineage.promotion import update_champion
from delift_pipeline.lineage.tracked import (
    is_tracked,
    publish_card,
    read_tracking_note,
    write_tracking_note,
)
from delift_pipeline.lineage.tracking import Tracker
from delift_pipeline.scoring.options import portable_name
from delift_pipeline.stages.adapter import subset_manifest, subset_records
from delift_pipeline.stages.arms import load_arms
from delift_pipeline.stages.extra_evaluations import Subject
from delift_pipeline.training.log import read_training_log

Beside = Mapping[str, Evaluation | None]


def refresh_card(subject: Subject, own: Evaluation, beside: Beside) -> None:
    """Write the adapter's model card again, with the results of the evaluation."""
    home, dataset, arm, folder = subject.home, subject.dataset, subject.arm, subject.folder
    records = subset_records(home, dataset, arm.name)
    subset, log = subset_manifest(home, dataset.version, arm.name), read_training_log(folder)
    about = (dataset, arm.name, arm.model_dump(mode="json"), portable_name(subject.model.model))
    write_card(folder, *about, records, subject.adapter, subset, log, own, beside)


def track_report(
    subject: Subject, report: Manifest, own: Evaluation, beside: Beside, tracker: Tracker
) -> str | None:
    """Log metrics, differences, report and card to the arm's MLflow run, and update the champion.

    Returns:
        One sentence on who is champion. None if all of this was logged before.

    Raises:
        DeliftError: MLflow cannot be used.
    """
    home, dataset, stage = subject.home, subject.dataset, subject.arm.stage
    known = read_tracking_note(subject.folder)
    hashes = {"adapter": subject.adapter.content_hash, "report": report.content_hash}
    if not known or is_tracked(tracker, subject.folder, **hashes):
        return None
    run = known["run_id"]
    metrics = dict(own.metrics)
    for name, other in beside.items():
        if other is not None:
            gaps = differences(own, other)
            metrics |= {f"{key}_minus_{name}": gap.mean for key, gap in gaps.items()}
    tracker.log_metrics(run, metrics)
    tracker.log_artifacts(run, home.report(dataset.version, subject.arm.name), "report")
    publish_card(tracker, subject.folder)
    tracker.set_tags(run, {"report": report.content_hash})
    arms = {arm.name: arm.evaluation for arm in load_arms(home) if arm.stage == stage}
    leader = update_champion(
        home, tracker, dataset, stage, portable_name(subject.model.model), arms
    )
    tracker.end_run(run)
    write_tracking_note(subject.folder, tracker, run, **hashes)
    return leader
