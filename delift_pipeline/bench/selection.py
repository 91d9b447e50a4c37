"""Speed and memory of the selection engine beside other libraries, all in the same run.

Each measurement is a process of its own, so that its peak memory is its own. Compiled loops are
loaded before the clock starts, and checking the kernel is part of our time; what other libraries
take to compile is not part of theirs. Kernels are made from a seed. Dense ones are products of
random directions in 16 dimensions with disturbed copies of them, which are not symmetric, as
utilities are not: under equal diagonals and symmetry two records that cover each other alone have
exactly the same gain, and libraries break such ties differently. Sparse ones have 32 neighbours a
row.
"""

import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from delift_pipeline.core.errors import DeliftError

APRICOT_ABSENT = "apricot is not installed (pip install apricot-select==0.6.1), so it is not beside"


class Case(NamedTuple):
    """One measurement.

    Attributes:
        storage: How the kernel is held: `dense`, `mapped` (from a file), `mapped-half` (float16),
            `mapped-masked` (its diagonal hidden), or `sparse`.
        budget: Share of the records.
        beside: Whether other libraries run beside it.
    """

    n: int
    storage: str
    objective: str
    optimizer: str
    budget: float
    beside: bool = False


CASES: tuple[Case, ...] = (
    Case(1_000, "dense", "fl", "naive", 0.3),
    Case(1_000, "dense", "fl", "lazy", 0.3, True),
    Case(1_000, "dense", "fl", "blocked", 0.3),
    Case(1_000, "dense", "fl", "stochastic", 0.3),
    Case(1_000, "dense", "fl", "lazier", 0.3),
    Case(2_000, "dense", "fl", "lazy", 0.3, True),
    Case(2_000, "dense", "flmi", "lazy", 0.3, True),
    Case(2_000, "dense", "fl1mi", "lazy", 0.3, True),
    Case(2_000, "dense", "fl2mi", "lazy", 0.3, True),
    Case(2_000, "dense", "flcg", "lazy", 0.3, True),
    Case(5_000, "dense", "fl", "lazy", 0.3, True),
    Case(5_000, "dense", "flmi", "lazy", 0.3),
    Case(5_000, "dense", "flcg", "lazy", 0.3),
    Case(20_000, "mapped", "fl", "lazy", 0.3),
    Case(20_000, "mapped-half", "fl", "lazy", 0.3),
    Case(20_000, "mapped-masked", "fl", "lazy", 0.3),
    Case(1_000_000, "sparse", "fl", "lazy", 0.1),
)
FULL_CASES: tuple[Case, ...] = (Case(10_000_000, "sparse", "fl", "lazy", 0.1),)
SMALL_CASES: tuple[Case, ...] = (
    Case(300, "dense", "fl", "lazy", 0.3, True),
    Case(300, "dense", "flcg", "naive", 0.3),
    Case(3_000, "sparse", "fl", "lazy", 0.1),
)
"""A second's worth of each kind, to see that everything runs."""

_MEDIANS = ("seconds", "cpu_seconds", "peak_rss_mib")
_MEDIANS += ("read_seconds", "kernel_mib", "beyond_kernel_mib")
_BESIDE = ("ratio_vs_submodlib", "ratio_vs_apricot", "cpu_ratio_vs_submodlib")
_BESIDE += ("same_ranking", "tie_gap", "value_vs_submodlib")


def chosen_cases(full: bool, small: bool, only: Iterable[str]) -> list[Case]:
    """The cases to measure.

    `full` adds ten million records; `small` takes the small cases instead. `only` restricts them
    to sizes, storages, objectives or optimizers; empty for all.
    """
    cases = SMALL_CASES if small else (*CASES, *(FULL_CASES if full else ()))
    wanted = set(only)
    return [case for case in cases if not wanted or wanted & set(map(str, case[:4]))]


def selection_bench(
    cases: Iterable[Case], repeats: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure every case several times; medians are reported. `say` hears of each before it runs.

    Returns:
        `rows`, one a case: n, kernel (`dense` or `sparse`), objective, optimizer, budget, seconds,
        peak_rss_mib, value, ratio_vs_submodlib and ratio_vs_apricot (their seconds over ours; None
        where not run); beside these storage, cpu_seconds (steadier than seconds on a
        shared machine), read_seconds (one pass over the kernel in the same process),
        times_a_read, kernel_mib, beyond_kernel_mib (peak memory beyond the kernel's own), computed
        (gains), same_ranking (as submodlib), tie_gap (relative difference of the gains
        where the rankings part, 0 where they do not) and value_vs_submodlib.
    """
    if importlib.util.find_spec("apricot") is None:
        say(APRICOT_ABSENT)
    rows = []
    with tempfile.TemporaryDirectory(prefix="delift-bench-") as folder:
        for case in cases:
            say(f"{case.n:,} records, {case.storage}, {case.objective}, {case.optimizer}")
            rows.append(_row(case, Path(folder), repeats))
    return {"rows": rows}


def _row(case: Case, folder: Path, repeats: int) -> dict[str, Any]:
    def measured(engine: str) -> list[dict[str, Any]]:
        return [_child(case, folder, engine) for _ in range(repeats)]

    _child(case, folder, "make")
    runs = measured("ours")
    first, ours = runs[0], {key: statistics.median(r[key] for r in runs) for key in _MEDIANS}
    row: dict[str, Any] = {
        **case._asdict(),
        "kernel": "sparse" if case.storage == "sparse" else "dense",
        **ours,
        "times_a_read": ours["seconds"] / ours["read_seconds"],
        "value": first["value"],
        "computed": first["computed"],
        **dict.fromkeys(_BESIDE),
    }
    if not row.pop("beside"):
        return row
    theirs = measured("submodlib")
    row |= {
        "ratio_vs_submodlib": _ratio(theirs, ours, "seconds"),
        "cpu_ratio_vs_submodlib": _ratio(theirs, ours, "cpu_seconds"),
        "same_ranking": theirs[0]["picks"] == first["picks"],
        "tie_gap": _tie_gap(first, theirs[0]),
        "value_vs_submodlib": first["value"] / theirs[0]["value"],
    }
    if case.objective == "fl" and importlib.util.find_spec("apricot"):
        ratio = _ratio(measured("apricot"), ours, "seconds")
        # Where it takes less than its own compilation varies, nothing can be said.
        row["ratio_vs_apricot"] = ratio if ratio > 0 else None
    return row


def _tie_gap(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """How far the gains lie apart where two rankings first differ, relative."""
    steps = zip(ours["picks"], theirs["picks"], ours["gains"], theirs["gains"], strict=True)
    gaps = (abs(gain - other) / max(gain, 1e-300) for one, two, gain, other in steps if one != two)
    return next(gaps, 0.0)


def _ratio(theirs: list[dict[str, Any]], ours: dict[str, float], of: str) -> float:
    return statistics.median(r[of] for r in theirs) / ours[of]


def _child(case: Case, folder: Path, engine: str) -> dict[str, Any]:
    """One measurement in a process of its own.

    Raises:
        DeliftError: it ended badly; the sentence holds the last line that it said.
    """
    asked = (case.n, case.storage, folder, engine, case.objective, case.optimizer, case.budget)
    command = [sys.executable, "-P", "-m", "delift_pipeline.bench.selection_child"]
    done = subprocess.run([*command, *map(str, asked)], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise DeliftError(f"a measurement failed: {last}")
    return {} if engine == "make" else json.loads(done.stdout.strip().splitlines()[-1])
