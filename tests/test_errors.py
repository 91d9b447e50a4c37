"""Which failures may pass, and which stay what they are."""

import errno

import pytest

from delift_pipeline.errors import DeliftError, Refused, may_pass


def caused(cause: BaseException) -> DeliftError:
    """An error of ours that was raised from another."""
    try:
        raise DeliftError("the work failed") from cause
    except DeliftError as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        TimeoutError(),
        ConnectionResetError(),
        OSError(errno.EIO, "input/output error"),
        OSError(errno.ESTALE, "stale file handle"),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
    ],
)
def test_memory_reads_and_connections_may_pass_also_as_a_cause(error: BaseException) -> None:
    assert may_pass(error)
    assert may_pass(caused(error))


@pytest.mark.parametrize(
    "error",
    [
        DeliftError("the scores are damaged"),
        Refused("no such version"),
        FileNotFoundError(errno.ENOENT, "no such file"),
        OSError(errno.ENOSPC, "no space left on device"),
        RuntimeError("shapes differ"),
        KeyError("name"),
    ],
)
def test_what_the_same_input_brings_about_again_does_not(error: BaseException) -> None:
    assert not may_pass(error)
    assert not may_pass(caused(error))


def test_a_refusal_stays_one_whatever_it_was_raised_from() -> None:
    refusal = Refused("cannot be read")
    refusal.__cause__ = OSError(errno.EIO, "input/output error")
    assert not may_pass(refusal)


def test_torchs_own_error_counts_as_memory() -> None:
    import torch

    assert may_pass(torch.OutOfMemoryError("CUDA out of memory"))
