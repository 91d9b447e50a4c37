"""A signal ends a process within a bounded time, even in the middle of a call into C."""

import signal
import subprocess
import sys
import time

import pytest

from delift_pipeline.core.signals import SignalWatch

# A call of minutes that lets other threads run, and no Python handler.
PROGRAM = """
import hashlib, signal, sys
from delift_pipeline.core import signals
signals.GRACE_SECONDS = {grace}
signals.REPEAT_SECONDS = 0.1
for sign in signals.SIGNALS:
    signal.signal(sign, lambda *_: None)
with signals.SignalWatch(before_exit=lambda: print("closed", flush=True)):
    print("started", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


def started(grace: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(grace=grace)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    return process


@pytest.mark.parametrize(("sign", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_work_that_does_not_end_by_itself_is_ended(sign: signal.Signals, status: int) -> None:
    process = started(grace=0.5)
    process.send_signal(sign)
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (status, "closed\n")


def test_a_second_signal_ends_the_process_without_waiting() -> None:
    process = started(grace=600)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130


def test_the_watch_leaves_nothing_behind() -> None:
    before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)
    with SignalWatch(before_exit=lambda: None) as watch:
        assert signal.set_wakeup_fd(-1) != before
    assert watch.received is None
    assert signal.set_wakeup_fd(before) == before


@pytest.mark.parametrize(("status", "out"), [(130, "said\nfirst\n"), (1, "said\nfirst\nfreed\n")])
def test_an_interrupted_program_ends_without_freeing_its_memory_in_order(
    status: int, out: str
) -> None:
    program = f"""
import atexit
from delift_pipeline.core.signals import exit_with
class Large:
    def __del__(self):
        print("freed")
large = Large()
def run():
    atexit.register(print, "first")
    print("said")
    return {status}
exit_with(run)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (status, out)
