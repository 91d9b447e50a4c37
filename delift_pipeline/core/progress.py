"""Progress of long work: a bar on a terminal, plain lines elsewhere, or nothing."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

LINE_EVERY_SECONDS = 30.0
LARGE = 20_000
"""With more records than this, the work before scoring is long enough to show its progress."""


@dataclass(frozen=True)
class Meter:
    """Counts the units of one task. `function` gets the number of units since its last call."""

    function: Callable[[int], object]

    def advance(self, amount: int = 1) -> None:
        """Count `amount` more finished units."""
        self.function(amount)


class Progress(Protocol):
    """Where the progress of long work is shown."""

    def track(self, name: str, total: int, unit: str) -> AbstractContextManager[Meter]:
        """Return a context for a task named `name` with `total` units of work."""
        ...

    def say(self, line: str) -> None:
        """Show one line."""
        ...


class SilentProgress:
    """Shows no progress."""

    @contextmanager
    def track(self, name: str, total: int, unit: str) -> Iterator[Meter]:
        """Yield a meter that shows nothing."""
        yield Meter(lambda amount: None)

    def say(self, line: str) -> None:
        """Show nothing."""


def track_large(
    progress: Progress, name: str, total: int, unit: str
) -> AbstractContextManager[Meter]:
    """Track a task, but show nothing if it has at most `LARGE` units and so is quick."""
    return (progress if total > LARGE else SilentProgress()).track(name, total, unit)


class LineProgress:
    """Shows a plain line every `every` seconds and one at the end, for logs and pipes."""

    def __init__(
        self, say: Callable[[str], None] | None = None, every: float = LINE_EVERY_SECONDS
    ) -> None:
        self._say = say or (lambda line: print(line, file=sys.stderr, flush=True))
        self.every = every

    @contextmanager
    def track(self, name: str, total: int, unit: str) -> Iterator[Meter]:
        """Yield a meter that writes its lines with `say`."""
        started = last = time.monotonic()
        done = 0

        def advance(amount: int) -> None:
            nonlocal done, last
            done, now = done + amount, time.monotonic()
            if now - last >= self.every:
                last = now
                rate = done / max(now - started, 1e-9)
                left = (total - done) / rate if rate else float("inf")
                speed = f"{rate:,.1f} {unit}/s, {left:,.0f} s left"
                self._say(f"{name}: {done:,}/{total:,} {unit}, {speed}")

        yield Meter(advance)
        if done:
            seconds = time.monotonic() - started
            self._say(f"{name}: {done:,}/{total:,} {unit} done in {seconds:,.1f} s")

    def say(self, line: str) -> None:
        """Show one line."""
        self._say(line)


class BarProgress:
    """Shows a bar with count, rate and time left on the standard error of a terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)

    @contextmanager
    def track(self, name: str, total: int, unit: str) -> Iterator[Meter]:
        """Yield a meter that is shown as a bar."""
        from rich import progress as bars

        started = time.monotonic()
        counted = ("{task.description}", bars.BarColumn(), bars.MofNCompleteColumn())
        timed = ("{task.fields[rate]}", "left", bars.TimeRemainingColumn())
        with bars.Progress(*counted, *timed, console=self.console, transient=True) as bar:
            task = bar.add_task(name, total=total, rate="")

            def advance(amount: int) -> None:
                bar.advance(task, amount)
                done = bar.tasks[0].completed
                rate = done / max(time.monotonic() - started, 1e-9)
                bar.update(task, rate=f"{rate:,.1f} {unit}/s")

            yield Meter(advance)

    def say(self, line: str) -> None:
        """Show one line above the bars."""
        self.console.print(line, markup=False, highlight=False)
