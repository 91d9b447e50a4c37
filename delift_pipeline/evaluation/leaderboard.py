"""Collect all stored reports in one table: as rows, Parquet, a page, and for the terminal."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from delift_pipeline.core.atomic import read_json, write_parquet, write_text
from delift_pipeline.core.formatting import number
from delift_pipeline.core.home import BASE_MODEL, Home
from delift_pipeline.evaluation.options import METRICS, MetricName
from delift_pipeline.evaluation.report import metric_plots, render
from delift_pipeline.evaluation.result import (
    REPORT,
    Difference,
    Evaluation,
    difference_cell,
    differences,
    read_evaluation,
    restrict_evaluation,
)
from delift_pipeline.selection.registry import traits_of

if TYPE_CHECKING:
    from rich.console import Console

TABLE, PAGE = "leaderboard.parquet", "report.html"
STAGES = ("instruction_tuning", "task_specific", "continual")
COLOURS = {"base": "plain", "random": "reference", "whole": "plain", None: "chosen"}
"""The colour of a row's bar, by the kind of reference arm that its selector is, if any."""
Row = dict[str, Any]

ROW_SCHEMA = pl.Schema(
    {
        "version": pl.String(),
        "stage": pl.String(),
        "selector": pl.String(),
        "arm": pl.String(),
        "budget": pl.String(),  # as requested; null for the base model
        "seed": pl.Int64(),  # null for the base model
        "records": pl.Int64(),  # trained on; 0 for the base model
        "pool": pl.Int64(),
        "heldout": pl.Int64(),  # held-out records measured
        "fingerprint": pl.String(),
        "seconds": pl.Float64(),  # sum of all times in the report
        **{f"{name}{end}": pl.Float64() for name in METRICS for end in ("", "_se")},
        **{f"{name}_minus_random{end}": pl.Float64() for name in METRICS for end in ("", "_se")},
    }
)


def leaderboard_rows(home: Home) -> list[Row]:
    """Return one row per evaluated arm, and one for the base model per version and stage.

    A row holds `version`, `stage`, `selector`, `arm`, `budget`, `seed`, `records` (trained on),
    `pool`, `heldout` (records measured), `fingerprint`, `seconds`, `metrics` (means and `_se`) and
    `minus_random`: metric -> {mean, se, improvement, records}, paired by record with the random
    arm of the same version, stage and fingerprint; empty without a random arm. The base model's
    rows have the selector and arm `initial`. Rows are sorted by version, stage and first metric,
    best first.
    """
    places: dict[tuple[str, str, str], dict[Path, Row]] = {}
    for path in sorted((home.root / "reports").glob(f"*/*/{REPORT}")):
        facts = read_json(path)
        if facts.get("kind") == "arm":
            place = facts["version"], facts["stage"], facts["fingerprint"]
            places.setdefault(place, {})[path.parent] = facts
    return sorted((row for arms in places.values() for row in _rows(home, arms)), key=_sort_key)


def _rows(home: Home, arms: dict[Path, Row]) -> list[Row]:
    """Return the unsorted rows of one version, stage and fingerprint."""
    measured = {folder: evaluation for folder in arms if (evaluation := read_evaluation(folder))}
    randoms = [
        folder
        for folder, facts in arms.items()
        if traits_of(facts["selector"]).reference == "random"
    ]
    random = min(randoms, key=lambda folder: (len(folder.name), folder.name), default=None)
    reference = measured.get(random) if random else None
    copied = ("version", "stage", "selector", "arm", "budget", "seed", "fingerprint")
    rows = [
        {
            **{name: facts[name] for name in copied},
            "records": facts["subset"]["size"],
            "pool": facts["subset"]["pool"],
            "heldout": facts["evaluation"]["counts"]["records"],
            "seconds": sum(facts["seconds"].values()),
            "metrics": facts["evaluation"]["metrics"],
            "minus_random": _compare(measured.get(folder), reference) if folder != random else {},
        }
        for folder, facts in arms.items()
    ]
    place = {name: rows[0][name] for name in ("version", "stage", "fingerprint")}
    base = read_evaluation(home.base_report(place["version"], place["fingerprint"]))
    if base is None:
        return rows
    if measured:
        # The base model's row counts only the records that the stage's arms are measured on.
        base = restrict_evaluation(
            base, max((e.samples["record_id"] for e in measured.values()), key=len)
        )
    initial = {
        **dict.fromkeys(rows[0]),  # It has no budget, seed and pool.
        **place,
        "selector": BASE_MODEL,
        "arm": BASE_MODEL,
        "records": 0,
        "heldout": base.counts["records"],
        "seconds": base.seconds,
        "metrics": base.metrics,
        "minus_random": _compare(base, reference),
    }
    return [*rows, initial]


