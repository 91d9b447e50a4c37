"""All reports on disk as one table: rows, Parquet, a page, and a table for the terminal."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from delift_pipeline.evaluation.options import METRICS, MetricName
from delift_pipeline.evaluation.pages import ABSENT, number, render, signed, with_error
from delift_pipeline.evaluation.report import CLEAR, metric_bar
from delift_pipeline.evaluation.result import (
    REPORT,
    Evaluation,
    differences,
    read_evaluation,
    restricted,
)
from delift_pipeline.evaluation.svg import bar_plot
from delift_pipeline.storage.atomic import read_json, write_parquet, write_text
from delift_pipeline.storage.home import Home

if TYPE_CHECKING:
    from rich.console import Console

TABLE, PAGE = "leaderboard.parquet", "report.html"
STAGES = ("instruction_tuning", "task_specific", "continual")
Row = dict[str, Any]

ROW_SCHEMA = pl.Schema(
    {
        "version": pl.String(),
        "stage": pl.String(),
        "selector": pl.String(),
        "arm": pl.String(),
        "budget": pl.String(),  # as asked for; null for the base model
        "seed": pl.Int64(),  # null for the base model
        "records": pl.Int64(),  # trained on; 0 for the base model
        "pool": pl.Int64(),
        "heldout": pl.Int64(),  # held-out records measured
        "fingerprint": pl.String(),
        "seconds": pl.Float64(),  # of everything the report accounts for
        **{f"{name}{end}": pl.Float64() for name in METRICS for end in ("", "_se")},
        **{f"{name}_minus_random{end}": pl.Float64() for name in METRICS for end in ("", "_se")},
    }
)


def leaderboard_rows(home: Home) -> list[Row]:
    """One row per evaluated arm, and one for the base model per version and stage.

    A row holds `version`, `stage`, `selector`, `arm`, `budget`, `seed`, `records` (trained on),
    `pool`, `heldout` (records measured), `fingerprint`, `seconds`, `metrics` (means and `_se`) and
    `minus_random`: metric -> {mean, se, improvement, records}, paired by record with the random
    arm of the same version, stage and fingerprint; empty where there is none. The base model's
    rows have the selector and arm `initial`. Rows are sorted by version, stage and first metric,
    best first.
    """
    folders = {path.parent: read_json(path) for path in _reports(home)}
    arms = {folder: facts for folder, facts in folders.items() if facts.get("kind") == "arm"}
    rows = [_arm_row(folder, facts, arms) for folder, facts in arms.items()]
    for version, stage, fingerprint in sorted({_place(facts) for facts in arms.values()}):
        folder, place = home.base_report(version, fingerprint), (version, stage, fingerprint)
        base = read_evaluation(folder)
        if base is not None:
            base = _on_same_records(
                base, [f for f, facts in arms.items() if _place(facts) == place]
            )
            rows.append(_initial_row(place, base, _random_folder(arms, place)))
    return sorted(rows, key=_order)


def leaderboard_frame(rows: Sequence[Row]) -> pl.DataFrame:
    """The rows as a flat frame (`ROW_SCHEMA`)."""
    return pl.DataFrame([_flat(row) for row in rows], schema=ROW_SCHEMA)


def write_leaderboard(home: Home, rows: Sequence[Row] | None = None) -> Path:
    """Write `leaderboard.parquet` and `report.html`; returns the page's path."""
    rows = leaderboard_rows(home) if rows is None else rows
    folder = home.leaderboard
    write_parquet(folder / TABLE, leaderboard_frame(rows))
    write_text(folder / PAGE, leaderboard_page(rows))
    return folder / PAGE


def leaderboard_page(rows: Sequence[Row]) -> str:
    """The leaderboard as one HTML page: a table and bars per version and stage."""
    return render(
        "leaderboard.html.j2",
        title="DELIFT leaderboard",
        arms=sum(row["selector"] != "initial" for row in rows),
        versions=sorted({row["version"] for row in rows}),
        tables=[_page_table(group) for group in _groups(rows)],
    )


