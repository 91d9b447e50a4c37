"""What an evaluation leaves outside its report: the model card, the MLflow run, the champion."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import Manifest
from delift_pipeline.evaluation.result import Evaluation, differences
from delift_pipeline.lineage.card import write_card
from delift_pipeline.lineage.promotion import settle
from delift_pipeline.lineage.tracked import is_tracked, note_tracked, publish_card, tracked
from delift_pipeline.lineage.tracking import Tracker
from delift_pipeline.records.stored import DatasetVersion
from delift_pipeline.stages.adapter import subset_manifest, subset_records
from delift_pipeline.stages.arms import Arm, load_arms
from delift_pipeline.training.log import read_training_log


@dataclass(frozen=True)
class Evaluated:
    """An adapter that was measured.

    Attributes:
        home: The home.
        dataset: The version.
        arm: The arm.
        model: The base model's name, never a path.
        adapter: The adapter's manifest.
        report: The report's manifest.
        own: What was measured.
        beside: The evaluations it is compared with, by name.
    """

    home: Home
    dataset: DatasetVersion
    arm: Arm
    model: str
    adapter: Manifest
    report: Manifest
    own: Evaluation = field(repr=False)
    beside: Mapping[str, Evaluation | None] = field(repr=False)

    @property
    def folder(self) -> Path:
        """The adapter's folder."""
        return self.home.adapter(self.dataset.version, self.arm.name)


def refresh_card(one: Evaluated) -> Path:
    """Write the adapter's model card anew, with what was measured."""
    version, arm = one.dataset.version, one.arm
    return write_card(
        one.folder,
        one.dataset,
        arm.name,
        arm.model_dump(mode="json"),
        one.model,
        subset_records(one.home, one.dataset, arm.name),
        one.adapter,
        subset_manifest(one.home, version, arm.name),
        read_training_log(one.folder),
        one.own,
        one.beside,
    )


def track_report(one: Evaluated, tracker: Tracker) -> str | None:
    """Log metrics, differences, report and card into the arm's MLflow run, and settle who leads.

    Returns:
        One sentence on who is champion; None where nothing was left to log.

    Raises:
        DeliftError: MLflow cannot be used.
    """
    known = tracked(one.folder)
    hashes = {"adapter": one.adapter.content_hash, "report": one.report.content_hash}
    if not known or is_tracked(tracker, one.folder, **hashes):
        return None
    run, stage = known["run_id"], one.arm.stage
    metrics = dict(one.own.metrics)
    for name, other in one.beside.items():
        if other is not None:
            gaps = differences(one.own, other)
            metrics |= {f"{key}_minus_{name}": gap.mean for key, gap in gaps.items()}
    tracker.log_metrics(run, metrics)
    tracker.log_artifacts(run, one.home.report(one.dataset.version, one.arm.name), "report")
    publish_card(tracker, one.folder)
    tracker.set_tags(run, {"report": one.report.content_hash})
    arms = {arm.name: arm.evaluation for arm in load_arms(one.home) if arm.stage == stage}
    leader = settle(one.home, tracker, one.dataset, stage, one.model, arms)
    tracker.end_run(run)
    note_tracked(one.folder, tracker, run, **hashes)
    return leader
