"""An experiment's table as one self-contained page: tables, bars, and curves where it sweeps."""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from delift_pipeline.bench.contenders import RANDOM
from delift_pipeline.bench.experiments import Experiment
from delift_pipeline.bench.quality_table import Row, lower_is_better
from delift_pipeline.evaluation.pages import render
from delift_pipeline.formatting import number, with_error
from delift_pipeline.plots import Bar, Curve, bars, curves, svg
from delift_pipeline.selection.options import STAGES
from delift_pipeline.storage.atomic import write_text

PLACE = ("stage", "wrong_share", "mode", "budget")
VARIED = re.compile(r"-near-\d+$")
"""What tells contenders of one curve apart where pairs are swept."""
FLOPS = ("selection_flops", "training_flops")
SHORT_COMMIT = 10


def write_page(folder: Path, experiment: Experiment, table: Mapping[str, Any]) -> Path:
    """Write `<experiment>.html`; returns its path."""
    path = folder / f"{experiment.name}.html"
    write_text(path, experiment_page(experiment, table))
    return path


def experiment_page(experiment: Experiment, table: Mapping[str, Any]) -> str:
    """The page of a table as `quality.run_quality` returns it."""
    rows: list[Row] = table["rows"]
    return render(
        "experiment.html.j2",
        title=f"DELIFT experiment {experiment.name}",
        name=experiment.name,
        about=experiment.about,
        pools=max((row["n"] for row in rows), default=0),
        seeds=table["seeds"],
        notes=table["notes"],
        commits=[commit[:SHORT_COMMIT] for commit in table["commits_of_cells"]],
        curves=[*_curves(rows, experiment.across), *_prices(rows)],
        tables=[_table(place, list(group)) for place, group in _grouped(rows, PLACE)],
    )


def _grouped(
    rows: Iterable[Row], names: Sequence[str]
) -> Iterable[tuple[tuple[Any, ...], Iterable[Row]]]:
    """Rows with equal values of these names, stages in their usual order."""

    def key(row: Row) -> tuple[Any, ...]:
        return tuple(row[name] for name in names)

    order = {stage: number for number, stage in enumerate(STAGES)}
    ranked = sorted(rows, key=lambda row: (order.get(row["stage"], -1), *key(row)))
    return groupby(ranked, key=key)


def _table(place: tuple[Any, ...], rows: list[Row]) -> dict[str, Any]:
    """One stage, share of wrong answers, mode and budget: a row a contender, a column a metric."""
    stage, wrong, mode, budget = place
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    first = [row for row in rows if row["metric"] == metrics[0]]
    first.sort(key=lambda row: row["mean"], reverse=not lower_is_better(metrics[0]))
    of = {(row["selector"], row["metric"]): row for row in rows}
    return {
        "title": f"{_said(stage)}, {mode}, {wrong:.0%} wrong answers, budget {budget:.0%}",
        "metrics": [_said(metric) for metric in metrics],
        "rows": [_row(row, [of.get((row["selector"], name)) for name in metrics]) for row in first],
        "svg": svg(bars({"": [_bar(row) for row in first]}), _said(metrics[0])),
    }


def _row(row: Row, cells: Sequence[Row | None]) -> dict[str, Any]:
    return {
        "name": row["selector"],
        "records": number(row["records"], 0),
        "wrong": f"{row['wrong_in_subset']:.0%}",
        "pairs": number(row["pairs_per_record"], 1),
        "cells": [_cell(cell) for cell in cells],
    }


def _cell(row: Row | None) -> dict[str, str]:
    if row is None:
        return {"value": number(None), "gap": "", "style": "soft"}
    best = " *" if row["within_error_of_best"] else ""
    gap, error, verdict = row["diff_random"], row["diff_se"], row["random_verdict"]
    better = (verdict == "lower") == lower_is_better(row["metric"])
    style = "soft" if verdict in (None, "not resolved") else ("good" if better else "bad")
    said = "" if gap is None else with_error(gap, error, sign=True)
    return {"value": with_error(row["mean"], row["se"]) + best, "gap": said, "style": style}


def _bar(row: Row) -> Bar:
    kind = "reference" if row["selector"] == RANDOM else "plain"
    if row["selector"].startswith("delift_trusted"):
        kind = "chosen"
    text = with_error(row["mean"], row["se"])
    return Bar(row["selector"], row["mean"], row["se"], text, kind)


def _prices(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Score by operations of choosing and training, where these were counted."""
    plots = []
    for place, group in _grouped(rows, PLACE):
        of = {(row["selector"], row["metric"]): row for row in group}
        names = dict.fromkeys(name for name, metric in of if metric == FLOPS[0])
        total = {name: sum(of[name, metric]["mean"] for metric in FLOPS) for name in names}
        for metric in dict.fromkeys(metric for _, metric in of if metric.startswith("exact")):
            shown = [(of[name, metric], spent) for name, spent in total.items() if spent > 0]
            points = [
                Curve(row["selector"], [x], [row["mean"]], [row["se"]], "o") for row, x in shown
            ]
            title = f"{_said(place[0])}, {place[1]:.0%} wrong answers: {_said(metric)}"
            spent = "floating-point operations"
            drawn = svg(curves(points, spent, _said(metric), log_x=True), title)
            plots += [{"title": title, "svg": drawn}] if points else []
    return plots


def _curves(rows: Sequence[Row], across: str | None) -> list[dict[str, Any]]:
    """One plot a stage, share of wrong answers, mode and metric; the rest is swept over."""
    if across is None:
        return []
    rest = ("stage", "wrong_share", "mode", "metric", *(("budget",) if across != "budget" else ()))
    plots = []
    for place, group in _grouped(rows, rest):
        lines = sorted(group, key=lambda row: (VARIED.sub("", row["selector"]), row[across]))
        shown = []
        for name, line in groupby(lines, key=lambda row: VARIED.sub("", row["selector"])):
            points = list(line)
            x, y, errors = ([row[key] for row in points] for key in (across, "mean", "se"))
            shown.append(Curve(name, x, y, errors))
        metric = _said(place[3])
        title = f"{_said(place[0])}, {place[2]}, {place[1]:.0%} wrong answers: {metric}"
        plots.append({"title": title, "svg": svg(curves(shown, _said(across), metric), title)})
    return plots


def _said(name: str) -> str:
    return name.replace("_", " ")
