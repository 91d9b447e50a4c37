"""What `delift doctor` says of the runs of a home: those without a process, and those that wait."""

import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from delift_pipeline.cli.interrupted import is_served, runs_without_process
from delift_pipeline.operations.doctor import Finding
from delift_pipeline.storage.home import Home

if TYPE_CHECKING:
    import dagster as dg

NAME = "runs"


def runs(home: Home) -> Iterator[Finding]:
    """Runs whose process is gone, and runs that wait for a place in a pool; changes nothing."""
    if not ((home.dagster / "dagster.yaml").is_file() and os.access(home.dagster, os.W_OK)):
        return  # Dagster cannot open its databases where it cannot write.
    import dagster as dg

    logging.getLogger("dagster").setLevel(logging.ERROR)
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        findings = [*_interrupted(home, instance), *_waiting(instance)]
    yield from findings or [Finding(NAME, "ok", "none was interrupted, none waits for a pool")]


def _interrupted(home: Home, instance: "dg.DagsterInstance") -> Iterator[Finding]:
    from delift_pipeline.run_process import is_launched

    gone = runs_without_process(instance)
    served = any(is_launched(run) for run in gone) and is_served(home)
    for run in gone:
        if not (served and is_launched(run)):
            note = f"run {run.run_id[:8]} ({run.job_name}) was interrupted: its process is gone"
            todo = "the next `delift run` or `delift ui` closes it and goes on with its work"
            yield Finding(NAME, "warning", note, todo)


def _waiting(instance: "dg.DagsterInstance") -> Iterator[Finding]:
    from delift_pipeline.run_process import process_of

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
        note = f"run {names} waits for a place in the pool {pool}, held by {held}"
        yield Finding(NAME, "warning", note, todo)
