"""A table of an experiment as Markdown, for a page of results."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from delift_pipeline.bench.quality_table import OTHERS, Row
from delift_pipeline.formatting import with_error

PLACE = ("stage", "mode", "wrong_share", "metric")
UNRESOLVED = " (not resolved)"


def markdown_tables(table: Mapping[str, Any], metrics: Sequence[str] = ()) -> str:
    """One Markdown table a stage, mode, share of wrong answers and metric, budgets side by side.

    Args:
        table: As `quality.run_quality` returns it.
        metrics: How the names of the shown metrics begin; all by default.
    """
    rows = [
        row
        for row in table["rows"]
        if not metrics or any(row["metric"].startswith(name) for name in metrics)
    ]
    ranked = sorted(rows, key=lambda row: tuple(row[name] for name in PLACE))
    parts = [
        _table(place, list(group))
        for place, group in groupby(ranked, key=lambda row: tuple(row[name] for name in PLACE))
    ]
    commits = ", ".join(table["commits_of_cells"])
    seeds = ", ".join(str(seed) for seed in table["seeds"])
    return "\n\n".join([f"Pools {seeds}; commit {commits}.", *table["notes"], *parts]) + "\n"


def _table(place: tuple[Any, ...], rows: list[Row]) -> str:
    stage, mode, wrong, metric = place
    others = [short for short in OTHERS if any(row[f"diff_{short}"] is not None for row in rows)]
    heads = ["budget", "contender", "mean", *(f"minus {OTHERS[short]}" for short in others)]
    lines = [
        f"**{stage}, {mode}, {wrong:.0%} wrong answers: {metric}**",
        "",
        _line([*heads, "wrong", "pairs a record"]),
        _line(["---"] * (len(heads) + 2)),
    ]
    for row in sorted(rows, key=lambda row: row["budget"]):
        best = " *" if row["within_error_of_best"] else ""
        lines.append(
            _line(
                [
                    f"{row['budget']:.0%}",
                    row["selector"] + best,
                    with_error(row["mean"], row["se"], ascii_only=True),
                    *(_gap(row, short) for short in others),
                    f"{row['wrong_in_subset']:.0%}",
                    f"{row['pairs_per_record']:.1f}",
                ]
            )
        )
    return "\n".join(lines)


def _gap(row: Row, short: str) -> str:
    gap = row[f"diff_{short}"]
    if gap is None:
        return "-"
    error = row["diff_se" if short == "random" else f"diff_{short}_se"]
    doubt = UNRESOLVED if row[f"{short}_verdict"] == "not resolved" else ""
    return with_error(gap, error, sign=True, ascii_only=True) + doubt


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
