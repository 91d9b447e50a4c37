"""One measurement of `delift bench selection`; prints a line of JSON."""

import json
import resource
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from delift_pipeline.kernel.block import Similarity
from delift_pipeline.kernel.columns import Columns, DenseColumns, SparseColumns
from delift_pipeline.selection import objectives
from delift_pipeline.selection.objectives import Coverage
from delift_pipeline.selection.optimizers import (
    Ranking,
    blocked_greedy,
    lazier_than_lazy_greedy,
    lazy_greedy,
    naive_greedy,
    stochastic_greedy,
)

OPTIMIZERS: dict[str, Any] = {
    "naive": naive_greedy,
    "lazy": lazy_greedy,
    "blocked": blocked_greedy,
    "stochastic": stochastic_greedy,
    "lazier": lazier_than_lazy_greedy,
}
NEIGHBOURS, SIDE, STRIP, WARM_PICKS = 32, 64, 500, 5
WITH_SIDE = ("flmi", "fl1mi", "fl2mi", "flcg")
"""Objectives that read a second kernel."""
# How far a demonstration lies from its own target, against a length of 1 in 16 dimensions.
DISTURBANCE = 0.05


def make(n: int, storage: str, folder: Path) -> None:
    """Write the kernel of a case, unless it is there."""
    files = _files(n, storage, folder)
    if files[0].exists():
        return
    if storage == "sparse":
        rng, shape = np.random.default_rng(0), (n, NEIGHBOURS)
        rows = np.lib.format.open_memmap(files[0], "w+", np.int32, shape)
        data = np.lib.format.open_memmap(files[1], "w+", np.float32, shape)
        for start in range(0, n, 100_000):
            size = min(100_000, n - start)
            far = (rng.standard_cauchy((size, NEIGHBOURS)) * 50).astype(np.int64)
            near = (np.arange(start, start + size)[:, None] + far) % n
            rows[start : start + size] = np.sort(near, axis=1)
            data[start : start + size] = rng.random((size, NEIGHBOURS), np.float32)
        return
    points = _points(n, 0)
    shown = points + DISTURBANCE * np.random.default_rng(2).normal(size=points.shape)
    shown = (shown / np.linalg.norm(shown, axis=1, keepdims=True)).astype(np.float32)
    # The transpose of a row-ordered file is the column-ordered kernel.
    dtype = np.float16 if "half" in storage else np.float32
    stored = np.lib.format.open_memmap(files[0], "w+", dtype, (n, n), fortran_order=True)
    for start in range(0, n, STRIP):
        stored[:, start : start + STRIP] = np.maximum(points @ shown[start : start + STRIP].T, 0)
    stored.flush()


def _files(n: int, storage: str, folder: Path) -> list[Path]:
    single = "half" if "half" in storage else "single"
    names = ("rows", "data") if storage == "sparse" else (single,)
    return [folder / f"{n}-{name}.npy" for name in names]


def _points(n: int, seed: int) -> np.ndarray:
    points = np.random.default_rng(seed).normal(size=(n, 16)).astype(np.float32)
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def _loaded(n: int, storage: str, folder: Path) -> tuple[Columns, int, float]:
    """The kernel, its bytes, and the seconds of one pass over it, in the page cache by then."""
    files = _files(n, storage, folder)
    if storage == "sparse":
        rows, data = (np.load(file).reshape(-1) for file in files)
        start = time.perf_counter()
        rows.max()
        data.max()
        indptr = np.arange(0, NEIGHBOURS * n + 1, NEIGHBOURS)
        return SparseColumns(indptr, rows, data, n), 8 * len(data), time.perf_counter() - start
    _read(files[0])
    seconds, mode = _read(files[0]), "r" if "mapped" in storage else None
    columns: Columns = DenseColumns(np.load(files[0], mmap_mode=mode))
    if "masked" in storage:
        columns = Similarity(columns, None, (np.arange(n), np.arange(n)))
    return columns, files[0].stat().st_size, seconds


def _read(name: Path) -> float:
    """Seconds of reading a whole file into one buffer."""
    buffer, start = bytearray(1 << 24), time.perf_counter()
    with name.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - start


def _ranked(engine: str, objective: Coverage, optimizer: str, budget: int) -> Ranking:
    if engine == "submodlib":
        from delift_pipeline.selection.submodlib_engine import submodlib_greedy

        return submodlib_greedy(objective, budget, np.arange(objective.n))
    return OPTIMIZERS[optimizer](objective, budget, np.arange(objective.n))


def _clocks() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


def _apricot(kernel: Any, budget: int) -> tuple[Ranking, np.ndarray]:
    """Apricot's ranking and its seconds and processor seconds without compilation.

    It compiles anew whenever it fits; what that takes is seen from a fit of few records.
    """
    from apricot import FacilityLocationSelection  # pyright: ignore[reportMissingImports]

    # Its candidates are the rows.
    turned = np.ascontiguousarray(kernel.matrix.T, dtype=np.float64)
    few, chooser, clocks = turned[:50, :50].copy(), None, []
    for matrix, count in ((few, 5), (few, 5), (turned, budget)):
        clocks.append(_clocks())
        chooser = FacilityLocationSelection(count, metric="precomputed", optimizer="lazy")
        chooser.fit(matrix)
    clocks.append(_clocks())
    # The first fit also loads what later ones find in memory.
    _, compilation, whole = np.diff(clocks, axis=0)
    return Ranking(np.array(chooser.ranking), np.array(chooser.gains)), whole - compilation


def measure(
    n: int, storage: str, folder: Path, engine: str, name: str, optimizer: str, budget: int
) -> dict[str, Any]:
    """Time from the loaded kernel to the ranking, checks and all, compiled code loaded before."""
    kernel, size, read = _loaded(n, storage, folder)
    # Similarities [SIDE, n] with records of a target set or existing ones, where they are read.
    points = _points(n, 0) if name in WITH_SIDE else np.zeros((0, 16))
    other = np.maximum(_points(SIDE, 1) @ points.T, 0)
    existing = np.ascontiguousarray(other.T) if name == "flcg" else None
    kind: Any = name
    made = partial(objectives.objective_named, kind, kernel, other, existing, nu=0.5)
    if engine == "ours":
        # A few picks load the compiled loops for this type of kernel.
        _ranked(engine, made(), optimizer, WARM_PICKS)
    # Making the objective, which reads and checks the kernel, is part of our time alone.
    objective = None if engine == "ours" else made()
    if engine == "apricot":
        ranking, spent = _apricot(kernel, budget)
    else:
        start = _clocks()
        objective = objective or made()
        ranking = _ranked(engine, objective, optimizer, budget)
        spent = _clocks() - start
    peak, mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, size / (1 << 20)
    assert objective is not None
    own = engine == "ours"
    return {
        "seconds": spent[0],
        "cpu_seconds": spent[1],
        "peak_rss_mib": peak,
        "read_seconds": read,
        "kernel_mib": mib,
        "beyond_kernel_mib": peak - mib,
        "value": objective.value if own else objectives.evaluate(objective, ranking.picks),
        "computed": ranking.computed,
        "picks": ranking.picks.tolist() if n <= 5_000 else None,
        "gains": ranking.gains.tolist() if n <= 5_000 else None,
    }


def main() -> None:
    """Make the kernel that the arguments name, or measure one engine on it."""
    n, storage, folder, engine, name, optimizer, budget = sys.argv[1:]
    case = int(n), storage, Path(folder)
    if engine == "make":
        make(*case)
    else:
        picks = int(float(budget) * case[0])
        print(json.dumps(measure(*case, engine, name, optimizer, picks)))


if __name__ == "__main__":
    main()
