"""What is measured of an arm's model beside its own held-out set.

These are every earlier version's held-out set (what it still knows of them), and what the arm's
subset is worth untrained: the base model behind its nearest chosen records.
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
from delift_pipeline.lineage.version import ancestors, kin_of
from delift_pipeline.records.stored import DatasetVersion, load_version
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.stages.adapter import subset_records
from delift_pipeline.stages.arms import Arm

EARLIER = "earlier.parquet"
"""Beside a report: samples of records that only earlier versions hold out."""
IN_CONTEXT = "in_context"
"""The in-context evaluation: its folder inside the report's, and its name on the page."""


@dataclass(frozen=True)
class Subject:
    """An arm's adapter (its manifest), which is evaluated, and the base model it was made from."""

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
        """The base model's evaluation on a version's held-out set."""
        options, heldout = self.arm.evaluation, version.heldout
        known = (self.home, version.version, self.model, self.fingerprint)
        return base_evaluation(*known, heldout, options, self.progress)


def in_context_of(
    subject: Subject, heldout: pl.DataFrame, stored: Path | None
) -> Evaluation | None:
    """The in-context evaluation of an arm's subset; None where the arm does not ask for it.

    It is read from `stored`, the folder of a report that still holds, where there is one.
    """
    options = subject.arm.evaluation
    if not options.in_context:
        return None
    if stored and (found := read_evaluation(stored / IN_CONTEXT)):
        return found
    from delift_pipeline.evaluation.engines import load_trained
    from delift_pipeline.evaluation.run import evaluate_in_context

    chosen = subset_records(subject.home, subject.dataset, subject.arm.name)
    loaded = load_trained(subject.model, None, options)
    return evaluate_in_context(loaded, chosen, heldout, options, subject.progress)


def earlier_versions(home: Home, dataset: DatasetVersion, arm: Arm) -> list[DatasetVersion]:
    """The versions whose held-out sets a continual arm is measured on as well, oldest first."""
    if arm.stage != "continual":
        return []
    return [load_version(home, name) for name in reversed(ancestors(home, dataset))]


def earlier_samples(
    dataset: DatasetVersion,
    earlier: list[DatasetVersion],
    stored: Path | None,
    measure: Callable[[pl.DataFrame], Evaluation],
) -> pl.DataFrame | None:
    """Samples on the records that only earlier versions hold out; None where there are none.

    They are read from `stored`, the folder of a report that still holds, where there is one.
    """
    if not earlier:
        return None
    known = _each_once([version.heldout for version in earlier])
    rest = known.join(dataset.heldout, on="record_id", how="anti", maintain_order="left")
    if rest.is_empty():
        return None
    if stored is not None and (stored / EARLIER).is_file():
        return pl.read_parquet(stored / EARLIER)
    return measure(rest).samples


def forgetting_of(
    subject: Subject, earlier: list[DatasetVersion], own: Evaluation, rest: pl.DataFrame | None
) -> Forgetting | None:
    """The matrix of models and held-out sets of a continual arm; None in the other stages.

    The rows of earlier versions are read from their reports of the same arm (of its
    instruction-tuning kin where a version has no continual one), where those are there.
    """
    if not earlier:
        return None
    home, dataset, arm = subject.home, subject.dataset, subject.arm
    versions = [*earlier, dataset]
    base = [subject.base_evaluation(version).samples for version in versions]
    rows = [Row(BASE_MODEL, None, _cells(_each_once(base), versions))]
    whole = {name: cell.counts["records"] for name, cell in rows[0].cells.items()}
    for version in earlier:
        for name in (arm.name, kin_of(arm.name)):
            folder = home.report(version.version, name)
            manifest, found = read_manifest(folder), read_evaluation(folder)
            if manifest and found and manifest.fingerprint == subject.fingerprint:
                path = folder / EARLIER
                more = [pl.read_parquet(path)] if path.is_file() else []
                known = {version.version, *ancestors(home, version)}
                sets = [one for one in versions if one.version in known]
                cells = _cells(_each_once([found.samples, *more]), sets, whole)
                rows.append(Row(version.version, name, cells))
                break
    samples = own.samples if rest is None else _each_once([own.samples, rest])
    rows.append(Row(dataset.version, arm.name, _cells(samples, versions, whole)))
    return Forgetting([version.version for version in versions], rows)


def _cells(
    samples: pl.DataFrame, sets: list[DatasetVersion], whole: dict[str, int] | None = None
) -> dict[str, Evaluation]:
    """The measurements on each held-out set, without sets of which only a part is measured.

    `whole` has the records of each set that can be measured; None takes what the samples have.
    """
    found = {one.version: evaluation_of(samples, one.heldout["record_id"]) for one in sets}
    return {
        name: cell
        for name, cell in found.items()
        if cell and (whole is None or cell.counts["records"] == whole.get(name))
    }


def _each_once(frames: list[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(frames, how="diagonal").unique("record_id", keep="first", maintain_order=True)
