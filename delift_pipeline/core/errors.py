"""The two kinds of errors: the work failed, or the input was refused."""

import errno
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

PASSING_ERRNOS = {
    errno.EAGAIN, errno.EBUSY, errno.EIO, errno.EINTR, errno.ENOMEM, errno.ENOLCK, errno.ESTALE,
    errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EHOSTUNREACH,
    errno.ENETUNREACH, errno.ENETDOWN,
}  # fmt: skip
"""System errors after which the same call may succeed a little later."""
MEMORY_WORDS = ("out of memory", "allocate memory")


class DeliftError(Exception):
    """The work failed. The command line prints this one sentence and exits with status 1."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with an input, and where.

    Attributes:
        reason: What is wrong and what to do about it.
        file: The file, as the user named it.
        line: The line or row, counted from 1.
        field: The field, option or column.
    """

    reason: str
    file: str | None = None
    line: int | None = None
    field: str | None = None

    def __str__(self) -> str:
        place = self.file or ""
        if self.line is not None:
            place = f"{place}:{self.line}" if place else f"line {self.line}"
        return ": ".join(filter(None, (place, self.field, self.reason)))


class InputError(DeliftError):
    """Input or arguments were refused as a whole, and nothing was written.

    The command line prints one line per fault and exits with status 2. A fault can be passed as
    its reason alone; `field` is then its field.
    """

    def __init__(self, *faults: Fault | str, field: str | None = None) -> None:
        self.faults: tuple[Fault, ...] = tuple(
            fault if isinstance(fault, Fault) else Fault(fault, field=field) for fault in faults
        )
        super().__init__("\n".join(fault_lines(self.faults)))


MOST_LINES, MOST_OF_A_KIND, MOST_KINDS = 20, 5, 10
_DETAIL = re.compile(r"'[^']*'|\d+")


def fault_kind(fault: Fault) -> str:
    """Return field and reason without numbers and quoted texts. Faults of one kind share them."""
    return _DETAIL.sub("…", ": ".join(filter(None, (fault.field, fault.reason))))


def fault_counts(faults: Sequence[Fault]) -> dict[str, int]:
    """Count the faults of each kind, the most frequent first."""
    return dict(Counter(map(fault_kind, faults)).most_common())


def fault_count_lines(faults: Sequence[Fault]) -> list[str]:
    """Return one line for each kind of fault, with its count."""
    counts = fault_counts(faults)
    lines = [f"  {count:,} x {kind}" for kind, count in list(counts.items())[:MOST_KINDS]]
    if len(counts) > MOST_KINDS:
        lines.append(f"  and {len(counts) - MOST_KINDS:,} other reasons")
    return lines


def first_faults(faults: Sequence[Fault]) -> list[Fault]:
    """Return the first faults of each kind, at most 20 in all, in their order."""
    first, seen = list[Fault](), Counter[str]()
    for fault in faults:
        kind = fault_kind(fault)
        seen[kind] += 1
        if seen[kind] <= MOST_OF_A_KIND:
            first.append(fault)
        if len(first) == MOST_LINES:
            break
    return first


def fault_lines(faults: Sequence[Fault]) -> list[str]:
    """Return one line per fault; for more than 20, the first of each kind and the counts."""
    if len(faults) <= MOST_LINES:
        return [str(fault) for fault in faults]
    first = first_faults(faults)
    more = f"and {len(faults) - len(first):,} more faults; by reason:"
    return [*map(str, first), more, *fault_count_lines(faults)]


def may_pass(error: BaseException) -> bool:
    """Whether the same work may succeed on another try: memory, reads, connections.

    Refused input is refused again. The errors that an error was raised from count too.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, InputError):
            return False
        if is_memory_error(cause) or isinstance(cause, TimeoutError | ConnectionError):
            return True
        if isinstance(cause, OSError) and cause.errno in PASSING_ERRNOS:
            return True
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return False


def is_memory_error(error: BaseException) -> bool:
    """Whether a device or this machine is out of memory."""
    # torch's own class is a RuntimeError. Its text is read, so torch need not be imported here.
    message = str(error).lower() if isinstance(error, RuntimeError) else ""
    return isinstance(error, MemoryError) or any(words in message for words in MEMORY_WORDS)


LONGEST_MESSAGE = 500
"""How many characters of an unexpected error's text a message quotes."""


def unexpected_sentence(error: BaseException) -> str:
    """Return the sentence about an error that the code does not expect."""
    words = " ".join(str(error).split())[:LONGEST_MESSAGE]
    return (
        f"{type(error).__name__}: {words}. This was not expected. Run again with --debug for the "
        "traceback, and report it"
    )


_SYSTEM_WORDS = {
    errno.EACCES: "permission is denied. Change its access rights, or choose another place",
    errno.EPERM: "the operating system does not permit this. Choose another place",
    errno.EROFS: "the file system is read-only. Choose another place",
    errno.ENOSPC: "the disk is full. Free some space and run again (`delift gc` lists what can go)",
    errno.EDQUOT: "your disk quota is used up. Free some space and run again",
    errno.ENOENT: "there is no such file or folder",
    errno.EISDIR: "this is a folder, and a file is needed. Name a file",
    errno.ENOTDIR: "a part of this path is a file, and a folder is needed. Choose another place",
    errno.EEXIST: "a file is there, and a folder is needed. Choose another place",
    errno.ENAMETOOLONG: "the name is too long. Choose a shorter one",
    errno.ELOOP: "the links lead in a circle. Choose another place",
    errno.EMFILE: "too many files are open. Raise the limit with `ulimit -n` and run again",
    errno.EIO: "the disk could not be read or written. Check the disk and run again",
}
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")


def system_error(error: BaseException) -> OSError | None:
    """Return the operating system's error that an exception is or quotes, or None.

    Polars and safetensors raise their own exceptions, with the error number in the text.
    """
    if isinstance(error, OSError):
        return error
    match = _RUST_ERROR.search(str(error))
    return OSError(int(match[1]), str(error)) if match else None


def system_sentence(error: OSError) -> str:
    """Return one sentence: what the operating system refused, and what to do about it."""
    words = _SYSTEM_WORDS.get(error.errno or 0) or error.strerror or str(error)
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return ": ".join([*names[-1:], " ".join(words.split())])
