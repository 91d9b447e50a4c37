"""One model's metrics on one held-out set, in memory and on disk, without torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import polars as pl

from delift_pipeline.core.atomic import read_json, write_json, write_parquet
from delift_pipeline.core.formatting import ABSENT, verdict_style, with_error
from delift_pipeline.core.hashing import digest_frame, digest_json
from delift_pipeline.evaluation.options import METRICS, EvaluationOptions, MetricName
from delift_pipeline.selection.options import Stage

REPORT, SAMPLES = "report.json", "samples.parquet"

SAMPLE_SCHEMA = pl.Schema(
    {
        "record_id": pl.String(),
        "instruction": pl.String(),
        "input": pl.String(),
        "reference": pl.String(),
        "generated": pl.String(),  # null if no metric needs generated answers
        **{name: pl.Float64() for name in METRICS},  # null if not requested
    }
)


@dataclass(frozen=True)
class Evaluation:
    """The measurements of one model on one held-out set.

    Attributes:
        metrics: Mean of each metric over the measured records, and its standard error as
            `<metric>_se` (sample standard deviation over the root of the count; 0 for one record).
        samples: One row for each measured record (`SAMPLE_SCHEMA`), in held-out order. A report of
            an earlier release lacks the columns of later metrics, which were not measured.
        counts: `heldout` (all records), `records` (measured), `unscorable` (the answer does not
            fit), `past_limit` (left out by `limit`), `unfinished` (generated answers that reached
            the longest length without an end-of-text token).
        details: `engine`, `max_new_tokens`, `cuts` and `unscorable` (record_id -> reason).
    """

    metrics: dict[str, float]
    samples: pl.DataFrame
    counts: dict[str, int]
    details: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def content_hash(self) -> str:
        """Digest of the metrics and samples, without times."""
        return digest_json([self.metrics, self.counts, digest_frame(self.samples)])

    def as_json(self) -> dict[str, Any]:
        """Return everything but the samples."""
        return {name: value for name, value in vars(self).items() if name != "samples"}


@dataclass(frozen=True)
class Difference:
    """A paired comparison of two models on the records both were measured on.

    Attributes:
        mean: Mean of our values minus theirs, in the metric's own units.
        se: Standard error of the mean over the records.
        improvement: The mean with a sign for which positive is better.
    """

    mean: float
    se: float
    improvement: float
    records: int


def difference_cell(gap: Difference | None, absent: str = ABSENT) -> dict[str, str]:
    """Return a difference for a page: its `text`, and the `style` that colours it."""
    if gap is None:
        return {"text": absent, "style": "soft"}
    style = verdict_style(gap.se, gap.improvement)
    return {"text": with_error(gap.mean, gap.se, sign=True), "style": style}


def metric_text(metrics: Mapping[str, float], name: str) -> str:
    """Return a metric's mean and standard error for a page."""
    return with_error(metrics.get(name), metrics.get(f"{name}_se"))


def summarise(samples: pl.DataFrame) -> dict[str, float]:
    """Return mean and standard error of every metric that was computed."""
    metrics: dict[str, float] = {}
    # Samples of earlier releases lack the columns of metrics that came later.
    for name in (name for name in METRICS if name in samples.columns):
        values = samples[name].drop_nulls()
        if values.len():
            metrics[name], metrics[f"{name}_se"] = mean_and_error(values)
    return metrics


def mean_and_error(values: pl.Series) -> tuple[float, float]:
    """Return mean and standard error; the error of a single value is 0."""
    # Polars sums chunk by chunk, and grouping can cut a series differently in every call.
    values = values.rechunk()
    deviation = cast(float | None, values.std()) or 0.0
    return float(cast(float, values.mean())), deviation / math.sqrt(values.len())


def differences(ours: Evaluation, theirs: Evaluation) -> dict[MetricName, Difference]:
    """Return each metric's paired difference; records are joined by `record_id`."""
    both = ours.samples.join(theirs.samples, on="record_id", suffix="_theirs")
    by_metric: dict[MetricName, Difference] = {}
    for name in (name for name in METRICS if f"{name}_theirs" in both.columns):
        gaps = (both[name] - both[f"{name}_theirs"]).drop_nulls()
        if gaps.len():
            mean, error = mean_and_error(gaps)
            improvement = METRICS[name].improvement(mean, 0.0)
            by_metric[name] = Difference(mean, error, improvement, gaps.len())
    return by_metric


def restrict_evaluation(evaluation: Evaluation, record_ids: pl.Series) -> Evaluation:
    """Return the measurements on some of the records, with new means and errors."""
    samples = evaluation.samples.filter(pl.col("record_id").is_in(record_ids.implode()))
    if samples.height == evaluation.samples.height:
        return evaluation
    counts = evaluation.counts | {"heldout": record_ids.len(), "records": samples.height}
    return replace(evaluation, metrics=summarise(samples), samples=samples, counts=counts)


def write_evaluation(folder: Path, evaluation: Evaluation, facts: Mapping[str, Any]) -> None:
    """Write `report.json` (the facts and everything but the samples) and `samples.parquet`."""
    write_json(folder / REPORT, dict(facts) | {"evaluation": evaluation.as_json()})
    write_parquet(folder / SAMPLES, evaluation.samples)


def read_evaluation(folder: Path) -> Evaluation | None:
    """Return the evaluation that is stored in a report's folder, or None."""
    if not ((folder / REPORT).is_file() and (folder / SAMPLES).is_file()):
        return None
    stored = read_json(folder / REPORT)["evaluation"]
    return Evaluation(samples=pl.read_parquet(folder / SAMPLES), **stored)


def stage_heldout(
    heldout: pl.DataFrame, target: pl.DataFrame | None, stage: Stage, options: EvaluationOptions
) -> pl.DataFrame:
    """Return the held-out records on which a stage is measured.

    The task-specific stage is measured on the tasks of the target set, if the held-out set has
    records of them and `options.target_tasks_only` is on. All other stages use the whole set.
    """
    if stage != "task_specific" or target is None or not options.target_tasks_only:
        return heldout
    tasks = target["task"].filter(target["task"] != "").unique()
    chosen = heldout.filter(pl.col("task").is_in(tasks.implode()))
    return heldout if chosen.is_empty() else chosen
