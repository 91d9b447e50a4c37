"""`delift run` ends when it is told to, waits only for living runs, and says for whom."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.events import EngineEventData

from assets.outcome import Check, Outcome
from delift_pipeline.cli.graph import open_instance
from delift_pipeline.core.errors import DeliftError
from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import Manifest
from delift_pipeline.definitions import defs
from delift_pipeline.orchestration import dagster_internals
from delift_pipeline.stages import plan, score

POOL = "gpu"
ENDS_WITHIN_SECONDS = 10


@pytest.fixture
def home(delift: Any, files: Any, tmp_path: Path) -> Home:
    """A home with one version; nothing has run."""
    place = Home.at(tmp_path / "home")
    ingest = ("ingest", files.first_pool, "--version", "v1", "--model", "demo")
    assert delift(*ingest, "--template", "world", "--home", place.root).status == 0
    return place


@contextmanager
def opened(home: Home) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        yield instance


@pytest.fixture(autouse=True)
def no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs need not be planned where none is scored."""
    checks = {"neighbours": Check(True, "none was looked for")}
    made = Outcome(Manifest(kind="plan", content_hash="0" * 32), "plans/v1", checks=checks)
    monkeypatch.setattr(plan, "plan_pairs", lambda *_: None)
    monkeypatch.setattr("assets.scoring.plan_outcome", lambda _: made)


