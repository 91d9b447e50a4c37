"""Runs whose process is gone are closed; those at work are left alone."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest
from dagster._core.events import EngineEventData
from filelock import FileLock

from delift_pipeline.cli.graph import open_instance
from delift_pipeline.core.home import Home
from delift_pipeline.definitions import defs
from delift_pipeline.orchestration import dagster_internals
from delift_pipeline.orchestration.dagster_internals import (
    FAILURE_CURSOR,
    PROCESS_TAG,
    close_dead_runs,
)


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with open_instance(Home.at(tmp_path / "home")) as opened:
        yield opened


def at_work(instance: dg.DagsterInstance, pid: int) -> dg.DagsterRun:
    """A run that says a process executes it."""
    run = instance.create_run_for_job(
        defs.resolve_job_def("refresh_leaderboard"), status=dg.DagsterRunStatus.STARTED
    )
    said = EngineEventData.in_process(pid)
    instance.report_engine_event("Started process for run", run, said)
    return run


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_only_runs_without_a_process_are_closed_and_their_slots_given_back(
    instance: dg.DagsterInstance,
) -> None:
    gone, working = at_work(instance, dead_process()), at_work(instance, os.getpid())
    storage = instance.event_log_storage
    storage.set_concurrency_slots("gpu", 1)
    assert storage.claim_concurrency_slot("gpu", gone.run_id, "adapter").is_claimed
    assert close_dead_runs(instance) == [gone.run_id]
    statuses = {run.run_id: run.status for run in instance.get_runs()}
    assert statuses[gone.run_id] == dg.DagsterRunStatus.FAILURE
    assert statuses[working.run_id] == dg.DagsterRunStatus.STARTED
    assert storage.get_concurrency_run_ids() == set()
    assert close_dead_runs(instance) == []


def test_a_run_that_no_daemon_launched_is_not_launched_again(
    instance: dg.DagsterInstance,
) -> None:
    run = at_work(instance, dead_process())
    close_dead_runs(instance)
    closed = instance.get_run_by_id(run.run_id)
    assert closed is not None
    assert closed.tags["dagster/will_retry"] == "false"


def test_a_process_that_only_has_the_id_of_a_dead_one_keeps_no_run_alive(
    instance: dg.DagsterInstance,
) -> None:
    run = at_work(instance, dead_process())
    started = dagster_internals.start_after_boot(psutil.Process())
    instance.add_run_tags(run.run_id, {PROCESS_TAG: f"{os.getpid()} {started - 60}"})
    assert close_dead_runs(instance) == [run.run_id]
    run = at_work(instance, dead_process())
    instance.add_run_tags(run.run_id, {PROCESS_TAG: f"{os.getpid()} {started}"})
    assert close_dead_runs(instance) == []


def test_beside_a_running_server_only_runs_that_no_server_launched_are_closed(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = at_work(instance, dead_process())
    monkeypatch.setattr(dagster_internals, "is_launched", lambda _: True)
    assert close_dead_runs(instance, served=True) == []
    monkeypatch.undo()
    assert close_dead_runs(instance, served=True) == [run.run_id]


def test_places_that_ended_or_deleted_runs_still_hold_are_freed(
    instance: dg.DagsterInstance,
) -> None:
    ended, deleted = at_work(instance, os.getpid()), at_work(instance, os.getpid())
    storage = instance.event_log_storage
    storage.set_concurrency_slots("gpu", 2)
    for run in (ended, deleted):
        assert storage.claim_concurrency_slot("gpu", run.run_id, "adapter").is_claimed
    instance.report_run_failed(ended)
    instance.run_storage.delete_run(deleted.run_id)
    assert close_dead_runs(instance) == []
    assert storage.get_concurrency_run_ids() == set()


def test_a_run_whose_cancelling_process_died_counts_as_cancelled(
    instance: dg.DagsterInstance,
) -> None:
    run = at_work(instance, dead_process())
    instance.report_run_canceling(run)
    assert close_dead_runs(instance) == [run.run_id]
    closed = instance.get_run_by_id(run.run_id)
    assert closed is not None and closed.status == dg.DagsterRunStatus.CANCELED


def test_a_home_is_served_once_at_a_time(delift: Any, tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home")
    home.dagster.mkdir(parents=True)
    with closing(socket.socket()) as one, closing(socket.socket()) as other:
        for free in (one, other):
            free.bind(("127.0.0.1", 0))
        ports = [str(free.getsockname()[1]) for free in (one, other)]
    with FileLock(home.dagster / ".serving.lock"):
        options = ("--port", ports[0], "--mlflow-port", ports[1], "--home", home.root)
        (fault,) = delift("ui", *options).faults
    assert "served by another" in fault
    assert [path.name for path in home.root.iterdir()] == ["dagster"]


def test_the_daemon_considers_failures_from_the_first_start_on(
    instance: dg.DagsterInstance,
) -> None:
    close_dead_runs(instance)
    cursors = instance.daemon_cursor_storage.get_cursor_values({FAILURE_CURSOR})
    assert cursors[FAILURE_CURSOR].isdecimal()
    instance.daemon_cursor_storage.set_cursor_values({FAILURE_CURSOR: "7"})
    close_dead_runs(instance)
    assert instance.daemon_cursor_storage.get_cursor_values({FAILURE_CURSOR}) == {
        FAILURE_CURSOR: "7"
    }
