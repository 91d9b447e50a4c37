"""`delift run` and `delift demo` end within ten seconds of SIGINT or SIGTERM."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import NoReturn

import typer

from delift_pipeline.signals import SIGNALS, SignalWatch, exit_status
from delift_pipeline.storage.home import Home

NOTE = "interrupted: what is finished is kept; run the same command again to go on from there"


@contextmanager
def interruptible(home: Home) -> Iterator[None]:
    """Let SIGINT and SIGTERM end the work inside, which shows a bar on a terminal.

    The work ends in order where it can. Where it does not within some seconds, or at a second
    signal, the process ends all the same.

    Raises:
        typer.Exit: a signal came, or someone cancelled the run; the status is 130 or 143.
    """
    if sys.stderr.isatty():
        os.environ["DELIFT_PROGRESS_BAR"] = "1"
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {sign: signal.signal(sign, _interrupt) for sign in SIGNALS}
    try:
        with SignalWatch(before_exit=partial(_record_end, home)) as watch:
            try:
                yield
            except BaseException as error:
                # An interrupt inside a library may come out as an error of that library.
                if not isinstance(error, KeyboardInterrupt) and watch.received is None:
                    raise
                # A repeated signal must not break this off. The watch still hears it.
                for sign in SIGNALS:
                    signal.signal(sign, lambda *_: None)
                _record_end(home)
                raise typer.Exit(exit_status(watch.wait(seconds=1.0))) from None
    finally:
        for sign, handler in previous.items():
            signal.signal(sign, handler)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _record_end(home: Home) -> None:
    """Say what happens next, and cancel the runs of this process."""
    print(NOTE, file=sys.stderr, flush=True)
    if not (home.dagster / "dagster.yaml").is_file():
        return
    import dagster as dg

    from delift_pipeline.dagster_internals import cancel_own_runs

    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        cancel_own_runs(instance)
