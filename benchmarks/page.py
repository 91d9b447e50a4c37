"""Write an experiment's table as a self-contained page, and as Markdown for documents."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.contenders import RANDOM
from benchmarks.experiments import Experiment
from delift_pipeline.bench.table import COMPARED_WITH, Row, difference_text, lower_is_better
from delift_pipeline.core.atomic import write_text
from delift_pipeline.core.formatting import number, with_error
from delift_pipeline.core.plots import Bar, Curve, draw_bars, draw_curves, svg
from delift_pipeline.evaluation.report import render
from delift_pipeline.selection.options import STAGES

TABLE_COLUMNS = ("stage", "wrong_share", "mode", "budget")
FLOPS = ("selection_flops", "training_flops")
SHORT_COMMIT = 10


def write_page(folder: Path, experiment: Experiment, table: Mapping[str, Any]) -> Path:
    """Write `<experiment>.html`, and return its path."""
    path = folder / f"{experiment.name}.html"
    write_text(path, experiment_page(experiment, table))
    return path


def experiment_page(experiment: Experiment, table: Mapping[str, Any]) -> str:
    """Return the page of a table from `quality.run_quality`."""
    rows: list[Row] = table["rows"]
    return render(
        "experiment.html.j2",
        Path(__file__).parent,
        title=f"DELIFT experiment {experiment.name}",
        name=experiment.name,
        about=experiment.about,
        pools=max((row["n"] for row in rows), default=0),
        seeds=table["seeds"],
        notes=table["notes"],
        commits=[commit[:SHORT_COMMIT] for commit in table["commits_of_cells"]],
        curves=[*_curves(rows, experiment.across), *_cost_plots(rows)],
        tables=[_table(place, group) for place, group in _group_rows(rows, TABLE_COLUMNS)],
    )


def _group_rows(
    rows: Iterable[Row], names: Sequence[str]
) -> Iterator[tuple[tuple[Any, ...], list[Row]]]:
    """Yield groups of rows with equal values in these columns, stages in their usual order."""

    def key(row: Row) -> tuple[Any, ...]:
        return tuple(row[name] for name in names)

    order = {stage: number for number, stage in enumerate(STAGES)}
    ranked = sorted(rows, key=lambda row: (order.get(row["stage"], -1), *key(row)))
    for place, group in groupby(ranked, key=key):
        yield place, list(group)


def _table(place: tuple[Any, ...], rows: list[Row]) -> dict[str, Any]:
    """Return the table of one group: a row for each contender, a column for each metric."""
    stage, wrong, mode, budget = place
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    first = [row for row in rows if row["metric"] == metrics[0]]
    first.sort(key=lambda row: row["mean"], reverse=not lower_is_better(metrics[0]))
    by_name = {(row["selector"], row["metric"]): row for row in rows}
    return {
        "title": f"{_words(stage)}, {mode}, {wrong:.0%} wrong answers, budget {budget:.0%}",
        "metrics": [_words(metric) for metric in metrics],
        "rows": [
            {
                "name": row["selector"],
                "records": number(row["records"], 0),
                "wrong": f"{row['wrong_in_subset']:.0%}",
                "pairs": number(row["pairs_per_record"], 1),
                "cells": [_cell(by_name.get((row["selector"], name))) for name in metrics],
            }
            for row in first
        ],
        "svg": svg(draw_bars({"": [_bar(row) for row in first]}), _words(metrics[0])),
    }


def _cell(row: Row | None) -> dict[str, str]:
    if row is None:
        return {"value": number(None), "gap": "", "style": "soft"}
    best = " *" if row["within_error_of_best"] else ""
    gap, error, verdict = row["diff_random"], row["diff_se"], row["random_verdict"]
    better = (verdict == "lower") == lower_is_better(row["metric"])
    style = "soft" if verdict in (None, "not resolved") else ("good" if better else "bad")
    gap_text = "" if gap is None else with_error(gap, error, sign=True)
    return {"value": with_error(row["mean"], row["se"]) + best, "gap": gap_text, "style": style}


def _bar(row: Row) -> Bar:
    kind = "reference" if row["selector"] == RANDOM else "plain"
    if row["selector"].startswith("delift_trusted"):
        kind = "chosen"
    return Bar(row["selector"], row["mean"], row["se"], with_error(row["mean"], row["se"]), kind)


def _cost_plots(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Plot scores by the operations of selection and training, if these were counted."""
    plots, axis = [], "floating-point operations"
    for place, group in _group_rows(rows, TABLE_COLUMNS):
        by_name = {(row["selector"], row["metric"]): row for row in group}
        names = dict.fromkeys(name for name, metric in by_name if metric == FLOPS[0])
        total = {name: sum(by_name[name, metric]["mean"] for metric in FLOPS) for name in names}
        for metric in dict.fromkeys(metric for _, metric in by_name if metric.startswith("exact")):
            costs = [(by_name[name, metric], flops) for name, flops in total.items() if flops > 0]
            points = [
                Curve(row["selector"], [x], [row["mean"]], [row["se"]], "o") for row, x in costs
            ]
            if points:
                title = f"{_words(place[0])}, {place[1]:.0%} wrong answers: {_words(metric)}"
                figure = draw_curves(points, axis, _words(metric), log_x=True)
                plots.append({"title": title, "svg": svg(figure, f"{_words(metric)} by {axis}")})
    return plots


