"""End a process within seconds of SIGINT or SIGTERM, whatever it is doing."""

import atexit
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE_SECONDS = 5.0
"""How long the work has to end by itself after the first signal."""
REPEAT_SECONDS = 1.0
"""Signals within this time after the first one count as the same signal."""
LAST_SECONDS = 2.0
"""How long `before_exit` may take."""
_CLOSE = 0


class SignalWatch:
    """Watches for SIGINT and SIGTERM, and ends the process if the work does not end in time.

    Python calls signal handlers between two instructions of the main thread, so a long call into C
    delays them, and Dagster replaces them. The watch is a thread that learns of every signal at
    once; `received` is the first one. A second signal ends the process without waiting. Outside the
    main thread the watch does nothing.
    """

    def __init__(self, before_exit: Callable[[], object]) -> None:
        """Prepare the watch. `before_exit` is called before an exit and has `LAST_SECONDS`."""
        self.received: int | None = None
        self._before_exit = before_exit
        self._heard = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "SignalWatch":
        if threading.current_thread() is threading.main_thread():
            self._read, self._write = os.pipe()
            os.set_blocking(self._write, False)
            self._previous = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._thread is None:
            return
        signal.set_wakeup_fd(self._previous)
        os.write(self._write, bytes([_CLOSE]))
        self._thread.join()
        os.close(self._read)
        os.close(self._write)

    def wait(self, seconds: float) -> int | None:
        """Wait at most `seconds` for the first signal; return it, or None."""
        self._heard.wait(seconds)
        return self.received

    def _watch(self) -> None:
        first = None
        while True:
            left = first and max(0.0, first + GRACE_SECONDS - time.monotonic())
            if not select.select([self._read], [], [], left)[0]:
                self._exit()
            number = os.read(self._read, 1)[0]
            if number == _CLOSE:
                return
            if number not in SIGNALS:
                continue
            if first is None:
                self.received, first = number, time.monotonic()
                self._heard.set()
            elif time.monotonic() - first > REPEAT_SECONDS:
                self._exit()

    def _exit(self) -> None:
        status = exit_status(self.received)
        guard = threading.Timer(LAST_SECONDS, os._exit, [status])
        guard.daemon = True
        guard.start()
        try:
            self._before_exit()
        finally:
            os._exit(status)


def exit_status(number: int | None) -> int:
    """Return the exit status of a process that a signal ended. None counts as SIGINT."""
    return 128 + (number or signal.SIGINT)


def exit_with(run: Callable[[], int]) -> NoReturn:
    """Run a program and exit with the status that it returns.

    After an interrupt the process ends as soon as the `atexit` handlers are done, because freeing
    all memory in order takes seconds when large libraries are loaded.
    """
    status = 0

    def end() -> None:
        if status in map(exit_status, SIGNALS):
            with suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    atexit.register(end)  # the handler that is registered first is called last
    status = run()
    sys.exit(status)
