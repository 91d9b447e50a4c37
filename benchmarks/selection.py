"""Speed and memory of the selection engine beside other libraries, all in the same run.

Each measurement is a process of its own, so that its peak memory is its own; compiled loops are
loaded before the clock starts, checking the kernel is part of the time. Kernels are made from a
seed: similarities of random points in 16 dimensions (dense) and 32 neighbours a row (sparse).
`python -m benchmarks.selection --json` prints the rows; `--full` adds ten million records. apricot
is measured where `apricot-select` is installed; it is no dependency of this project.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

REPEATS = 5
# n, kernel, objective, optimizer, budget, whether submodlib and apricot run beside it.
Case = tuple[int, str, str, str, float, bool]
CASES: tuple[Case, ...] = (
    (1_000, "dense", "fl", "naive", 0.3, False),
    (1_000, "dense", "fl", "lazy", 0.3, True),
    (1_000, "dense", "fl", "blocked", 0.3, False),
    (1_000, "dense", "fl", "stochastic", 0.3, False),
    (1_000, "dense", "fl", "lazier", 0.3, False),
    (2_000, "dense", "fl", "lazy", 0.3, True),
    (2_000, "dense", "flmi", "lazy", 0.3, True),
    (2_000, "dense", "fl1mi", "lazy", 0.3, True),
    (2_000, "dense", "fl2mi", "lazy", 0.3, True),
    (2_000, "dense", "flcg", "lazy", 0.3, True),
    (2_000, "dense", "rfl", "lazy", 0.3, False),
    (2_000, "dense", "saturated", "lazy", 0.3, False),
    (5_000, "dense", "fl", "lazy", 0.3, True),
    (5_000, "dense", "flmi", "lazy", 0.3, False),
    (5_000, "dense", "flcg", "lazy", 0.3, False),
    (20_000, "mapped", "fl", "lazy", 0.3, False),
    (20_000, "mapped-half", "fl", "lazy", 0.3, False),
    (20_000, "mapped-masked", "fl", "lazy", 0.3, False),
    (1_000_000, "sparse", "fl", "lazy", 0.1, False),
)
FULL_CASES: tuple[Case, ...] = ((10_000_000, "sparse", "fl", "lazy", 0.1, False),)


def run(
    full: bool = False, cases: Sequence[Case] = CASES, repeats: int = REPEATS
) -> dict[str, Any]:
    """Measure every case.

    Args:
        full: Whether to add ten million records.
        cases: What is measured.
        repeats: Measurements of each; medians are reported.

    Returns:
        `rows`, one a case: n, kernel, objective, optimizer, budget, seconds, peak_rss_mib, value,
        ratio_vs_submodlib and ratio_vs_apricot (their seconds over ours; None where not run),
        cpu_seconds (of all threads; steadier than seconds on a shared machine),
        same_ranking (as submodlib; None where not run), tie_gap (relative difference of the gains
        where the rankings part, 0 where they do not), read_seconds (one pass over the kernel),
        kernel_mib, beyond_kernel_mib (peak memory beyond the kernel's own).
    """
    chosen = [*cases, *(FULL_CASES if full else ())]
    with tempfile.TemporaryDirectory(prefix="selection-bench-") as folder:
        rows = [_row(case, Path(folder), repeats) for case in chosen]
    return {"rows": rows}


def _row(case: Case, folder: Path, repeats: int) -> dict[str, Any]:
    n, kernel, objective, optimizer, budget, beside = case
    _child("make", n, kernel, folder)
    runs = [_measured(case, "ours", folder) for _ in range(repeats)]
    ours = {key: statistics.median(r[key] for r in runs) for key in _MEDIANS}
    row: dict[str, Any] = {
        "n": n,
        "kernel": kernel,
        "objective": objective,
        "optimizer": optimizer,
        "budget": budget,
        **ours,
        "value": runs[0]["value"],
        "ratio_vs_submodlib": None,
        "ratio_vs_apricot": None,
        "same_ranking": None,
        "tie_gap": None,
    }
    if beside:
        theirs = [_measured(case, "submodlib", folder) for _ in range(repeats)]
        row["ratio_vs_submodlib"] = _ratio(theirs, ours)
        row["same_ranking"] = theirs[0]["picks"] == runs[0]["picks"]
        row["cpu_ratio_vs_submodlib"] = _ratio(theirs, ours, "cpu_seconds")
        row["tie_gap"] = _tie_gap(runs[0], theirs[0])
        row["value_vs_submodlib"] = runs[0]["value"] / theirs[0]["value"]
    if beside and objective == "fl" and importlib.util.find_spec("apricot"):
        row["ratio_vs_apricot"] = _ratio(
            [_measured(case, "apricot", folder) for _ in range(repeats)], ours
        )
    return row


def _tie_gap(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """How far the gains lie apart where two rankings first differ, relative."""
    for pick, other, gain, theirs_gain in zip(
        ours["picks"], theirs["picks"], ours["gains"], theirs["gains"], strict=True
    ):
        if pick != other:
            return abs(gain - theirs_gain) / max(gain, 1e-300)
    return 0.0


_MEDIANS = (
    "seconds",
    "cpu_seconds",
    "peak_rss_mib",
    "read_seconds",
    "kernel_mib",
    "beyond_kernel_mib",
)


def _ratio(theirs: list[dict[str, Any]], ours: dict[str, float], of: str = "seconds") -> float:
    return statistics.median(r[of] for r in theirs) / ours[of]


def _measured(case: Case, engine: str, folder: Path) -> dict[str, Any]:
    n, kernel, objective, optimizer, budget, _ = case
    return _child("measure", n, kernel, folder, engine, objective, optimizer, budget)


def _child(*arguments: object) -> dict[str, Any]:
    """One measurement in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.selection_child", *map(str, arguments)]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"a measurement failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def table_of(rows: list[dict[str, Any]]) -> Table:
    """The rows for a terminal."""
    shown = (
        "n",
        "kernel",
        "objective",
        "optimizer",
        "seconds",
        "cpu_seconds",
        "read_seconds",
        "peak_rss_mib",
    )
    shown += ("beyond_kernel_mib", "ratio_vs_submodlib", "same_ranking", "tie_gap")
    table = Table(*shown)
    for row in rows:
        table.add_row(
            *(f"{row[k]:,.3g}" if isinstance(row[k], float) else f"{row[k]}" for k in shown)
        )
    return table


def main() -> None:
    """Print the rows as a table or as JSON."""
    parser = argparse.ArgumentParser(description="Speed and memory of the selection engine.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--full", action="store_true", help="add ten million records")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="measurements of each case")
    parser.add_argument("--only", default="", help="kernels or objectives, by comma")
    asked = parser.parse_args()
    only = set(filter(None, asked.only.split(",")))
    cases = [c for c in CASES if not only or only & {str(c[0]), c[1], c[2], c[3]}]
    found = run(asked.full, cases, asked.repeats)
    if asked.json:
        print(json.dumps(found))
    else:
        Console(width=140).print(table_of(found["rows"]))


if __name__ == "__main__":
    main()