def print_leaderboard(rows: Sequence[Row], console: "Console") -> None:
    """Print one table per version and stage."""
    from rich.table import Table

    for group in _groups(rows):
        names = _measured(group)
        title = f"{group[0]['stage']} on {group[0]['version']}, {_heldout(group)} held-out records"
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        table.add_column("arm", no_wrap=True)
        headings = [METRICS[name].heading for name in names]
        for heading in ("records", *headings, f"{headings[0]} - random"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in group:
            values = [number(row["metrics"].get(name)) for name in names]
            gap = _difference(row, names[0])["text"]
            table.add_row(_short(row), f"{row['records']:,}", *values, gap)
        console.print(table)


def _reports(home: Home) -> Iterable[Path]:
    return sorted((home.root / "reports").glob(f"*/*/{REPORT}"))


def _place(facts: Mapping[str, Any]) -> tuple[str, str, str]:
    return facts["version"], facts["stage"], facts["fingerprint"]


def _random_folder(
    arms: Mapping[Path, Mapping[str, Any]], place: tuple[str, str, str]
) -> Path | None:
    found = [f for f, r in arms.items() if _place(r) == place and r["selector"] == "random"]
    return min(found, key=lambda folder: (len(folder.name), folder.name), default=None)


def _arm_row(folder: Path, facts: Mapping[str, Any], arms: Mapping[Path, Mapping[str, Any]]) -> Row:
    same = ("version", "stage", "selector", "arm", "budget", "seed", "fingerprint")
    random = _random_folder(arms, _place(facts))
    reference = read_evaluation(random) if random and random != folder else None
    evaluation = facts["evaluation"]
    return {
        **{name: facts[name] for name in same},
        "records": facts["subset"]["size"],
        "pool": facts["subset"]["pool"],
        "heldout": evaluation["counts"]["records"],
        "seconds": sum(facts["seconds"].values()),
        "metrics": evaluation["metrics"],
        "minus_random": _gaps(read_evaluation(folder), reference),
    }


def _on_same_records(base: Evaluation, folders: Sequence[Path]) -> Evaluation:
    """The base model on the records that the stage's arms are measured on."""
    measured = [found.samples["record_id"] for f in folders if (found := read_evaluation(f))]
    return restricted(base, max(measured, key=len)) if measured else base


def _initial_row(place: tuple[str, str, str], base: Evaluation, random: Path | None) -> Row:
    version, stage, fingerprint = place
    reference = None if random is None else read_evaluation(random)
    return {
        "version": version,
        "stage": stage,
        "selector": "initial",
        "arm": "initial",
        "budget": None,
        "seed": None,
        "fingerprint": fingerprint,
        "records": 0,
        "pool": None,
        "heldout": base.counts["records"],
        "seconds": base.seconds,
        "metrics": base.metrics,
        "minus_random": _gaps(base, reference),
    }


def _gaps(ours: Evaluation | None, theirs: Evaluation | None) -> dict[str, dict[str, float]]:
    if ours is None or theirs is None:
        return {}
    return {name: asdict(gap) for name, gap in differences(ours, theirs).items()}


def _order(row: Row) -> tuple[Any, ...]:
    stage = STAGES.index(row["stage"]) if row["stage"] in STAGES else len(STAGES)
    goodness = [
        metric.improvement(row["metrics"][name], 0.0)
        for name, metric in METRICS.items()
        if name in row["metrics"]
    ]
    worst = -goodness[0] if goodness else 0.0
    return (row["version"], stage, row["stage"], worst, row["arm"])


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["version"], row["stage"]), []).append(row)
    return list(groups.values())


def _flat(row: Row) -> Row:
    flat = {name: row.get(name) for name in ROW_SCHEMA}
    flat |= {name: value for name, value in row["metrics"].items() if name in flat}
    for name, gap in row["minus_random"].items():
        flat[f"{name}_minus_random"] = gap["mean"]
        flat[f"{name}_minus_random_se"] = gap["se"]
    flat["budget"] = None if row["budget"] is None else str(row["budget"])
    return flat


def _heldout(rows: Sequence[Row]) -> int:
    return max(row["heldout"] for row in rows)


def _measured(rows: Sequence[Row]) -> list[MetricName]:
    return [name for name in METRICS if any(name in row["metrics"] for row in rows)]


def _measurement(row: Row, name: str) -> tuple[float | None, float | None]:
    return row["metrics"].get(name), row["metrics"].get(f"{name}_se")


def _short(row: Row) -> str:
    """The arm's name without its stage, which the table's title says."""
    return row["arm"].split(".", 1)[-1]


def _sizes(row: Row) -> tuple[str, str]:
    pool = "" if row["pool"] is None else f" of {row['pool']:,}"
    budget = ABSENT if row["budget"] is None else str(row["budget"])
    return budget, f"{row['records']:,}{pool}"


def _difference(row: Row, name: str) -> dict[str, str]:
    gap = row["minus_random"].get(name)
    if gap is None:
        return {"text": ABSENT, "style": "soft"}
    clear = abs(gap["mean"]) > CLEAR * gap["se"]
    style = ("good" if gap["improvement"] > 0 else "bad") if clear else "soft"
    return {"text": f"{signed(gap['mean'])} ± {number(gap['se'])}", "style": style}


def _page_table(rows: Sequence[Row]) -> dict[str, Any]:
    names = _measured(rows)
    return {
        "stage": rows[0]["stage"],
        "version": rows[0]["version"],
        "metrics": [METRICS[name] for name in names],
        "sorted_by": METRICS[names[0]].title if names else "arm",
        "heldout": _heldout(rows),
        "rows": [_page_row(row, names) for row in rows],
        "plots": [_page_plot(rows, name) for name in names],
    }


def _page_row(row: Row, names: Sequence[MetricName]) -> dict[str, Any]:
    budget, records = _sizes(row)
    return {
        "name": _short(row),
        "budget": budget,
        "records": records,
        "seed": ABSENT if row["seed"] is None else row["seed"],
        "cells": [_page_cell(row, name) for name in names],
        "seconds": number(row["seconds"], 1),
    }


def _page_cell(row: Row, name: MetricName) -> dict[str, str]:
    gap = _difference(row, name)
    value = with_error(*_measurement(row, name))
    return {"value": value, "gap": gap["text"], "style": gap["style"]}


def _page_plot(rows: Sequence[Row], name: MetricName) -> dict[str, Any]:
    kinds = {"initial": "plain", "random": "reference", "full": "plain"}
    bars = []
    for row in rows:
        label, kind = _short(row), kinds.get(row["selector"], "chosen")
        bars.append(metric_bar(label, row["metrics"], name, kind))
    title = f"{METRICS[name].title}, {METRICS[name].better} is better"
    return {"title": title, "svg": bar_plot([bar for bar in bars if bar], title)}
