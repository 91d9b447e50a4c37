"""Compilation of inner loops with numba."""

from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def compile_function(function: Function, **options: Any) -> Function:
    """Compile a function with numba, so that it runs without the interpreter lock.

    The machine code is cached on disk if a cache folder can be written. numba compiles again only
    when the function's own file changes, so a compiled function must call no compiled function of
    another file. `options` are those of `numba.njit`.
    """
    import numba

    compile_with: Any = numba.njit
    try:
        return compile_with(function, nogil=True, cache=True, **options)
    except RuntimeError:
        # No cache folder can be written, so every process compiles for itself.
        return compile_with(function, nogil=True, **options)


def compile_sum(function: Function) -> Function:
    """Compile with vectorised sums, whose order depends on their length alone. NaN stays NaN."""
    return compile_function(function, fastmath={"reassoc", "nsz"})
