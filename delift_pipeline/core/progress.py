"""Progress of long work: a bar on a terminal, plain lines elsewhere, silence on request."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

LINE_EVERY_SECONDS = 30.0
LARGE = 20_000
"""Above this many records the work before scoring takes long enough to be announced."""


@dataclass(frozen=True)
class Meter:
    """One piece of work; `function` takes the number of units done since its last call."""

    function: Callable[[int], object]

    def advance(self, amount: int = 1) -> None:
        """Say that `amount` more units are done."""
        self.function(amount)


class Progress(Protocol):
    """Where the progress of long work is shown."""

    def track(self, name: str, total: int, unit: str) -> AbstractContextManager[Meter]:
        """A context in which `total` units of work named `name` are done."""
        ...

    def say(self, line: str) -> None:
        """Show one line."""
        ...


class SilentProgress:
    """Shows nothing."""

    @contextmanager
    def track(self, name: str, total: int, unit: str) -> Iterator[Meter]:
        """A meter that shows nothing."""
        yield Meter(lambda amount: None)

    def say(self, line: str) -> None:
        """Show nothing."""


def track_large(
    progress: Progress, name: str, total: int, unit: str
) -> AbstractContextManager[Meter]:
    """A context of work that is quick, and so not shown, up to `LARGE` units."""
    return (progress if total > LARGE else SilentProgress()).track(name, total, unit)


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
    """A bar with count, rate and time left, on a terminal's standard error."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)

    @contextmanager
    def track(self, name: str, total: int, unit: str) -> Iterator[Meter]:
        """A meter shown as a bar."""
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
