"""Turn the rows of cells into a table: means over pools, paired differences and verdicts.

Differences are paired by pool: a contender's value minus the mean of three random draws (or minus
another contender) on the same pool, averaged over pools. Standard errors are computed over pools. A
difference within two standard errors is called not resolved.
"""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from delift_pipeline.core.formatting import with_error

RESOLVED_ERRORS = 2.0
"""A difference of more than this many standard errors is resolved."""
COMPARED_WITH = {"random": "random", "tfidf": "delift_se-tfidf", "delift": "delift"}
"""Short name in a column -> the contender that every row is compared with."""
LOWER_IS_BETTER = ("answer_loss", "selection_", "training_")
"""Prefixes of the metrics in which less is better."""
GROUP_COLUMNS = ("stage", "wrong_share", "mode", "budget", "metric")
"""The columns whose values the rows of one group share."""

Values = Mapping[int, float]
"""A contender's value by pool seed, averaged over its draws."""
Row = dict[str, Any]


def table_rows(cells: Sequence[tuple[Any, list[Row]]]) -> list[Row]:
    """Return one row for each stage, share of wrong answers, mode, budget, metric and contender.

    Each cell comes with its rows; its stage, seed and wrong_share are read. The cells of one pool
    may have different contenders.
    """
    groups: dict[tuple[Any, ...], dict[str, dict[int, list[Row]]]] = {}
    for cell, row in ((cell, row) for cell, rows in cells for row in rows):
        key = (cell.stage, cell.wrong_share, row["mode"], row["budget"], row["metric"])
        pools = groups.setdefault(key, {}).setdefault(row["selector"], {})
        pools.setdefault(cell.seed, []).append(row)
    return [row for key, group in groups.items() for row in _group_rows(key, group)]


def lower_is_better(metric: str) -> bool:
    """Return whether a lower value of a metric is better."""
    return metric.startswith(LOWER_IS_BETTER)


def _group_rows(key: tuple[Any, ...], group: Mapping[str, Mapping[int, list[Row]]]) -> list[Row]:
    """Return the rows of all contenders of one group, best first."""
    shared = dict(zip(GROUP_COLUMNS, key, strict=True))
    sign = -1 if lower_is_better(shared["metric"]) else 1
    values = {name: mean_by_pool(pools, "value") for name, pools in group.items()}
    best = max(values, key=lambda name: sign * mean(values[name].values()))
    rows = []
    for name, own in values.items():
        behind, behind_se = paired_difference(own, values[best])
        near = behind is not None and sign * behind >= -(behind_se or 0.0)
        rows.append(
            {
                **shared,
                "selector": name,
                "n": len(own),
                "mean": mean(own.values()),
                "se": _standard_error(list(own.values())),
                **_comparisons(name, own, values),
                "within_error_of_best": name == best or near,
                "wrong_in_subset": mean(mean_by_pool(group[name], "wrong").values()),
                "records": mean(mean_by_pool(group[name], "size").values()),
                "pairs_per_record": mean(mean_by_pool(group[name], "pairs_per_record").values()),
            }
        )
    return sorted(rows, key=lambda row: -sign * row["mean"])


def _comparisons(name: str, own: Values, values: Mapping[str, Values]) -> Row:
    """Return the paired differences from the other contenders, with standard error and verdict."""
    comparisons: Row = {}
    for short, other in COMPARED_WITH.items():
        gap, error, verdict = None, None, None
        if other in values and other != name:
            gap, error = paired_difference(own, values[other])
        if gap is not None:
            resolved = error is not None and abs(gap) > RESOLVED_ERRORS * error
            verdict = "not resolved" if not resolved else "higher" if gap > 0 else "lower"
        comparisons |= {
            f"diff_{short}": gap,
            error_column(short): error,
            f"{short}_verdict": verdict,
        }
    return comparisons


def error_column(short: str) -> str:
    """Return the name of the column with the standard error of a difference."""
    return "diff_se" if short == "random" else f"diff_{short}_se"


def difference_text(row: Row, short: str, doubt: str) -> str:
    """Return a difference with its standard error, followed by `doubt` if it is not resolved."""
    if row[f"diff_{short}"] is None:
        return "-"
    text = with_error(row[f"diff_{short}"], row[error_column(short)], sign=True, ascii_only=True)
    return text + (doubt if row[f"{short}_verdict"] == "not resolved" else "")


def mean_by_pool(pools: Mapping[int, list[Row]], name: str) -> dict[int, float]:
    """Return the mean of a column over the draws of each pool."""
    return {seed: mean(row[name] for row in rows) for seed, rows in sorted(pools.items())}


def paired_difference(own: Values, other: Values) -> tuple[float | None, float | None]:
    """Return the mean paired difference over the pools that both have, and its standard error."""
    gaps = [own[seed] - other[seed] for seed in own if seed in other]
    return (mean(gaps), _standard_error(gaps)) if gaps else (None, None)


def _standard_error(values: Sequence[float]) -> float | None:
    """Return the standard error of the mean; None for one value."""
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