def _compare(ours: Evaluation | None, theirs: Evaluation | None) -> dict[str, dict[str, float]]:
    if ours is None or theirs is None:
        return {}
    return {name: asdict(gap) for name, gap in differences(ours, theirs).items()}


def _sort_key(row: Row) -> tuple[Any, ...]:
    stage = STAGES.index(row["stage"]) if row["stage"] in STAGES else len(STAGES)
    first = next((name for name in METRICS if name in row["metrics"]), None)
    worst = -METRICS[first].improvement(row["metrics"][first], 0.0) if first else 0.0
    return (row["version"], stage, row["stage"], worst, row["arm"])


def leaderboard_frame(rows: Sequence[Row]) -> pl.DataFrame:
    """Return the rows as a flat frame (`ROW_SCHEMA`)."""
    frame: list[Row] = []
    for row in rows:
        flat = {name: row["metrics"].get(name, row.get(name)) for name in ROW_SCHEMA}
        for name, gap in row["minus_random"].items():
            flat |= {f"{name}_minus_random": gap["mean"], f"{name}_minus_random_se": gap["se"]}
        frame.append(flat | {"budget": None if row["budget"] is None else str(row["budget"])})
    return pl.DataFrame(frame, schema=ROW_SCHEMA)


def write_leaderboard(home: Home, rows: Sequence[Row]) -> Path:
    """Write `leaderboard.parquet` and `report.html`, and return the page's path."""
    folder = home.leaderboard
    write_parquet(folder / TABLE, leaderboard_frame(rows))
    write_text(folder / PAGE, leaderboard_page(rows))
    return folder / PAGE


def leaderboard_page(rows: Sequence[Row]) -> str:
    """Return the leaderboard as one HTML page: a table and bars per version and stage."""
    return render(
        "leaderboard.html.j2",
        title="DELIFT leaderboard",
        arms=sum(row["selector"] != BASE_MODEL for row in rows),
        versions=sorted({row["version"] for row in rows}),
        tables=[_page_table(group) for group in _groups(rows)],
    )


def print_leaderboard(rows: Sequence[Row], console: "Console") -> None:
    """Print one table per version and stage."""
    from rich.table import Table

    for group in _groups(rows):
        names = _metric_names(group)
        heldout = max(row["heldout"] for row in group)
        title = f"{group[0]['stage']} on {group[0]['version']}, {heldout} held-out records"
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        table.add_column("arm", no_wrap=True)
        headings = [METRICS[name].heading for name in names]
        for heading in ("records", *headings, f"{headings[0]} - random"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in group:
            values = [number(row["metrics"].get(name)) for name in names]
            gap = _random_cell(row, names[0])["text"]
            table.add_row(_arm_label(row), f"{row['records']:,}", *values, gap)
        console.print(table)


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows of each version and stage; the given rows are sorted by these."""
    return [list(group) for _, group in groupby(rows, lambda row: (row["version"], row["stage"]))]


def _metric_names(rows: Sequence[Row]) -> list[MetricName]:
    return [name for name in METRICS if any(name in row["metrics"] for row in rows)]


def _arm_label(row: Row) -> str:
    """Return the arm's name without its stage, which is in the table's title."""
    return row["arm"].split(".", 1)[-1]


def _random_cell(row: Row, name: str) -> dict[str, str]:
    gap = row["minus_random"].get(name)
    return difference_cell(gap and Difference(**gap))


def _page_table(rows: Sequence[Row]) -> dict[str, Any]:
    names = _metric_names(rows)
    models = [
        (_arm_label(row), row["metrics"], COLOURS[traits_of(row["selector"]).reference])
        for row in rows
    ]
    return {
        "stage": rows[0]["stage"],
        "version": rows[0]["version"],
        "metrics": {name: METRICS[name] for name in names},
        "sorted_by": METRICS[names[0]].title if names else "arm",
        "heldout": max(row["heldout"] for row in rows),
        "rows": [
            row
            | {"name": _arm_label(row), "gaps": {name: _random_cell(row, name) for name in names}}
            for row in rows
        ],
        "plots": metric_plots(models, names),
    }
