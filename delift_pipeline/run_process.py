"""Which process works on a run, whether it lives, and how a run without one is closed."""

from collections.abc import Callable, Iterator

import dagster as dg
import psutil

PROCESS_TAG = "delift/process"
"""Process id and start of the `delift` program that executes a run itself."""
AT_WORK = [
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
SLACK_SECONDS = 2.0
"""How much later than its own record of it a process may seem to have started."""
NO_RETRY = {"dagster/max_retries": "0"}
MESSAGE = "the process of this run is gone; what it finished is kept, and it is launched again"
MESSAGE_ALONE = "the process of this run is gone; what it finished is found again by the next run"
INTERRUPTED = "a signal ended the process of this run; what it finished is kept"


def own_tags() -> dict[str, str]:
    """The tags of a run that this process executes itself: no daemon may launch it again."""
    process = psutil.Process()
    return {PROCESS_TAG: f"{process.pid} {start_after_boot(process)}", **NO_RETRY}


def start_after_boot(process: psutil.Process) -> float:
    """Seconds from the boot to the start of a process; setting the clock does not change them."""
    return round(process.create_time() - psutil.boot_time(), 2)


def is_launched(run: dg.DagsterRun) -> bool:
    """Whether a server launched the run, and not a `delift` program that executes it itself."""
    return run.remote_job_origin is not None


def process_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> psutil.Process | None:
    """The process that works on a run; None if it is gone or not known."""
    if tag := run.tags.get(PROCESS_TAG):
        pid, started = tag.split()
        # A process that started at another time only has the id of the one that is gone.
        return _living(int(pid), lambda one: abs(start_after_boot(one) - float(started)) < 0.05)
    for pid, recorded in _recorded_processes(instance, run):
        process = _living(pid, lambda one, at=recorded: one.create_time() <= at + SLACK_SECONDS)
        if process is not None:
            return process
    return None


def _living(pid: int, is_same: Callable[[psutil.Process], bool]) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        alive = process.status() != psutil.STATUS_ZOMBIE
        return process if alive and is_same(process) else None
    except psutil.NoSuchProcess:
        return None


def _recorded_processes(
    instance: dg.DagsterInstance, run: dg.DagsterRun
) -> Iterator[tuple[int, float]]:
    """Process ids in a run's events, each with a time at which that process existed."""
    for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        if entry.dagster_event and "pid" in entry.dagster_event.engine_event_data.metadata:
            pid = entry.dagster_event.engine_event_data.metadata["pid"].value
            yield int(str(pid)), entry.timestamp


def close_run(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Record the end of a run whose process is gone or about to end, and free its slots."""
    if run.status == dg.DagsterRunStatus.CANCELING:
        instance.report_run_canceled(run)
    elif not run.is_finished and is_launched(run):
        instance.report_run_failed(run, MESSAGE)
    elif not run.is_finished:
        instance.add_run_tags(run.run_id, NO_RETRY)
        instance.report_run_failed(run, MESSAGE_ALONE)
    free_slots(instance, run.run_id)


def free_slots(instance: dg.DagsterInstance, run_id: str) -> None:
    """Free the places that a run holds in pools, and its places in their queues."""
    if instance.event_log_storage.supports_global_concurrency_limits:
        instance.event_log_storage.free_concurrency_slots_for_run(run_id)


def cancel_own_runs(instance: dg.DagsterInstance) -> None:
    """Record as canceled what this process works on: it is about to end."""
    own = {PROCESS_TAG: own_tags()[PROCESS_TAG]}
    statuses = [dg.DagsterRunStatus.NOT_STARTED, *AT_WORK]
    for run in instance.get_runs(dg.RunsFilter(tags=own, statuses=statuses)):
        instance.report_run_canceled(run, INTERRUPTED)
        free_slots(instance, run.run_id)
