"""Is a selector worth it? Selectors against each other on pools of the demo world.

Per stage, pool and share of wrong answers every selector chooses at every budget, one small LoRA
run is trained on each subset (equal steps), and held-out records are answered. Differences are
paired by pool: a selector's value minus the mean of three random draws (or minus another selector)
on the same pool, averaged over pools; the standard error counts pools. A difference within two
standard errors is called not resolved. The seed of a pool draws its world, its records and the
runs' starts; one run a subset, since another start moves a value far less than another pool does.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from delift_pipeline.bench.quality_cells import SELECTORS, Cell, run_cell
from delift_pipeline.bench.quality_pools import Sizes
from delift_pipeline.progress import Progress
from delift_pipeline.selection.options import STAGES, Stage
from delift_pipeline.storage.atomic import read_json, write_json
from delift_pipeline.storage.home import Home
from delift_pipeline.storage.manifest import git_commit

EXPERIMENT = "selectors"
FINAL_SEEDS = tuple(range(400, 410))
QUICK_SEEDS = (500, 501)
"""Not the final table's: those pools are looked at once, when the settings are committed."""
BUDGETS, WRONG_SHARES = (0.1, 0.2, 0.3), (0.0, 0.15)
MODE = "lora"
CLEAR = 2.0
"""Standard errors beyond which a difference is called resolved."""
OTHERS = {"random": "random", "tfidf": "delift_se-tfidf", "delift": "delift"}
"""Short name in a row -> the selector it is compared with."""
LOWER_IS_BETTER = ("answer_loss",)

Values = Mapping[int, float]
"""A selector's value by pool seed, random draws averaged."""


def cells(
    stages: Sequence[Stage] = STAGES,
    seeds: Sequence[int] | None = None,
    selectors: Sequence[str] = tuple(SELECTORS),
    quick: bool = False,
    sizes: Sizes | None = None,
) -> list[Cell]:
    """What is measured.

    Args:
        stages: The stages.
        seeds: The pools; None takes the final table's, or two others where `quick`.
        selectors: Names in `SELECTORS`; random is always among them.
        quick: Two pools, 15 % wrong answers and a budget of 20 % only.
        sizes: Numbers of records.
    """
    pools = seeds or (QUICK_SEEDS if quick else FINAL_SEEDS)
    named = tuple(name for name in SELECTORS if name in selectors or name == "random")
    budgets, shares = ((0.2,), (0.15,)) if quick else (BUDGETS, WRONG_SHARES)
    return [
        Cell(stage, seed, share, budgets, named, sizes or Sizes())
        for stage in stages
        for seed in pools
        for share in shares
    ]


def run_quality(
    folder: Path, wanted: Sequence[Cell], progress: Progress, workers: int = 1
) -> dict[str, Any]:
    """Measure what is missing and make the table.

    Args:
        folder: Where cells and scores are kept; an interrupted benchmark goes on from there.
        wanted: The cells.
        progress: Where cells done are shown.
        workers: Processes, one thread each.

    Returns:
        `experiment`, `commit`, `seeds` and `rows`.
    """
    missing = [cell for cell in wanted if not _file(folder, cell).exists()]
    with progress.track("cells", len(wanted), "cells") as meter:
        meter.advance(len(wanted) - len(missing))
        if workers == 1:
            for cell in missing:
                _do(folder, cell)
                meter.advance()
        else:
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                for done in as_completed([pool.submit(_do, folder, cell) for cell in missing]):
                    done.result()
                    meter.advance()
    found = [(cell, read_json(_file(folder, cell))) for cell in wanted]
    return {
        "experiment": EXPERIMENT,
        "commit": git_commit(),
        "commits_of_cells": sorted({str(kept["commit"]) for _, kept in found}),
        "seeds": sorted({cell.seed for cell in wanted}),
        "rows": rows_of([(cell, kept["rows"]) for cell, kept in found]),
    }


def _file(folder: Path, cell: Cell) -> Path:
    return folder / "cells" / f"{cell.key}.json"


def _do(folder: Path, cell: Cell) -> None:
    rows = run_cell(Home.at(folder / "home"), cell)
    write_json(_file(folder, cell), {"commit": git_commit(), "rows": rows})


def rows_of(found: Sequence[tuple[Cell, list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """The table: one row a stage, share of wrong answers, budget, metric and selector."""
    groups: dict[tuple[Any, ...], dict[str, dict[int, list[dict[str, Any]]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for cell, rows in found:
        for row in rows:
            key = (cell.stage, cell.wrong_share, row["budget"], row["metric"])
            groups[key][row["selector"]][cell.seed].append(row)
    return [row for key, group in groups.items() for row in _group_rows(key, group)]


def _group_rows(
    key: tuple[Any, ...], group: Mapping[str, Mapping[int, list[dict[str, Any]]]]
) -> list[dict[str, Any]]:
    """All selectors of one group, best first."""
    stage, wrong_share, budget, metric = key
    sign = -1 if metric.startswith(LOWER_IS_BETTER) else 1
    values = {name: _by_pool(pools, "value") for name, pools in group.items()}
    best = max(values, key=lambda name: sign * mean(values[name].values()))
    rows = []
    for name, own in values.items():
        behind, behind_se = _difference(own, values[best])
        rows.append(
            {
                "stage": stage,
                "selector": name,
                "mode": MODE,
                "budget": budget,
                "wrong_share": wrong_share,
                "metric": metric,
                "n": len(own),
                "mean": mean(own.values()),
                "se": _error(list(own.values())),
                **_comparisons(name, own, values),
                "within_error_of_best": name == best or sign * behind >= -(behind_se or 0.0),
                "wrong_in_subset": mean(_by_pool(group[name], "wrong").values()),
                "records": mean(_by_pool(group[name], "size").values()),
                "pairs_per_record": mean(_by_pool(group[name], "pairs_per_record").values()),
            }
        )
    return sorted(rows, key=lambda row: -sign * row["mean"])


def _comparisons(name: str, own: Values, values: Mapping[str, Values]) -> dict[str, Any]:
    """Paired differences to the others: diff, standard error, and what can be said of it."""
    found: dict[str, Any] = {}
    for short, other in OTHERS.items():
        gap, error = (None, None)
        if other in values and other != name:
            gap, error = _difference(own, values[other])
        found |= {
            f"diff_{short}": gap,
            "diff_se" if short == "random" else f"diff_{short}_se": error,
            f"{short}_verdict": _verdict(gap, error),
        }
    return found


def _verdict(gap: float | None, error: float | None) -> str | None:
    if gap is None:
        return None
    if error is None or abs(gap) <= CLEAR * error:
        return "not resolved"
    return "higher" if gap > 0 else "lower"


def _by_pool(pools: Mapping[int, list[dict[str, Any]]], name: str) -> dict[int, float]:
    return {seed: mean(row[name] for row in rows) for seed, rows in sorted(pools.items())}


def _difference(own: Values, other: Values) -> tuple[float, float | None]:
    """Mean paired difference over the pools both have, and its standard error."""
    gaps = [own[seed] - other[seed] for seed in own if seed in other]
    return mean(gaps), _error(gaps)


def _error(values: Sequence[float]) -> float | None:
    """Standard error of the mean; None from one value."""
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
