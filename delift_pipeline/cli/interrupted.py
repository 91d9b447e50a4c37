"""Runs whose process is gone: they are closed, so that nothing waits for them."""

import logging
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from delift_pipeline.storage.home import Home

if TYPE_CHECKING:
    import dagster as dg

    from delift_pipeline.operations.doctor import Finding

FAILURE_CURSOR = "EVENT_LOG_CONSUMER_CURSOR-RUN_FAILURE"
"""Where Dagster's daemon keeps the last failure it has considered for a retry."""


def serving_lock(home: Home, timeout: float = 0) -> FileLock:
    """The lock that `delift ui` holds while it serves a home."""
    return FileLock(home.dagster / ".serving.lock", timeout=timeout)


def is_served(home: Home) -> bool:
    """Whether a `delift ui` serves the home just now."""
    try:
        with serving_lock(home):
            return False
    except Timeout:
        return True


def close_interrupted(instance: "dg.DagsterInstance", *, served: bool = False) -> list[str]:
    """Close every run that is at work by its record and has no process any more.

    The daemon launches those again that a server had launched. Places in pools that such runs, or
    runs that have ended, still hold are freed.

    Args:
        instance: The home's Dagster instance.
        served: Whether a `delift ui` is running. It looks after the runs that it launched; one
            that is about to start has no process yet.

    Returns:
        The ids of the closed runs, oldest first.
    """
    from delift_pipeline.dagster_internals import close_run, free_slots, is_launched

    cursors = instance.daemon_cursor_storage
    if not served and FAILURE_CURSOR not in cursors.get_cursor_values({FAILURE_CURSOR}):
        # Without a first cursor the daemon would pass over all earlier failures, these among them.
        latest = instance.event_log_storage.get_maximum_record_id() or 0
        cursors.set_cursor_values({FAILURE_CURSOR: str(latest)})
    gone = [run for run in runs_without_process(instance) if not (served and is_launched(run))]
    for run in gone:
        close_run(instance, run)
    for run_id in instance.event_log_storage.get_concurrency_run_ids():
        run = instance.get_run_by_id(run_id)
        if run is None or (run.is_finished and not (served and is_launched(run))):
            free_slots(instance, run_id)
    return [run.run_id for run in gone]


def report_closed(run_ids: list[str]) -> None:
    """Say on standard error which runs were closed."""
    for run_id in run_ids:
        reason = "its process is gone; what it finished is kept"
        print(f"run {run_id[:8]} was interrupted: {reason}", file=sys.stderr, flush=True)


def runs_without_process(instance: "dg.DagsterInstance") -> list["dg.DagsterRun"]:
    """Runs that are at work by their record and have no process, oldest first."""
    import dagster as dg

    from delift_pipeline.dagster_internals import AT_WORK, PROCESS_TAG, process_of

    # A server's run may wait for its start for long; ours is started where it is made.
    statuses = [dg.DagsterRunStatus.NOT_STARTED, *AT_WORK]
    runs = [
        run
        for run in instance.get_runs(dg.RunsFilter(statuses=statuses))
        if run.status in AT_WORK or PROCESS_TAG in run.tags
    ]
    return [run for run in reversed(runs) if process_of(instance, run) is None]


def run_findings(home: Home) -> Iterator["Finding"]:
    """Runs whose process is gone, and runs that wait for a place in a pool; changes nothing."""
    if not ((home.dagster / "dagster.yaml").is_file() and os.access(home.dagster, os.W_OK)):
        return  # Dagster cannot open its databases where it cannot write.
    import dagster as dg

    from delift_pipeline.operations.doctor import Finding

    logging.getLogger("dagster").setLevel(logging.ERROR)
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        warnings = [*_interrupted(home, instance), *_waiting(instance)]
    for note, todo in warnings:
        yield Finding("runs", "warning", note, todo)
    if not warnings:
        yield Finding("runs", "ok", "none was interrupted, none waits for a pool")


def _interrupted(home: Home, instance: "dg.DagsterInstance") -> Iterator[tuple[str, str]]:
    from delift_pipeline.dagster_internals import is_launched

    gone = runs_without_process(instance)
    served = any(is_launched(run) for run in gone) and is_served(home)
    for run in gone:
        if not (served and is_launched(run)):
            note = f"run {run.run_id[:8]} ({run.job_name}) was interrupted: its process is gone"
            yield note, "the next `delift run` or `delift ui` closes it and goes on with its work"


def _waiting(instance: "dg.DagsterInstance") -> Iterator[tuple[str, str]]:
    from delift_pipeline.dagster_internals import process_of

    storage = instance.event_log_storage
    for pool in sorted(storage.get_concurrency_keys()):
        info = storage.get_concurrency_info(pool)
        waiting = sorted(step.run_id for step in info.pending_steps if not step.assigned_timestamp)
        if not waiting:
            continue
        holders, todo = [], "the next `delift run` or `delift ui` frees it"
        for run_id in sorted(info.active_run_ids):
            run = instance.get_run_by_id(run_id)
            process = process_of(instance, run) if run else None
            if process:
                todo = "let it finish, or end its process"
            where = f"process {process.pid}" if process else "its process is gone"
            holders.append(f"run {run_id[:8]} ({where})")
        names = ", ".join(run_id[:8] for run_id in waiting)
        held = " and ".join(holders) or "no run"
        yield f"run {names} waits for a place in the pool {pool}, held by {held}", todo
