"""What vLLM does to the process it starts in, kept from it."""

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def threads_kept() -> Iterator[None]:
    """Keep `torch.set_num_threads`: on a CPU vLLM makes it do nothing, for the whole process."""
    import torch

    own = torch.set_num_threads
    try:
        yield
    finally:
        torch.set_num_threads = own


@contextlib.contextmanager
def llvm_by_its_names() -> Iterator[None]:
    """Make llvmlite's library answer to LLVM's names alone while vLLM starts.

    vLLM asks everything that loaded modules hold for its `__dict__`; this library, which numba
    brings, answers to any name with a function, where ctypes' own libraries have no such names.
    """
    from llvmlite.binding import ffi

    kind: Any = type(ffi.lib)
    own = kind.__getattr__

    def found(library: Any, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return own(library, name)

    kind.__getattr__ = found
    try:
        yield
    finally:
        kind.__getattr__ = own


@contextlib.contextmanager
def uncompiled_on_cpu() -> Iterator[None]:
    """Compile nothing: one small function (ranks, which nobody reads) would take half a minute."""
    import torch
    from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

    if not current_platform.is_cpu():
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
