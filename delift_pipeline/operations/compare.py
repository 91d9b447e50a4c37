"""Compare arms: metrics, and paired differences with their standard errors."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import polars as pl

from delift_pipeline.core.errors import Fault, InputError
from delift_pipeline.core.home import Home, check_arm, check_version
from delift_pipeline.core.manifest import read_manifest
from delift_pipeline.evaluation.options import METRICS
from delift_pipeline.evaluation.result import Evaluation, differences, read_evaluation
from delift_pipeline.selection.run import SUBSET


@dataclass(frozen=True)
class Side:
    """One arm of a comparison.

    Attributes:
        name: `V/ARM`.
        metrics: Mean and `_se` of each metric.
        heldout: How many held-out records were measured.
        fingerprint: The base model's fingerprint.
        records: How many records its subset has; None if the subset is not stored.
        minus_first: Metric -> {mean, se, improvement, records}: this arm minus the first, paired
            over the held-out records of both; empty for the first.
        shared: How many records its subset shares with the first arm's; None if one is not stored.
    """

    name: str
    metrics: dict[str, float]
    heldout: int
    fingerprint: str | None
    records: int | None
    minus_first: dict[str, dict[str, float]]
    shared: int | None


@dataclass(frozen=True)
class Comparison:
    """The arms in their order (each is compared with the first), and notes on what is unfair."""

    arms: list[Side]
    notes: list[str]


def compare_arms(home: Home, arms: Sequence[tuple[str, str]]) -> Comparison:
    """Compare each evaluated arm (version, arm) with the first.

    Raises:
        InputError: there are fewer than two arms, one is named twice, or one is not evaluated.
    """
    faults = [] if len(arms) > 1 else [Fault("give at least two arms as V/ARM", field="ARM")]
    twice = sorted({f"{v}/{a}" for v, a in arms if list(arms).count((v, a)) > 1})
    faults += [Fault(f"{name} is named twice", field="ARM") for name in twice]
    measured: list[tuple[Evaluation, str | None]] = []
    for version, arm in arms:
        folder = home.report(check_version(version), check_arm(arm))
        evaluation, manifest = read_evaluation(folder), read_manifest(folder)
        if evaluation is None or manifest is None:
            run = f"delift run --version {version} --arm {arm}"
            reason = f"{version}/{arm} is not evaluated yet. Run `{run}`."
            faults.append(Fault(reason, field="ARM"))
        else:
            measured.append((evaluation, manifest.fingerprint))
    if faults:
        raise InputError(*faults)
    (reference, model), first = measured[0], _picks(home, *arms[0])
    sides, notes = [], []
    for (version, arm), (evaluation, fingerprint) in zip(arms, measured, strict=True):
        picks, others = _picks(home, version, arm), evaluation is not reference
        gaps = differences(evaluation, reference) if others else {}
        side = Side(
            name=f"{version}/{arm}",
            metrics=evaluation.metrics,
            heldout=evaluation.samples.height,
            fingerprint=fingerprint,
            records=None if picks is None else len(picks),
            minus_first={str(metric): asdict(gap) for metric, gap in gaps.items()},
            shared=None if picks is None or first is None or not others else len(picks & first),
        )
        sides.append(side)
        both = f"{side.name} and {sides[0].name}"
        if fingerprint != model:
            notes.append(f"{both} start from different base models")
        notes += _notes(both, evaluation, reference)
    return Comparison(sides, notes)


def _picks(home: Home, version: str, arm: str) -> set[str] | None:
    path = home.subset(version, arm) / SUBSET
    if not path.is_file():
        return None
    return set(pl.read_parquet(path, columns=["record_id"])["record_id"])


def _notes(both: str, evaluation: Evaluation, reference: Evaluation) -> Iterator[str]:
    """Yield notes on what makes two evaluations hard to compare."""
    paired = evaluation.samples.join(reference.samples, on="record_id", how="semi").height
    most = max(evaluation.samples.height, reference.samples.height)
    if paired < most:
        yield f"{both} share {paired} of {most} held-out records; only those are paired"
    absent = [m for m in METRICS if (m in evaluation.metrics) != (m in reference.metrics)]
    if absent:
        yield f"only one of {both} was measured by {', '.join(absent)}"
