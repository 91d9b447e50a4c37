"""What a continual arm's model still knows of every earlier version's held-out set."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from delift_pipeline.core.atomic import write_parquet
from delift_pipeline.core.hashing import digest_frame
from delift_pipeline.core.home import BASE_MODEL, Home
from delift_pipeline.core.manifest import read_manifest
from delift_pipeline.core.progress import Progress
from delift_pipeline.evaluation.base import base_evaluation
from delift_pipeline.evaluation.forgetting import Forgetting, Row, evaluation_of
from delift_pipeline.evaluation.result import Evaluation, read_evaluation
from delift_pipeline.lineage.existing import ancestors
from delift_pipeline.records.stored import DatasetVersion, load_version
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.stages.arms import Arm

EARLIER = "earlier.parquet"
"""Beside a report: samples of records that only earlier versions hold out."""

Measure = Callable[[pl.DataFrame], Evaluation]


@dataclass(frozen=True)
class Line:
    """The versions before a version, and what they hold out.

    Attributes:
        earlier: All versions it descends from, oldest first; empty outside the continual stage.
        rest: Their held-out records that the version does not hold out itself, each once.
    """

    earlier: tuple[DatasetVersion, ...] = ()
    rest: pl.DataFrame | None = field(default=None, repr=False)

    @property
    def parents(self) -> dict[str, str]:
        """Name of each earlier held-out set -> its digest, for the report's manifest."""
        return {f"heldout:{v.version}": digest_frame(v.heldout) for v in self.earlier}


def line_of(home: Home, dataset: DatasetVersion, arm: Arm) -> Line:
    """The versions whose held-out sets a continual arm's model is measured on as well."""
    if arm.stage != "continual":
        return Line()
    earlier = tuple(load_version(home, name) for name in reversed(ancestors(home, dataset)))
    known = pl.concat([version.heldout for version in earlier]).unique(
        "record_id", keep="first", maintain_order=True
    )
    rest = known.join(dataset.heldout, on="record_id", how="anti", maintain_order="left")
    return Line(earlier, rest)


def rest_samples(line: Line, stored: Path | None, measure: Measure) -> pl.DataFrame | None:
    """Samples on the records that only earlier versions hold out, measured where not stored."""
    if line.rest is None or line.rest.is_empty():
        return None
    if stored is not None and (stored / EARLIER).is_file():
        return pl.read_parquet(stored / EARLIER)
    return measure(line.rest).samples


def write_rest(folder: Path, samples: pl.DataFrame | None) -> None:
    """Keep those samples beside the report."""
    if samples is not None:
        write_parquet(folder / EARLIER, samples)


def forgetting_of(
    home: Home,
    dataset: DatasetVersion,
    arm: Arm,
    model: ModelOptions,
    fingerprint: str,
    line: Line,
    own: Evaluation,
    rest: pl.DataFrame | None,
    progress: Progress,
) -> Forgetting | None:
    """The matrix of a continual arm; None in the other stages.

    The rows of earlier versions are read from their reports of the same arm (of its
    instruction-tuning kin where a version has no continual one), where those are there.
    """
    if not line.earlier:
        return None
    versions = [*line.earlier, dataset]
    base = [
        base_evaluation(home, v.version, model, fingerprint, v.heldout, arm.evaluation, progress)
        for v in versions
    ]
    rows = [Row(BASE_MODEL, None, _cells(_united([one.samples for one in base]), versions))]
    whole = {name: cell.counts["records"] for name, cell in rows[0].cells.items()}
    for version in line.earlier:
        if found := _reported(home, version, arm, fingerprint):
            known = {version.version, *ancestors(home, version)}
            sets = [one for one in versions if one.version in known]
            name, samples = found
            rows.append(Row(version.version, name, _cells(samples, sets, whole)))
    samples = own.samples if rest is None else _united([own.samples, rest])
    rows.append(Row(dataset.version, arm.name, _cells(samples, versions, whole)))
    return Forgetting([version.version for version in versions], rows)


def _cells(
    samples: pl.DataFrame, sets: list[DatasetVersion], whole: dict[str, int] | None = None
) -> dict[str, Evaluation]:
    """The measurements on each held-out set, without those that only some records of are measured.

    Args:
        samples: All samples of a model.
        sets: The versions whose held-out sets are asked for.
        whole: Records of each set that can be measured; None takes what the samples have.
    """
    found = {one.version: evaluation_of(samples, one.heldout["record_id"]) for one in sets}
    return {
        name: cell
        for name, cell in found.items()
        if cell and (whole is None or cell.counts["records"] == whole.get(name))
    }


def _reported(
    home: Home, version: DatasetVersion, arm: Arm, fingerprint: str
) -> tuple[str, pl.DataFrame] | None:
    """The arm whose model an earlier version has, and all samples of its report."""
    for name in (arm.name, arm.kin):
        folder = home.report(version.version, name)
        manifest, own = read_manifest(folder), read_evaluation(folder)
        if manifest is not None and own is not None and manifest.fingerprint == fingerprint:
            rest = folder / EARLIER
            return name, _united(
                [own.samples, *([pl.read_parquet(rest)] if rest.is_file() else [])]
            )
    return None


def _united(samples: list[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(samples, how="diagonal").unique("record_id", keep="first", maintain_order=True)
