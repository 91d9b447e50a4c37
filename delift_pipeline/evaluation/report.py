"""One arm's report: `report.json`, `report.html` and `samples.parquet`.

`report.json` holds, beside `format` and `kind` (`arm`; `initial` for the base model's):

    version, arm, stage, selector, seed, budget, model, fingerprint
    subset      {size, pool, gain}: records chosen, records to choose from, the gains' sum or null
    asked       {training: {...}, evaluation: {...}, ...}: the options as asked for
    objective   what the selector says of its objective
    training    the training log without its curves, or null
    evaluation  {metrics, counts, details, seconds} of this arm
    beside      {initial, random, full: {metrics, differences} or null where not evaluated yet};
                differences: {metric: {mean, se, improvement, records}}, this arm minus the other
    lineage     name -> hash or id of what the arm was made of
    seconds     name -> wall time
    forgetting  null, or {heldout: [version, ...], rows: [{model, arm, metrics: {version: {...} or
                null}}], changes: {version: {metric: {mean, se, improvement, records}}}}: the models
                of a line of versions on the held-out sets of all of them, and this model minus the
                model of each earlier version (`evaluation.forgetting`)

The functions take plain data: they know neither Dagster nor MLflow.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from delift_pipeline.evaluation.forgetting import Forgetting
from delift_pipeline.evaluation.options import METRICS, MetricName
from delift_pipeline.evaluation.pages import ABSENT, number, render, signed, with_error
from delift_pipeline.evaluation.result import (
    Difference,
    Evaluation,
    differences,
    write_evaluation,
)
from delift_pipeline.evaluation.svg import Bar, bar_plot, line_plot
from delift_pipeline.storage.atomic import write_text
from delift_pipeline.training.log import TrainingLog

FORMAT = 1
PAGE = "report.html"
SAMPLES_SHOWN, TEXT_SHOWN = 20, 600
HEADLINE: tuple[MetricName, ...] = ("answer_loss", "exact_match")
CLEAR = 2.0
"""How many standard errors a difference must exceed to be called one."""


@dataclass(frozen=True)
class ArmReport:
    """Everything a report tells of one arm.

    Attributes:
        version: Dataset version.
        arm: Arm name, `stage.selector[-variant]`.
        stage: The arm's stage.
        selector: The arm's selector.
        seed: The arm's seed.
        budget: The budget as asked for.
        model: The model's name, a path never.
        fingerprint: The scoring fingerprint.
        pool: Records to choose from.
        subset: The chosen records in rank order: `record_id`, and `gain` where the selector has it.
        evaluation: This arm's evaluation.
        beside: Evaluations of the same version and stage by name (`initial`, `random`, `full`);
            None where there is none yet.
        asked: Options as asked for, by group.
        objective: What the selector says of its objective.
        training: The training log, or None.
        lineage: Hash or id of what the arm was made of, by name.
        seconds: Wall times by name.
        diagnostics: The subset beside its pool and beside random ones, by name.
        suspects: Suspected wrong records: trust, selected, text, and the neighbours that disagree,
            each with its text, the tokens of the record's answer and what they gain after it.
        balance: Pool against subset by group, as `selection.balance` gives it.
        forgetting: The models and held-out sets of earlier versions, or None.
    """

    version: str
    arm: str
    stage: str
    selector: str
    seed: int
    budget: float | int | str
    model: str
    fingerprint: str
    pool: int
    subset: pl.DataFrame
    evaluation: Evaluation
    beside: Mapping[str, Evaluation | None] = field(default_factory=dict)
    asked: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    objective: Mapping[str, Any] = field(default_factory=dict)
    training: TrainingLog | None = None
    lineage: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    diagnostics: Mapping[str, float | None] = field(default_factory=dict)
    suspects: list[dict[str, Any]] = field(default_factory=list)
    balance: list[dict[str, Any]] = field(default_factory=list)
    forgetting: Forgetting | None = None

    @property
    def gains(self) -> list[float]:
        """Marginal gains in rank order; empty where the selector has none."""
        if "gain" not in self.subset.columns:
            return []
        return [float(gain) for gain in self.subset["gain"].drop_nulls()]


def write_report(folder: Path, report: ArmReport) -> dict[str, Any]:
    """Write an arm's report into an existing folder.

    Returns:
        What `report.json` holds.
    """
    facts = report_facts(report)
    write_evaluation(folder, report.evaluation, facts)
    write_text(folder / PAGE, report_page(report))
    return facts | {"evaluation": report.evaluation.as_json()}


def report_facts(report: ArmReport) -> dict[str, Any]:
    """What `report.json` holds, but for the evaluation itself."""
    names = ("version", "arm", "stage", "selector", "seed", "budget", "model", "fingerprint")
    gains = report.gains
    return {
        "format": FORMAT,
        "kind": "arm",
        **{name: getattr(report, name) for name in names},
        "subset": {
            "size": report.subset.height,
            "pool": report.pool,
            "gain": sum(gains) if gains else None,
        },
        "asked": {group: dict(options) for group, options in report.asked.items()},
        "objective": dict(report.objective),
        "diagnostics": dict(report.diagnostics),
        "training": report.training.summary() if report.training else None,
        "beside": {
            name: None if other is None else _compared(report.evaluation, other)
            for name, other in report.beside.items()
        },
        "forgetting": report.forgetting.as_json() if report.forgetting else None,
        "lineage": dict(report.lineage),
        "seconds": dict(report.seconds),
    }


def report_page(report: ArmReport) -> str:
    """The report as one HTML page."""
    facts = report_facts(report)
    gaps = {
        name: differences(report.evaluation, other)
        for name, other in report.beside.items()
        if other is not None
    }
    losses = report.training.losses if report.training else []
    return render(
        "report.html.j2",
        title=f"{report.arm} on {report.version}",
        report=facts,
        counts=report.evaluation.counts,
        training=facts["training"],
        verdicts=_verdicts(gaps),
        columns=["this arm", *report.beside],
        difference_columns=list(gaps),
        metric_rows=[_metric_row(report, name, gaps) for name in _measured(report)],
        plots=[_metric_plot(report, name) for name in _measured(report)],
        gain_plot=line_plot(
            report.gains, "records chosen", "marginal gain", marked=_knee(report.objective)
        ),
        loss_plot=line_plot(losses, "step", "loss (nats per answer token)"),
        sample_rows=_sample_rows(report),
        diagnostics={k: v for k, v in report.diagnostics.items() if v is not None},
        suspects=report.suspects,
        balance=report.balance,
        heldout_sets=list(report.forgetting.heldout) if report.forgetting else [],
        forgetting=report.forgetting.sections(CLEAR) if report.forgetting else [],
    )


def _knee(objective: Mapping[str, Any]) -> tuple[int, str] | None:
    """Where the gain curve is marked."""
    knee = objective.get("knee")
    return None if knee is None else (int(knee), f"knee, {int(knee):,} records")


def _compared(ours: Evaluation, theirs: Evaluation) -> dict[str, Any]:
    gaps = differences(ours, theirs)
    return {
        "metrics": theirs.metrics,
        "differences": {name: asdict(difference) for name, difference in gaps.items()},
    }


def _measured(report: ArmReport) -> list[MetricName]:
    return [name for name in METRICS if name in report.evaluation.metrics]


def _verdicts(gaps: Mapping[str, Mapping[MetricName, Difference]]) -> list[dict[str, Any]]:
    """One line per other arm: better, worse or no clear difference, metric by metric."""
    return [
        {
            "other": other,
            "records": max(gap.records for gap in found.values()),
            "parts": [_verdict(name, found[name]) for name in HEADLINE if name in found],
        }
        for other, found in gaps.items()
        if found
    ]


def _verdict(name: MetricName, gap: Difference) -> dict[str, str]:
    how = "better" if gap.improvement > 0 else "worse"
    text = f"{number(abs(gap.mean))} ± {number(gap.se)} {how}"
    if not _clear(gap):
        text = f"no clear difference ({signed(gap.mean)} ± {number(gap.se)})"
    return {"text": f"{METRICS[name].title} {text}", "style": _style(gap)}


def _clear(gap: Difference) -> bool:
    return abs(gap.mean) > CLEAR * gap.se


def _style(gap: Difference) -> str:
    if not _clear(gap):
        return "soft"
    return "good" if gap.improvement > 0 else "bad"


def _metric_row(
    report: ArmReport, name: MetricName, gaps: Mapping[str, Mapping[MetricName, Difference]]
) -> dict[str, Any]:
    metric = METRICS[name]
    evaluations = [report.evaluation, *report.beside.values()]
    return {
        "title": metric.title,
        "better": metric.better,
        "meaning": metric.meaning,
        "cells": [_cell(evaluation, name) for evaluation in evaluations],
        "differences": [_difference_cell(found.get(name)) for found in gaps.values()],
    }


def _cell(evaluation: Evaluation | None, name: str) -> dict[str, Any]:
    if evaluation is None:
        return {"text": "not evaluated yet", "soft": True}
    metrics = evaluation.metrics
    return {"text": with_error(metrics.get(name), metrics.get(f"{name}_se")), "soft": False}


def _difference_cell(gap: Difference | None) -> dict[str, str]:
    if gap is None:
        return {"text": ABSENT, "style": "soft"}
    return {"text": f"{signed(gap.mean)} ± {number(gap.se)}", "style": _style(gap)}


def _metric_plot(report: ArmReport, name: MetricName) -> dict[str, Any]:
    shown = [("this arm", report.evaluation, "chosen")]
    shown += [(other, e, "plain") for other, e in report.beside.items() if e is not None]
    bars = [metric_bar(label, e.metrics, name, kind) for label, e, kind in shown]
    title = f"{METRICS[name].title}, {METRICS[name].better} is better"
    return {"title": title, "svg": bar_plot([bar for bar in bars if bar], title)}


def metric_bar(label: str, metrics: Mapping[str, float], name: str, kind: str) -> Bar | None:
    """A metric's bar with its standard error, or None where it was not measured."""
    value, error = metrics.get(name), metrics.get(f"{name}_se")
    if value is None:
        return None
    return Bar(label, value, error, with_error(value, error), kind)


def _sample_rows(report: ArmReport) -> list[dict[str, Any]]:
    """Evenly spaced samples with the base model's answer beside the arm's."""
    samples = report.evaluation.samples
    initial = report.beside.get("initial")
    base = {} if initial is None else dict(initial.samples.select("record_id", "generated").rows())
    count = min(SAMPLES_SHOWN, samples.height)
    chosen = [i * samples.height // count for i in range(count)]
    return [
        {
            "prompt": _shortened("\n".join(filter(None, (row["instruction"], row["input"])))),
            "reference": _shortened(row["reference"]),
            "base": _shortened(base.get(row["record_id"])),
            "generated": _shortened(row["generated"]),
            "exact": row.get("exact_match") == 1.0,
        }
        for row in samples[chosen].iter_rows(named=True)
    ]


def _shortened(text: str | None) -> str:
    if text is None:
        return ABSENT
    return text if len(text) <= TEXT_SHOWN else f"{text[:TEXT_SHOWN]} …"