@pytest.fixture
def scoring(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Let something else happen where records are scored alone."""

    def replace(act: Callable[[], None]) -> None:
        def score_version(*_: Any) -> None:
            act()
            raise DeliftError("scoring goes on")

        monkeypatch.setattr(score, "score_version", score_version)

    return replace


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def hold_the_pool(home: Home, pid: int) -> str:
    """A run of a process that holds the one place in the pool; its id."""
    with open_instance(home) as instance:
        run = instance.create_run_for_job(
            defs.resolve_job_def("score_version"), status=dg.DagsterRunStatus.STARTED
        )
        instance.report_engine_event("started", run, EngineEventData.in_process(pid))
        storage = instance.event_log_storage
        storage.set_concurrency_slots(POOL, 1)
        assert storage.claim_concurrency_slot(POOL, run.run_id, "adapter").is_claimed
    return run.run_id


def later(act: Callable[[], Any], when: Callable[[], bool]) -> None:
    """Act in another thread as soon as something is so."""

    def wait() -> None:
        while not when():
            time.sleep(0.1)
        act()

    threading.Thread(target=wait, daemon=True).start()


def waiting_steps(home: Home) -> int:
    with opened(home) as instance:
        return instance.event_log_storage.get_concurrency_info(POOL).pending_step_count


def assert_own_run_ended(home: Home, status: dg.DagsterRunStatus) -> None:
    """The newest run has ended so, no step of it was tried again, and it holds no place."""
    with opened(home) as instance:
        run = instance.get_runs(limit=1)[0]
        assert run.status == status
        of_type = {dg.DagsterEventType.STEP_UP_FOR_RETRY, dg.DagsterEventType.STEP_RESTARTED}
        assert instance.all_logs(run.run_id, of_type=of_type) == []
        assert run.run_id not in instance.event_log_storage.get_concurrency_run_ids()


@pytest.mark.parametrize(("sign", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_and_the_step_is_not_tried_again(
    delift: Any, home: Home, scoring: Any, sign: signal.Signals, status: int
) -> None:
    sent: list[float] = []

    def act() -> None:
        sent.append(time.monotonic())
        os.kill(os.getpid(), sign)
        time.sleep(2 * ENDS_WITHIN_SECONDS)

    scoring(act)
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    answer = delift("run", "--version", "v1", "--home", home.root)
    assert answer.status == status
    assert len(sent) == 1 and time.monotonic() - sent[0] < ENDS_WITHIN_SECONDS
    assert "run the same command again" in answer.err
    assert "Traceback" not in answer.err and answer.out == ""
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert_own_run_ended(home, dg.DagsterRunStatus.CANCELED)


def test_a_signal_that_is_repeated_at_once_does_not_break_the_ending_off(
    delift: Any, home: Home, scoring: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_end = dagster_internals.cancel_own_runs

    def record_slowly(instance: dg.DagsterInstance) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        record_end(instance)

    monkeypatch.setattr(dagster_internals, "cancel_own_runs", record_slowly)

    def act() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(2 * ENDS_WITHIN_SECONDS)

    scoring(act)
    monkeypatch.setattr("delift_pipeline.core.signals.REPEAT_SECONDS", 10.0)
    answer = delift("run", "--version", "v1", "--home", home.root)
    assert answer.status == 143
    assert_own_run_ended(home, dg.DagsterRunStatus.CANCELED)


def test_a_run_that_is_cancelled_in_the_user_interface_ends(
    delift: Any, home: Home, scoring: Any
) -> None:
    def act() -> None:
        with opened(home) as instance:
            instance.report_run_canceling(instance.get_runs(limit=1)[0])
        time.sleep(2 * ENDS_WITHIN_SECONDS)

    scoring(act)
    answer = delift("run", "--version", "v1", "--home", home.root)
    assert answer.status == 130
    assert_own_run_ended(home, dg.DagsterRunStatus.CANCELED)


def test_a_run_of_a_dead_process_is_closed_and_nobody_waits_for_it(
    delift: Any, home: Home, scoring: Any, other: subprocess.Popen[bytes]
) -> None:
    run_id = hold_the_pool(home, other.pid)
    other.kill()
    other.wait()
    scoring(lambda: None)
    answer = delift("run", "--version", "v1", "--home", home.root)
    assert "scoring goes on" in answer.err
    assert f"run {run_id[:8]} was interrupted" in answer.err
    with opened(home) as instance:
        closed = instance.get_run_by_id(run_id)
        assert closed is not None and closed.status == dg.DagsterRunStatus.FAILURE
        assert instance.event_log_storage.get_concurrency_run_ids() == set()


def test_a_waiting_run_says_who_holds_the_pool_and_a_signal_ends_it(
    delift: Any, home: Home, other: subprocess.Popen[bytes]
) -> None:
    run_id = hold_the_pool(home, other.pid)
    later(lambda: os.kill(os.getpid(), signal.SIGINT), lambda: waiting_steps(home) > 0)
    answer = delift("run", "--version", "v1", "--home", home.root)
    assert answer.status == 130
    (waits,) = [line for line in answer.err.splitlines() if " waited " in line]
    assert POOL in waits and run_id[:8] in waits and f"process {other.pid}" in waits
    assert "0 s" in waits
    assert_own_run_ended(home, dg.DagsterRunStatus.CANCELED)
    with opened(home) as instance:
        living = instance.get_run_by_id(run_id)
        assert living is not None and living.status == dg.DagsterRunStatus.STARTED
        assert instance.event_log_storage.get_concurrency_run_ids() == {run_id}


def test_a_waiting_run_goes_on_when_the_process_that_holds_the_pool_dies(
    delift: Any,
    home: Home,
    scoring: Any,
    other: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("delift_pipeline.orchestration.dagster_internals.REPORT_SECONDS", 1.0)
    hold_the_pool(home, other.pid)
    scoring(lambda: None)
    later(other.kill, lambda: waiting_steps(home) > 0 and other.poll() is None)
    later(other.wait, lambda: waiting_steps(home) > 0)
    answer = delift("run", "--version", "v1", "--home", home.root)
    assert other.poll() is not None  # it was killed because a step waited
    assert "scoring goes on" in answer.err


def test_doctor_names_runs_without_a_process_and_the_holder_that_others_wait_for(
    delift: Any, home: Home, other: subprocess.Popen[bytes]
) -> None:
    def notes() -> list[str]:
        found = delift("doctor", "--no-self-test", "--home", home.root, "--json").json
        return [one["note"] for one in found["findings"] if one["name"] == "runs"]

    run_id = hold_the_pool(home, other.pid)
    assert notes() == ["no run was interrupted, and none waits for the GPU"]
    with opened(home) as instance:
        claimed = instance.event_log_storage.claim_concurrency_slot(POOL, "waiting", "adapter")
        assert not claimed.is_claimed
    (waits,) = notes()
    assert "waiting" in waits and run_id[:8] in waits and f"process {other.pid}" in waits
    other.kill()
    other.wait()
    gone, waits = notes()
    assert run_id[:8] in gone and "gone" in gone and "gone" in waits
