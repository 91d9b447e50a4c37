"""Further evaluations of an arm, in addition to its own held-out set.

One measures forgetting, on the held-out sets of all earlier versions. The other, in context, gives
the base model the nearest chosen records as demonstrations, without training.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from delift_pipeline.core.home import BASE_MODEL, Home
from delift_pipeline.core.manifest import Manifest, read_manifest
from delift_pipeline.core.progress import Progress
from delift_pipeline.evaluation.forgetting import Forgetting, Row, base_evaluation, evaluation_of
from delift_pipeline.evaluation.result import Evaluation, read_evaluation
from delift_pipeline.lineage.version import ancestors, fallback_arm
from delift_pipeline.records.stored import DatasetVersion, load_version
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.stages.adapter import subset_records
from delift_pipeline.stages.arms import Arm

EARLIER = "earlier.parquet"
"""A file in the report's folder: samples of records that only earlier versions hold out."""
IN_CONTEXT = "in_context"
"""The name of the in-context evaluation: on the page, and of its folder inside the report's."""


@dataclass(frozen=True)
class Subject:
    """An arm whose adapter is evaluated, with the base model.

    Attributes:
        model: The base model that the adapter was trained from.
        adapter: The adapter's manifest.
    """

    home: Home
    dataset: DatasetVersion
    arm: Arm
    model: ModelOptions
    fingerprint: str
    adapter: Manifest = field(repr=False)
    progress: Progress

    @property
    def folder(self) -> Path:
        """The adapter's folder."""
        return self.home.adapter(self.dataset.version, self.arm.name)

    def base_evaluation(self, version: DatasetVersion) -> Evaluation:
        """Evaluate the base model on a version's held-out set, or return the stored evaluation."""
        options, heldout = self.arm.evaluation, version.heldout
        subject = (self.home, version.version, self.model, self.fingerprint)
        return base_evaluation(*subject, heldout, options, self.progress)


def in_context_evaluation(
    subject: Subject, heldout: pl.DataFrame, stored: Path | None
) -> Evaluation | None:
    """Evaluate the base model with an arm's subset in context; None if the arm does not ask for it.

    `stored` is the folder of a report that is still valid; the evaluation is read from there.
    """
    options = subject.arm.evaluation
    if not options.in_context:
        return None
    if stored and (evaluation := read_evaluation(stored / IN_CONTEXT)):
        return evaluation
    from delift_pipeline.evaluation.engines import load_for_evaluation
    from delift_pipeline.evaluation.run import evaluate_in_context

    chosen = subset_records(subject.home, subject.dataset, subject.arm.name)
    loaded = load_for_evaluation(subject.model, None, options)
    return evaluate_in_context(loaded, chosen, heldout, options, subject.progress)


def earlier_versions(home: Home, dataset: DatasetVersion, arm: Arm) -> list[DatasetVersion]:
    """Return the earlier versions whose held-out sets measure a continual arm, oldest first."""
    if arm.stage != "continual":
        return []
    return [load_version(home, name) for name in reversed(ancestors(home, dataset))]


def samples_of_earlier(
    dataset: DatasetVersion,
    earlier: list[DatasetVersion],
    stored: Path | None,
    measure: Callable[[pl.DataFrame], Evaluation],
) -> pl.DataFrame | None:
    """Return samples on the records that only earlier versions hold out; None without such records.

    `stored` is the folder of a report that is still valid; the samples are read from there.
    """
    if not earlier:
        return None
    known = _unique_records([version.heldout for version in earlier])
    rest = known.join(dataset.heldout, on="record_id", how="anti", maintain_order="left")
    if rest.is_empty():
        return None
    if stored is not None and (stored / EARLIER).is_file():
        return pl.read_parquet(stored / EARLIER)
    return measure(rest).samples


def measure_forgetting(
    subject: Subject, earlier: list[DatasetVersion], own: Evaluation, rest: pl.DataFrame | None
) -> Forgetting | None:
    """Build the matrix of models and held-out sets of a continual arm; None in the other stages.

    The row of an earlier version comes from its report of the same arm, else of the
    instruction-tuning arm of the same selector. A version with neither has no row.
    """
    if not earlier:
        return None
    home, dataset, arm = subject.home, subject.dataset, subject.arm
    versions = [*earlier, dataset]
    base = [subject.base_evaluation(version).samples for version in versions]
    rows = [Row(BASE_MODEL, None, _cells(_unique_records(base), versions))]
    whole = {name: cell.counts["records"] for name, cell in rows[0].cells.items()}
    for version in earlier:
        for name in (arm.name, fallback_arm(arm.name)):
            folder = home.report(version.version, name)
            manifest, earlier_own = read_manifest(folder), read_evaluation(folder)
            if manifest and earlier_own and manifest.fingerprint == subject.fingerprint:
                path = folder / EARLIER
                more = [pl.read_parquet(path)] if path.is_file() else []
                known = {version.version, *ancestors(home, version)}
                sets = [one for one in versions if one.version in known]
                cells = _cells(_unique_records([earlier_own.samples, *more]), sets, whole)
                rows.append(Row(version.version, name, cells))
                break
    samples = own.samples if rest is None else _unique_records([own.samples, rest])
    rows.append(Row(dataset.version, arm.name, _cells(samples, versions, whole)))
    return Forgetting([version.version for version in versions], rows)


def _cells(
    samples: pl.DataFrame, sets: list[DatasetVersion], whole: dict[str, int] | None = None
) -> dict[str, Evaluation]:
    """Return the evaluation on each held-out set, without sets that are measured only in part.

    `whole` counts the records of each set that can be measured. None accepts any number.
    """
    evaluations = {one.version: evaluation_of(samples, one.heldout["record_id"]) for one in sets}
    return {
        name: cell
        for name, cell in evaluations.items()
        if cell and (whole is None or cell.counts["records"] == whole.get(name))
    }


def _unique_records(frames: list[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(frames, how="diagonal").unique("record_id", keep="first", maintain_order=True)
