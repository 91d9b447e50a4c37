"""Progress of long work: a bar on a terminal, plain lines elsewhere, silence on request."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

LINE_EVERY_SECONDS = 30.0
LARGE = 20_000
"""Above this many records the work before scoring takes long enough to be announced."""


class Meter(Protocol):
    """One piece of work being measured."""

    def advance(self, amount: int = 1) -> None:
        """Say that `amount` more units are done."""
        ...


class Progress(Protocol):
    """Where the progress of long work is shown."""

    def track(self, name: str, total: int, unit: str) -> AbstractContextManager[Meter]:
        """A context in which `total` units of work named `name` are done."""
        ...

    def say(self, line: str) -> None:
        """Show one line."""
        ...


class _Silent:
    def advance(self, amount: int = 1) -> None:
        return


class SilentProgress:
    """Shows nothing."""

    @contextmanager
    def track(self, name: str, total: int, unit: str) -> Iterator[Meter]:
        """A meter that shows nothing."""
        yield _Silent()

    def say(self, line: str) -> None:
        """Show nothing."""


def tracked(progress: Progress, name: str, total: int, unit: str) -> AbstractContextManager[Meter]:
    """A context of work that is quick, and so not shown, up to `LARGE` units."""
    return (progress if total > LARGE else SilentProgress()).track(name, total, unit)


class _LineMeter:
    def __init__(
        self, say: Callable[[str], None], name: str, total: int, unit: str, every: float
    ) -> None:
        self.say, self.name, self.total, self.unit, self.every = say, name, total, unit, every
        self.done, self.started, self.last = 0, time.monotonic(), time.monotonic()

    def advance(self, amount: int = 1) -> None:
        self.done += amount
        if time.monotonic() - self.last >= self.every:
            self.last = time.monotonic()
            self.say(self.line())

    def line(self) -> str:
        elapsed = max(time.monotonic() - self.started, 1e-9)
        rate = self.done / elapsed
        left = (self.total - self.done) / rate if rate else float("inf")
        return (
            f"{self.name}: {self.done:,}/{self.total:,} {self.unit}, {rate:,.1f} {self.unit}/s, "
            f"{left:,.0f} s left"
        )


class LineProgress:
    """One plain line every `every` seconds, and one at the end; for logs and pipes."""

    def __init__(
        self, say: Callable[[str], None] | None = None, every: float = LINE_EVERY_SECONDS
    ) -> None:
        self._say = say or (lambda line: print(line, file=sys.stderr, flush=True))
        self.every = every

    @contextmanager
    def track(self, name: str, total: int, unit: str) -> Iterator[Meter]:
        """A meter whose lines go to `say`."""
        meter = _LineMeter(self._say, name, total, unit, self.every)
        yield meter
        if meter.done:
            seconds = time.monotonic() - meter.started
            self._say(f"{name}: {meter.done:,}/{total:,} {unit} done in {seconds:,.1f} s")

    def say(self, line: str) -> None:
        """Show one line."""
        self._say(line)


class _BarMeter:
    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance

    def advance(self, amount: int = 1) -> None:
        self._advance(amount)


class BarProgress:
    """A bar with count, rate and time left, on a terminal's standard error."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)

    @contextmanager
    def track(self, name: str, total: int, unit: str) -> Iterator[Meter]:
        """A meter shown as a bar."""
        from rich import progress as bars

        started = time.monotonic()
        columns = (
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[rate]}"),
            bars.TextColumn("left"),
            bars.TimeRemainingColumn(),
        )
        with bars.Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(name, total=total, rate="")

            def advance(amount: int) -> None:
                bar.advance(task, amount)
                done = bar.tasks[0].completed
                rate = done / max(time.monotonic() - started, 1e-9)
                bar.update(task, rate=f"{rate:,.1f} {unit}/s")

            yield _BarMeter(advance)

    def say(self, line: str) -> None:
        """Show one line above the bars."""
        self.console.print(line, markup=False, highlight=False)


def progress_for(stream_is_terminal: bool) -> Progress:
    """A bar where a person looks, plain lines where a log does."""
    return BarProgress() if stream_is_terminal else LineProgress()
