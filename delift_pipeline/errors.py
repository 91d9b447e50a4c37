"""The two ways work ends badly: it failed, or the input was refused."""

from dataclasses import dataclass


class DeliftError(Exception):
    """The work failed; the command line ends with status 1 and this one sentence."""


@dataclass(frozen=True)
class Fault:
    """One reason for a refusal, with the place it was found.

    Attributes:
        reason: What is wrong and what to do about it.
        file: The file it was found in, as the user named it.
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
        return ": ".join(part for part in (place, self.field, self.reason) if part)


class Refused(DeliftError):
    """Input or arguments were refused whole; status 2, one line a fault, nothing written."""

    def __init__(self, *faults: Fault | str) -> None:
        self.faults: tuple[Fault, ...] = tuple(
            fault if isinstance(fault, Fault) else Fault(fault) for fault in faults
        )
        super().__init__("\n".join(str(fault) for fault in self.faults))
