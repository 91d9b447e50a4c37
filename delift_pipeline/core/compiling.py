"""Compilation of inner loops with numba, and threads for them."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])
Result = TypeVar("Result")

THREADS = 8
# Values a thread should have to read before it is worth starting.
VALUES_A_THREAD = 500_000


def compiled(function: Function, **options: Any) -> Function:
    """Compile a function that runs without the interpreter lock.

    The machine code is kept on disk where some cache folder can be written. numba compiles again
    when the function's own file changes, so a compiled function calls only others of its file.

    Args:
        function: What is compiled.
        options: Of `numba.njit`.
    """
    import numba

    compile_with: Any = numba.njit
    try:
        return compile_with(function, nogil=True, cache=True, **options)
    except RuntimeError:
        # No folder can be written: compile anew in every process.
        return compile_with(function, nogil=True, **options)


def compiled_sum(function: Function) -> Function:
    """`compiled` with sums in vector order, fixed by their length; NaN keeps its meaning."""
    return compiled(function, fastmath={"reassoc", "nsz"})


class Crew:
    """Threads that share compiled work, started when there is work for more than one.

    Attributes:
        least: Values to be read from which a second thread pays; unreachable with one processor.
    """

    def __init__(self) -> None:
        affinity = getattr(os, "sched_getaffinity", None)
        able = len(affinity(0)) if affinity else os.cpu_count() or 1
        self._able = min(THREADS, able)
        self.least = 2 * VALUES_A_THREAD if self._able > 1 else np.iinfo(np.int64).max
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def share(self, part: Callable[[int, int], Result], count: int, values: int) -> list[Result]:
        """The results of part(start, end) over ranges that make up 0 to `count`.

        Args:
            part: Compiled work, run without the interpreter lock.
            count: Steps in all.
            values: What all steps read.
        """
        threads = max(1, min(self._able, count, values // VALUES_A_THREAD))
        if threads == 1:
            return [part(0, count)]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._able)
        edges = np.linspace(0, count, threads + 1).astype(int).tolist()
        return list(self._pool.map(part, edges[:-1], edges[1:]))
