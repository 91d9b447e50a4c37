"""Measure speed and memory of the selection engine and of other libraries, all in the same run.

Each measurement runs in a separate process, so its peak memory is its own. Compiled code is loaded
before the clock starts. Checking the kernel is part of our time; compilation is not part of the
other libraries' time. Kernels are drawn from a seed. A dense kernel is the product of random
directions in 16 dimensions with disturbed copies of them. Like utilities, it is not
symmetric. In a symmetric kernel with equal diagonals, two records that cover only each other have
exactly the same gain, and libraries break such ties differently. A sparse kernel has 32 neighbours
per row.
"""

import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from delift_pipeline.core.errors import DeliftError
from delift_pipeline.kernel.block import Similarity
from delift_pipeline.kernel.columns import Columns, DenseColumns, SparseColumns
from delift_pipeline.selection import objectives, optimizers

APRICOT_ABSENT = "apricot is not installed. To compare, run `pip install apricot-select==0.6.1`"


class Case(NamedTuple):
    """One measurement.

    Attributes:
        storage: How the kernel is stored: `dense`, `mapped` (from a file), `mapped-half` (float16),
            `mapped-masked` (without its diagonal), or `sparse`.
        budget: Share of the records.
        compare: Whether other libraries are measured too.
    """

    n: int
    storage: str
    objective: str
    optimizer: str
    budget: float
    compare: bool = False


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
"""Cases of about a second, to check that everything runs."""

_MEDIANS = ("seconds", "cpu_seconds", "peak_rss_mib")
_MEDIANS += ("read_seconds", "kernel_mib", "beyond_kernel_mib")
_COMPARISONS = ("ratio_vs_submodlib", "ratio_vs_apricot", "cpu_ratio_vs_submodlib")
_COMPARISONS += ("same_ranking", "tie_gap", "value_vs_submodlib")

OPTIMIZERS: dict[str, Any] = {
    "naive": optimizers.naive_greedy,
    "lazy": optimizers.lazy_greedy,
    "blocked": optimizers.blocked_greedy,
    "stochastic": optimizers.stochastic_greedy,
    "lazier": optimizers.lazier_than_lazy_greedy,
}
NEIGHBOURS, SIDE, STRIP, WARM_PICKS = 32, 64, 500, 5
WITH_SIDE = ("flmi", "fl1mi", "fl2mi", "flcg")
"""Objectives that need a second kernel."""
# The standard deviation of the noise that is added to the directions, which have length 1.
DISTURBANCE = 0.05


def select_cases(full: bool, small: bool, only: Iterable[str]) -> list[Case]:
    """Return the cases to measure.

    `full` adds ten million records; `small` takes the small cases instead. `only` lists sizes,
    storages, objectives or optimizers to measure; all if it is empty.
    """
    cases = SMALL_CASES if small else (*CASES, *(FULL_CASES if full else ()))
    names = set(only)
    return [case for case in cases if not names or names & set(map(str, case[:4]))]


