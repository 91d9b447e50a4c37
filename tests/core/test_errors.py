"""Which failures may pass, and which stay what they are."""

import errno

import pytest

from delift_pipeline.core.errors import (
    DeliftError,
    Fault,
    InputError,
    fault_counts,
    fault_lines,
    may_pass,
)


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
        InputError("no such version"),
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
    refusal = InputError("cannot be read")
    refusal.__cause__ = OSError(errno.EIO, "input/output error")
    assert not may_pass(refusal)


def test_torchs_own_error_counts_as_memory() -> None:
    import torch

    assert may_pass(torch.OutOfMemoryError("CUDA out of memory"))


def test_a_long_list_of_faults_shows_the_first_of_each_kind_and_the_counts() -> None:
    empty = [Fault("is empty", "a.jsonl", line, "output") for line in range(1, 10_000)]
    broken = [Fault(f"invalid JSON (column {n})", "a.jsonl", n) for n in (7, 9)]
    lines = fault_lines([*empty, *broken])
    assert len(lines) < 25
    assert lines[:2] == ["a.jsonl:1: output: is empty", "a.jsonl:2: output: is empty"]
    assert str(broken[1]) in lines
    assert any("9,999 x output: is empty" in line for line in lines)
    assert any("2 x invalid JSON" in line for line in lines)
    assert str(InputError(*empty, *broken)).splitlines() == lines
    assert list(fault_counts([*broken, *empty]).values()) == [9_999, 2]


def test_a_short_list_of_faults_is_shown_whole() -> None:
    faults = [Fault("is empty", "a.jsonl", line) for line in range(1, 21)]
    assert fault_lines(faults) == [str(fault) for fault in faults]


def test_many_kinds_of_faults_are_bounded_too() -> None:
    words = [f"{a}{b}" for a in "abcdefgh" for b in "abcdefgh"]
    assert len(fault_lines([Fault(word, "a.jsonl", 1) for word in words])) < 35
