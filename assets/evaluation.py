"""Evaluation: every arm on the held-out set, and all of them in one table."""

from collections.abc import Mapping

import polars as pl

from assets.common import MODEL_RESOURCES, Step, asset_of
from assets.execution import GPU_POOL
from assets.outcome import PREVIEW_ROWS, Check, Facts, Outcome, load_plot, preview
from delift_pipeline.core.formatting import with_error
from delift_pipeline.core.home import BASE_MODEL
from delift_pipeline.core.plots import draw_bars, png
from delift_pipeline.evaluation.leaderboard import PAGE, Row
from delift_pipeline.evaluation.options import METRICS
from delift_pipeline.evaluation.report import Models, metric_bars
from delift_pipeline.evaluation.result import differences
from delift_pipeline.orchestration.jobs import on_any_report
from delift_pipeline.orchestration.partitions import version_and_arm
from delift_pipeline.stages.judge import judgement_facts
from delift_pipeline.stages.leaderboard import LeaderboardResult, make_leaderboard
from delift_pipeline.stages.report import ArmEvaluations, ReportResult, make_report

SAMPLE_COLUMNS = ("instruction", "input", "reference", "generated", "answer_loss")
BOARD_COLUMNS = ("version", "stage", "selector", "budget", "records", *METRICS)


@asset_of(
    make_report,
    version_and_arm,
    deps=["raw_dataset", "adapter"],
    group_name="evaluation",
    kinds={"pytorch", "huggingface", "mlflow"},
    pool=GPU_POOL,
    required_resource_keys=MODEL_RESOURCES | {"tracking", "judge"},
)
def eval_report(step: Step) -> Outcome:
    """The evaluation of an arm on the held-out set, with the base model and reference arms."""
    home, version, arm, model = step.home, step.version, step.arm, step.model
    tracker, progress = step.resources.tracking.tracker(home), step.progress
    result = make_report(home, version, arm, model, tracker, progress, step.run_id)
    setup = step.resources.judge.judge_setup(home)
    return report_outcome(result, judgement_facts(setup, version, arm.name, progress))


@asset_of(
    make_leaderboard,
    None,
    deps=["eval_report"],
    group_name="evaluation",
    kinds={"polars", "duckdb"},
    automation_condition=on_any_report,
)
def leaderboard(step: Step) -> Outcome:
    """All reports in one table: stage, selector, metrics, and differences from the random arm."""
    return leaderboard_outcome(make_leaderboard(step.home, step.run_id))


def report_outcome(result: ReportResult, judgement: Mapping[str, float | int]) -> Outcome:
    """Convert a report to what Dagster shows."""
    evaluations = result.evaluations
    own, forgotten = evaluations.own, evaluations.forgetting
    others = [(name, one.metrics, "plain") for name, one in evaluations.beside.items() if one]
    models = [(result.selector, own.metrics, "chosen"), *others]
    facts: Facts = {**own.metrics, **own.counts, **(forgotten.improvements() if forgotten else {})}
    facts["template"] = result.template
    if result.leader:
        facts["leader"] = result.leader
    tables = {"samples": preview(own.samples, SAMPLE_COLUMNS)}
    if forgotten:
        tables["forgetting"] = forgotten.frame().head(PREVIEW_ROWS)
    return Outcome.of(
        result,
        facts={**facts, **judgement},
        plots={"scores": load_plot(result.folder / "scores.png", lambda: _bars_png(models))},
        tables=tables,
        checks={
            "beats_base": _compare_answer_loss(evaluations, BASE_MODEL),
            "beats_random": _compare_answer_loss(evaluations, "random"),
        },
        links=result.links,
    )


def _compare_answer_loss(evaluations: ArmEvaluations, other: str) -> Check:
    reference = evaluations.beside.get(other)
    if reference is None:
        return Check(True, f"there is nothing to compare: {other} is not evaluated")
    gaps = differences(evaluations.own, reference)
    if "answer_loss" not in gaps:
        return Check(True, "there is nothing to compare: answer_loss is not among the metrics")
    gap = gaps["answer_loss"]
    return Check(
        gap.mean <= 0,
        f"answer loss minus {other}'s: "
        f"{with_error(gap.mean, gap.se, 4, sign=True, ascii_only=True)} ({gap.records} records)",
        {"difference": gap.mean, "standard_error": gap.se},
    )


def leaderboard_outcome(result: LeaderboardResult) -> Outcome:
    """Convert the leaderboard to what Dagster shows."""
    table = result.frame.select(BOARD_COLUMNS).with_columns(pl.col(pl.Float64).round(4))
    return Outcome.of(
        result,
        facts={**result.manifest.counts, "page": PAGE},
        plots=_newest_arms_plot(result.rows),
        tables={"leaderboard": table.head(PREVIEW_ROWS)},
    )


def _newest_arms_plot(rows: list[Row]) -> dict[str, bytes]:
    """Plot all arms of the version and stage in the table's last row."""
    if not rows:
        return {}
    version, stage = rows[-1]["version"], rows[-1]["stage"]
    arms = [row for row in rows if (row["version"], row["stage"]) == (version, stage)]
    models = [
        (row["arm"].split(".", 1)[-1], row["metrics"], "plain" if place else "chosen")
        for place, row in enumerate(arms)
    ]
    return {f"{version} {stage}": _bars_png(models)}


def _bars_png(models: Models) -> bytes:
    return png(draw_bars(metric_bars(models)))
