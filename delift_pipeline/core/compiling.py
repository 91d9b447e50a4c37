"""Compilation of inner loops with numba."""

from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def compile_function(function: Function, **options: Any) -> Function:
    """Compile a function that runs without the interpreter lock.

    The machine code is kept on disk where some cache folder can be written. numba compiles again
    when the function's own file changes, so a compiled function calls only others of its file.
    The options are those of `numba.njit`.
    """
    import numba

    compile_with: Any = numba.njit
    try:
        return compile_with(function, nogil=True, cache=True, **options)
    except RuntimeError:
        # No folder can be written: compile anew in every process.
        return compile_with(function, nogil=True, **options)


def compile_sum(function: Function) -> Function:
    """Compile with sums in an order that their length alone decides; NaN keeps its meaning."""
    return compile_function(function, fastmath={"reassoc", "nsz"})