def _curves(rows: Sequence[Row], across: str | None) -> list[dict[str, Any]]:
    """Return a plot for each stage, share of wrong answers, mode and metric, over `across`."""
    if across is None:
        return []
    rest = ("stage", "wrong_share", "mode", "metric", *(("budget",) if across != "budget" else ()))
    plots = []
    for place, group in _group_rows(rows, rest):
        lines: dict[str, list[Row]] = {}
        for row in sorted(group, key=lambda row: (_curve_name(row), row[across])):
            lines.setdefault(_curve_name(row), []).append(row)
        plotted = [
            Curve(
                name,
                [row[across] for row in line],
                [row["mean"] for row in line],
                [row["se"] for row in line],
            )
            for name, line in lines.items()
        ]
        metric = _words(place[3])
        title = f"{_words(place[0])}, {place[2]}, {place[1]:.0%} wrong answers: {metric}"
        plots.append(
            {"title": title, "svg": svg(draw_curves(plotted, _words(across), metric), title)}
        )
    return plots


def _curve_name(row: Row) -> str:
    """Return the name of a row's curve; contenders that differ only in a number share it."""
    return re.sub(r"-near-\d+$", "", row["selector"])


def _words(name: str) -> str:
    return name.replace("_", " ")


def markdown_tables(table: Mapping[str, Any], metrics: Sequence[str] = ()) -> str:
    """Return a Markdown table for each stage, mode, share of wrong answers and metric.

    Args:
        table: A table from `quality.run_quality`.
        metrics: Prefixes of the metrics to include; all by default.
    """
    rows = [row for row in table["rows"] if not metrics or row["metric"].startswith(tuple(metrics))]
    place = ("stage", "mode", "wrong_share", "metric")
    ranked = sorted(rows, key=lambda row: tuple(row[name] for name in place))
    parts = [
        _markdown(list(group))
        for _, group in groupby(ranked, key=lambda row: tuple(row[name] for name in place))
    ]
    commits = ", ".join(table["commits_of_cells"])
    seeds = ", ".join(str(seed) for seed in table["seeds"])
    return "\n\n".join([f"Pools {seeds}; commit {commits}.", *table["notes"], *parts]) + "\n"


def _markdown(rows: list[Row]) -> str:
    others = [
        short for short in COMPARED_WITH if any(row[f"diff_{short}"] is not None for row in rows)
    ]
    heads = ["budget", "contender", "mean", *(f"minus {COMPARED_WITH[short]}" for short in others)]
    lines = [[*heads, "wrong", "pairs a record"], ["---"] * (len(heads) + 2)]
    lines += [
        [
            f"{row['budget']:.0%}",
            row["selector"] + (" *" if row["within_error_of_best"] else ""),
            with_error(row["mean"], row["se"], ascii_only=True),
            *(difference_text(row, short, " (not resolved)") for short in others),
            f"{row['wrong_in_subset']:.0%}",
            f"{row['pairs_per_record']:.1f}",
        ]
        for row in sorted(rows, key=lambda row: row["budget"])
    ]
    one = rows[0]
    title = (
        f"{one['stage']}, {one['mode']}, {one['wrong_share']:.0%} wrong answers: {one['metric']}"
    )
    return "\n".join([f"**{title}**", "", *(f"| {' | '.join(cells)} |" for cells in lines)])
