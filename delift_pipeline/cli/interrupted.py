"""Runs whose process is gone: they are closed as failed, so that the daemon launches them again."""

from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import dagster as dg

MESSAGE = "the process of this run is gone; what it finished is kept, and it is launched again"
MESSAGE_ALONE = "the process of this run is gone; what it finished is found again by the next run"
FAILURE_CURSOR = "EVENT_LOG_CONSUMER_CURSOR-RUN_FAILURE"
"""Where Dagster's daemon keeps the last failure it has considered for a retry."""
NO_RETRY = {"dagster/max_retries": "0"}
SLACK_SECONDS = 2.0
"""How much later than its own events a process may seem to have started."""


def close_interrupted(instance: "dg.DagsterInstance") -> list[str]:
    """Close every run that is at work by its record and has no process any more.

    Only for a home that no daemon serves: a run which is about to start has no process yet. Slots
    of pools that such runs hold are given back.

    Returns:
        Their ids, oldest first.
    """
    import dagster as dg

    _consider_failures_from_now(instance)
    statuses = [
        dg.DagsterRunStatus.STARTING,
        dg.DagsterRunStatus.STARTED,
        dg.DagsterRunStatus.CANCELING,
    ]
    runs = instance.get_runs(dg.RunsFilter(statuses=statuses))
    gone = [run for run in reversed(runs) if not _is_alive(instance, run.run_id)]
    for run in gone:
        _close(instance, run)
    return [run.run_id for run in gone]


def _close(instance: "dg.DagsterInstance", run: "dg.DagsterRun") -> None:
    import dagster as dg

    if run.status == dg.DagsterRunStatus.CANCELING:
        instance.report_run_canceled(run)
    elif run.remote_job_origin is None:
        # `delift run` executed it: no daemon knows how to launch it.
        instance.add_run_tags(run.run_id, NO_RETRY)
        instance.report_run_failed(run, MESSAGE_ALONE)
    else:
        instance.report_run_failed(run, MESSAGE)
    instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)


def _consider_failures_from_now(instance: "dg.DagsterInstance") -> None:
    """The daemon's first look would pass over all failures before it, these among them."""
    cursors = instance.daemon_cursor_storage
    if cursors.get_cursor_values({FAILURE_CURSOR}).get(FAILURE_CURSOR) is None:
        latest = instance.event_log_storage.get_maximum_record_id() or 0
        cursors.set_cursor_values({FAILURE_CURSOR: str(latest)})


def _is_alive(instance: "dg.DagsterInstance", run_id: str) -> bool:
    """Whether the process that said it executes a run still exists."""
    for entry in instance.all_logs(run_id):
        event = entry.dagster_event
        if event is None or not event.is_engine_event:
            continue
        pid = event.engine_event_data.metadata.get("pid")
        if pid is not None and _exists(int(str(pid.value)), entry.timestamp):
            return True
    return False


def _exists(pid: int, said: float) -> bool:
    """Whether a process is there that started before it said so, and not another of that id."""
    try:
        process = psutil.Process(pid)
        zombie = process.status() == psutil.STATUS_ZOMBIE
        return not zombie and process.create_time() <= said + SLACK_SECONDS
    except psutil.NoSuchProcess:
        return False
