"""Compilation of inner loops, and when compiled code on disk is still that of its source."""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core.caching import FunctionCache

Function = TypeVar("Function", bound=Callable[..., Any])

_INNER = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}


@cache
def source_digest(folder: Path) -> str:
    """Digest of all Python files of a folder, and of this one, which says how they are compiled."""
    digest = hashlib.sha256()
    for path in (*sorted(folder.glob("*.py")), Path(__file__)):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


class FolderCache(FunctionCache):
    """Compiled code on disk that counts while no file of the function's folder has changed.

    numba itself looks at the function's own file alone, and would go on running what was compiled
    from a former state of another file that the function calls into.
    """

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        folder = Path(self._py_func.__code__.co_filename).parent
        return (*super()._index_key(sig, codegen), source_digest(folder))


def compiled(function: Function, **options: Any) -> Function:
    """Compile without the interpreter lock, kept on disk where some cache folder can be written."""
    compile_with: Any = numba.njit
    dispatcher = compile_with(nogil=True, **options)(function)
    try:
        dispatcher._cache = FolderCache(function)
    except RuntimeError:
        # No folder can be written: compiled anew in every process.
        return dispatcher
    return dispatcher


def entry(function: Function) -> Function:
    """Compile for calls from Python as well, which takes longer: the tuples must be unpacked."""
    return compiled(function)


def jit(function: Function) -> Function:
    """Compile for calls from compiled code, with sums in the order written."""
    return compiled(function, **_INNER)


def jit_sum(function: Function) -> Function:
    """`jit` with sums in vector order, fixed by their length; NaN keeps its meaning."""
    return compiled(function, fastmath={"reassoc", "nsz"}, **_INNER)