def benchmark_selection(
    cases: Iterable[Case], repeats: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure every case several times and report medians. `say` gets a line before each case.

    Returns:
        `rows`, one for each case: n, kernel (`dense` or `sparse`), objective, optimizer, budget,
        seconds, peak_rss_mib, value, ratio_vs_submodlib and ratio_vs_apricot (their seconds divided
        by ours; None if not run). Each row also has storage, cpu_seconds (steadier than seconds on
        a shared machine), read_seconds (one pass over the kernel in the same process),
        times_a_read, kernel_mib, beyond_kernel_mib (peak memory without the kernel), computed
        (gains), same_ranking (as submodlib), tie_gap (relative difference of the gains where the
        rankings first differ, 0 if they are equal) and value_vs_submodlib.
    """
    if importlib.util.find_spec("apricot") is None:
        say(APRICOT_ABSENT)
    rows = []
    with tempfile.TemporaryDirectory(prefix="delift-bench-") as folder:
        for case in cases:
            say(f"{case.n:,} records, {case.storage}, {case.objective}, {case.optimizer}")
            rows.append(_measure_case(case, folder, repeats))
    return {"rows": rows}


def _measure_case(case: Case, folder: str, repeats: int) -> dict[str, Any]:
    def measure(engine: str) -> list[dict[str, Any]]:
        return [_measure_in_process(case, folder, engine) for _ in range(repeats)]

    def ratio(theirs: list[dict[str, Any]], key: str) -> float:
        return statistics.median(r[key] for r in theirs) / ours[key]

    _measure_in_process(case, folder, "make")
    runs = measure("ours")
    first, ours = runs[0], {key: statistics.median(r[key] for r in runs) for key in _MEDIANS}
    row: dict[str, Any] = {
        **case._asdict(),
        "kernel": "sparse" if case.storage == "sparse" else "dense",
        **ours,
        "times_a_read": ours["seconds"] / ours["read_seconds"],
        "value": first["value"],
        "computed": first["computed"],
        **dict.fromkeys(_COMPARISONS),
    }
    if not row.pop("compare"):
        return row
    theirs = measure("submodlib")
    other = theirs[0]
    # How far apart are the gains where the rankings first differ?
    steps = zip(first["picks"], other["picks"], first["gains"], other["gains"], strict=True)
    gaps = (abs(gain - g) / max(gain, 1e-300) for pick, p, gain, g in steps if pick != p)
    row |= {
        "ratio_vs_submodlib": ratio(theirs, "seconds"),
        "cpu_ratio_vs_submodlib": ratio(theirs, "cpu_seconds"),
        "same_ranking": other["picks"] == first["picks"],
        "tie_gap": next(gaps, 0.0),
        "value_vs_submodlib": first["value"] / other["value"],
    }
    if case.objective == "fl" and importlib.util.find_spec("apricot"):
        # The compilation time is an estimate. If it exceeds a short run, there is no ratio.
        apricot_ratio = ratio(measure("apricot"), "seconds")
        row["ratio_vs_apricot"] = apricot_ratio if apricot_ratio > 0 else None
    return row


def _measure_in_process(case: Case, folder: str, engine: str) -> dict[str, Any]:
    """Run one measurement in a separate process, which runs this module as a program.

    Raises:
        DeliftError: the process failed; the message has its last line.
    """
    command = [sys.executable, "-P", "-m", __name__, json.dumps(case), folder, engine]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        last = (process.stderr.strip().splitlines() or [f"status {process.returncode}"])[-1]
        raise DeliftError(f"a measurement failed: {last}")
    return {} if engine == "make" else json.loads(process.stdout.strip().splitlines()[-1])


def _write_kernel(case: Case, files: Sequence[Path]) -> None:
    """Write the kernel of a case, unless it exists."""
    n = case.n
    if files[0].exists():
        return
    if case.storage == "sparse":
        rng, shape = np.random.default_rng(0), (n, NEIGHBOURS)
        rows = np.lib.format.open_memmap(files[0], "w+", np.int32, shape)
        data = np.lib.format.open_memmap(files[1], "w+", np.float32, shape)
        for start in range(0, n, 100_000):
            size = min(100_000, n - start)
            offsets = (rng.standard_cauchy((size, NEIGHBOURS)) * 50).astype(np.int64)
            columns = (np.arange(start, start + size)[:, None] + offsets) % n
            rows[start : start + size] = np.sort(columns, axis=1)
            data[start : start + size] = rng.random((size, NEIGHBOURS), np.float32)
        return
    points = _draw_points(n, 0)
    disturbed = points + DISTURBANCE * np.random.default_rng(2).normal(size=points.shape)
    disturbed = (disturbed / np.linalg.norm(disturbed, axis=1, keepdims=True)).astype(np.float32)
    # The transpose of a row-ordered file is the column-ordered kernel.
    dtype = np.float16 if "half" in case.storage else np.float32
    stored = np.lib.format.open_memmap(files[0], "w+", dtype, (n, n), fortran_order=True)
    for start in range(0, n, STRIP):
        stored[:, start : start + STRIP] = np.maximum(
            points @ disturbed[start : start + STRIP].T, 0
        )
    stored.flush()


def _draw_points(n: int, seed: int) -> np.ndarray:
    points = np.random.default_rng(seed).normal(size=(n, 16)).astype(np.float32)
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def _load_kernel(case: Case, files: Sequence[Path]) -> tuple[Columns, int, float]:
    """Return the kernel, its bytes, and the seconds of one pass over it from the page cache."""
    if case.storage == "sparse":
        rows, data = (np.load(file).reshape(-1) for file in files)
        start = time.perf_counter()
        rows.max()
        data.max()
        seconds = time.perf_counter() - start
        indptr = np.arange(0, NEIGHBOURS * case.n + 1, NEIGHBOURS)
        return SparseColumns(indptr, rows, data, case.n), 8 * len(data), seconds
    _time_reading(files[0])
    seconds, mode = _time_reading(files[0]), "r" if "mapped" in case.storage else None
    columns: Columns = DenseColumns(np.load(files[0], mmap_mode=mode))
    if "masked" in case.storage:
        columns = Similarity(columns, None, (np.arange(case.n), np.arange(case.n)))
    return columns, files[0].stat().st_size, seconds


def _time_reading(name: Path) -> float:
    """Return the seconds that reading a whole file into one buffer takes."""
    buffer, start = bytearray(1 << 24), time.perf_counter()
    with name.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - start


def _read_clocks() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


def _run_apricot(kernel: Any, budget: int) -> tuple[optimizers.Ranking, np.ndarray]:
    """Return apricot's ranking, and its seconds and processor seconds without compilation.

    Apricot compiles again in every fit. A fit of a few records measures the compilation.
    """
    from apricot import FacilityLocationSelection  # pyright: ignore[reportMissingImports]

    # Apricot's candidates are the rows.
    transposed = np.ascontiguousarray(kernel.matrix.T, dtype=np.float64)
    few, chooser, clocks = transposed[:50, :50].copy(), None, []
    for matrix, count in ((few, 5), (few, 5), (transposed, budget)):
        clocks.append(_read_clocks())
        chooser = FacilityLocationSelection(count, metric="precomputed", optimizer="lazy")
        chooser.fit(matrix)
    clocks.append(_read_clocks())
    # The first fit also loads code that later fits find in memory, so it is not counted.
    _, compilation, whole = np.diff(clocks, axis=0)
    ranking = optimizers.Ranking(np.array(chooser.ranking), np.array(chooser.gains))
    return ranking, whole - compilation


def _measure(case: Case, files: Sequence[Path], engine: str) -> dict[str, Any]:
    """Measure the time from the loaded kernel to the ranking, with checks, without compilation."""
    kernel, size, read = _load_kernel(case, files)
    name: Any = case.objective
    # Similarities [SIDE, n] with a target set or existing records, for objectives that need them.
    points = _draw_points(case.n, 0) if name in WITH_SIDE else np.zeros((0, 16))
    other = np.maximum(_draw_points(SIDE, 1) @ points.T, 0)
    existing = np.ascontiguousarray(other.T) if name == "flcg" else None
    make_objective = partial(objectives.build_objective, name, kernel, other, existing, nu=0.5)
    rank, budget, is_ours = OPTIMIZERS[case.optimizer], int(case.budget * case.n), engine == "ours"
    if engine == "submodlib":
        from delift_pipeline.selection.submodlib_optimizer import submodlib_greedy as rank
    if is_ours:
        # A few picks load the compiled loops for this type of kernel.
        rank(make_objective(), WARM_PICKS, np.arange(case.n))
    # Only our time includes making the objective, which reads and checks the kernel.
    objective, start = None if is_ours else make_objective(), _read_clocks()
    if engine == "apricot":
        ranking, seconds = _run_apricot(kernel, budget)
    else:
        objective = objective or make_objective()
        ranking = rank(objective, budget, np.arange(case.n))
        seconds = _read_clocks() - start
    peak, mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, size / (1 << 20)
    assert objective is not None
    return {
        "seconds": seconds[0],
        "cpu_seconds": seconds[1],
        "peak_rss_mib": peak,
        "read_seconds": read,
        "kernel_mib": mib,
        "beyond_kernel_mib": peak - mib,
        "value": objective.value if is_ours else objectives.evaluate(objective, ranking.picks),
        "computed": ranking.computed,
        "picks": ranking.picks.tolist() if case.n <= 5_000 else None,
        "gains": ranking.gains.tolist() if case.n <= 5_000 else None,
    }


def main(case: Case, folder: Path, engine: str) -> None:
    """Write a case's kernel into a folder, or measure an engine on it and print a line of JSON."""
    names = ("rows", "data") if case.storage == "sparse" else ("single",)
    names = ("half",) if "half" in case.storage else names
    files = [folder / f"{case.n}-{name}.npy" for name in names]
    if engine == "make":
        _write_kernel(case, files)
    else:
        print(json.dumps(_measure(case, files, engine)))


if __name__ == "__main__":
    main(Case(*json.loads(sys.argv[1])), Path(sys.argv[2]), sys.argv[3])
