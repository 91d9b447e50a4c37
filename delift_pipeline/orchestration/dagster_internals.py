"""What this project needs of Dagster's insides: runs that can be interrupted, and their ends.

Everything here is written for Dagster 1.13.27. Public interfaces cannot do it:

- Dagster's executor for one process does not see an interrupt while a step waits for a pool, and
  waits without a pause. `InterruptibleExecutor` is that executor with another loop. Steps in
  processes of their own are left to Dagster's multiprocess executor.
- `JobDefinition.execute_in_process` always takes Dagster's own executor for one process.
- Nothing public says which run holds a place in a pool, frees such a place, gives the cursor of a
  sensor, sets the daemon's cursor, or opens an instance with settings other than its file's.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from time import sleep
from typing import Any

import dagster as dg
import psutil
from dagster import DagsterRunStatus as Status
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.events import DagsterEvent, EngineEventData
from dagster._core.execution.api import ExecuteRunWithPlanIterable
from dagster._core.execution.context.system import PlanExecutionContext, PlanOrchestrationContext
from dagster._core.execution.context_creation_job import PlanExecutionContextManager
from dagster._core.execution.execute_in_process import core_execute_in_process, merge_run_tags
from dagster._core.execution.plan.execute_plan import inner_plan_execution_iterator
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.in_process import InProcessExecutor
from dagster._core.instance.ref import InstanceRef
from dagster._utils.interrupts import check_captured_interrupt
from sqlalchemy.exc import SQLAlchemyError

INTERRUPTS = (KeyboardInterrupt, DagsterExecutionInterruptedError)
PROCESS_TAG = "delift/process"
"""Process id and start of the `delift` program that executes a run itself."""
AT_WORK = [Status.STARTING, Status.STARTED, Status.CANCELING]
UNENDED = [Status.NOT_STARTED, *AT_WORK]
ENDING = (Status.CANCELING, Status.CANCELED, Status.FAILURE)
FAILURE_CURSOR = "EVENT_LOG_CONSUMER_CURSOR-RUN_FAILURE"
"""Where Dagster's daemon keeps the last failure it has considered for a retry."""
POLL_SECONDS = 1.0
REPORT_SECONDS = 30.0
SLACK_SECONDS = 2.0
"""How much later than its own record of it a process may seem to have started."""
NO_RETRY = {"dagster/max_retries": "0"}
MESSAGE = "the process of this run is gone; what it finished is kept, and it is launched again"
MESSAGE_ALONE = "the process of this run is gone; what it finished is found again by the next run"
INTERRUPTED = "a signal ended the process of this run; what it finished is kept"


# Which process works on a run, whether it lives, and how a run without one is closed


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
        return _find_process(
            int(pid), lambda one: abs(start_after_boot(one) - float(started)) < 0.05
        )
    # The engine's events name processes, each at a time when it existed.
    for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        facts = entry.dagster_event.engine_event_data.metadata if entry.dagster_event else {}
        if "pid" in facts:
            last, pid = entry.timestamp + SLACK_SECONDS, int(str(facts["pid"].value))
            if process := _find_process(pid, lambda one, last=last: one.create_time() <= last):
                return process
    return None


def _find_process(pid: int, is_same: Callable[[psutil.Process], bool]) -> psutil.Process | None:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE and is_same(process):
            return process
    return None


def close_run(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Record the end of a run whose process is gone or about to end, and free its slots."""
    if run.status == Status.CANCELING:
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


def runs_without_process(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """Runs that are at work by their record and have no process, oldest first."""
    # A server's run may wait for its start for long; ours is started where it is made.
    runs = [
        run
        for run in instance.get_runs(dg.RunsFilter(statuses=UNENDED))
        if run.status in AT_WORK or PROCESS_TAG in run.tags
    ]
    return [run for run in reversed(runs) if process_of(instance, run) is None]


def close_dead_runs(instance: dg.DagsterInstance, *, served: bool = False) -> list[str]:
    """Close every run that is at work by its record and has no process any more.

    The daemon launches those again that a server had launched. Places in pools that such runs, or
    runs that have ended, still hold are freed. Where a `delift ui` is running (`served`), it looks
    after the runs that it launched; one that is about to start has no process yet.

    Returns:
        The ids of the closed runs, oldest first.
    """
    storage, cursors = instance.event_log_storage, instance.daemon_cursor_storage
    if not served and FAILURE_CURSOR not in cursors.get_cursor_values({FAILURE_CURSOR}):
        # Without a first cursor the daemon passes over all earlier failures.
        latest = storage.get_maximum_record_id() or 0
        cursors.set_cursor_values({FAILURE_CURSOR: str(latest)})
    gone = [run for run in runs_without_process(instance) if not (served and is_launched(run))]
    for run in gone:
        close_run(instance, run)
    for run_id in storage.get_concurrency_run_ids():
        run = instance.get_run_by_id(run_id)
        if run is None or (run.is_finished and not (served and is_launched(run))):
            free_slots(instance, run_id)
    return [run.run_id for run in gone]


def pool_queues(
    instance: dg.DagsterInstance,
) -> Iterator[tuple[str, list[str], dict[str, psutil.Process | None]]]:
    """Each pool that runs wait for: its name, those runs, and the process of each that holds it."""
    storage = instance.event_log_storage
    for pool in sorted(storage.get_concurrency_keys()):
        info = storage.get_concurrency_info(pool)
        waiting = sorted(step.run_id for step in info.pending_steps if not step.assigned_timestamp)
        if waiting:
            runs = {one: instance.get_run_by_id(one) for one in sorted(info.active_run_ids)}
            holders = {one: process_of(instance, run) if run else None for one, run in runs.items()}
            yield pool, waiting, holders


def cancel_own_runs(instance: dg.DagsterInstance) -> None:
    """Record as canceled what this process works on: it is about to end."""
    own = {PROCESS_TAG: own_tags()[PROCESS_TAG]}
    for run in instance.get_runs(dg.RunsFilter(tags=own, statuses=UNENDED)):
        instance.report_run_canceled(run, INTERRUPTED)
        free_slots(instance, run.run_id)


def instance_at(folder: str) -> dg.DagsterInstance:
    """The instance of a folder, whose runs print to this program's own output.

    Dagster would copy the output to files by programs that a Ctrl-C ends too, each with a
    traceback.
    """
    module = "dagster._core.storage.noop_compute_log_manager"
    overrides = {"compute_logs": {"module": module, "class": "NoOpComputeLogManager"}}
    return dg.DagsterInstance.from_ref(InstanceRef.from_dir(folder, overrides=overrides))


def sensor_cursor(instance: dg.DagsterInstance, name: str) -> tuple[bool, str | None]:
    """Whether a sensor is switched on, and where it is."""
    # An ephemeral instance knows of no sensor.
    for state in instance.all_instigator_state() if instance.schedule_storage else ():
        if state.name == name and state.is_running:
            return True, getattr(state.instigator_data, "cursor", None)
    return False, None


# Executing the steps of a run in one process


class PoolClaims(InstanceConcurrencyContext):
    """A run's claims of places in pools; while one waits, it says who holds the place."""

    def __init__(self, instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
        super().__init__(instance, run)
        # Step -> when its wait began, and how long it lasts until it is reported again.
        self._waiting: dict[str, tuple[float, float]] = {}

    def claim(self, concurrency_key: str, step_key: str, step_priority: int = 0) -> bool:
        """Claim a place for a step; where none is free, return after a pause.

        Raises:
            DagsterExecutionInterruptedError: the process was interrupted.
        """
        if super().claim(concurrency_key, step_key, step_priority):
            self._waiting.pop(step_key, None)
            return True
        since, report_at = self._waiting.setdefault(step_key, (time.monotonic(), 0.0))
        waited = time.monotonic() - since
        if waited >= report_at and (holders := self._pool_holders(concurrency_key, waited)):
            self._waiting[step_key] = since, waited + REPORT_SECONDS
            what = f"{step_key} waits for a place in the pool {concurrency_key}"
            print(f"{what}, held by {holders}; {waited:.0f} s so far", file=sys.stderr, flush=True)
        sleep(POLL_SECONDS)
        if check_captured_interrupt():
            raise DagsterExecutionInterruptedError
        return False

    def _pool_holders(self, pool: str, waited: float) -> str:
        """The runs that hold the places of a pool; one whose process is gone is closed."""
        living = []
        for run_id in self._instance.event_log_storage.get_concurrency_info(pool).active_run_ids:
            run = self._instance.get_run_by_id(run_id)
            if run is None:
                free_slots(self._instance, run_id)
            elif process := process_of(self._instance, run):
                living.append(f"run {run_id[:8]} (process {process.pid})")
            elif is_launched(run) and waited < REPORT_SECONDS:
                # Its server notices too, and launches it again.
                living.append(f"run {run_id[:8]} (no process)")
            else:
                close_run(self._instance, run)
        return " and ".join(sorted(living))


class InterruptibleExecutor(InProcessExecutor):
    """Executes all steps in this process; an interrupted step is not tried again."""

    def execute(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[DagsterEvent]:
        """Execute a plan; yields the events of its steps.

        Raises:
            DagsterExecutionInterruptedError: the process was interrupted.
        """
        instance, run = plan_context.instance, plan_context.dagster_run
        yield DagsterEvent.engine_event(
            plan_context,
            f"Executing steps in process (pid: {os.getpid()})",
            EngineEventData.in_process(os.getpid(), execution_plan.step_keys_to_execute),
        )
        steps = ExecuteRunWithPlanIterable(
            execution_plan=execution_plan,
            iterator=_step_events,
            execution_context_manager=PlanExecutionContextManager(
                job=plan_context.job,
                retry_mode=plan_context.retry_mode,
                execution_plan=execution_plan,
                run_config=plan_context.run_config,
                dagster_run=run,
                instance=instance,
                raise_on_error=plan_context.raise_on_error,
                output_capture=plan_context.output_capture,
                step_dependency_config=self.step_dependency_config,
            ),
        )
        try:
            with closing(iter(steps)) as events, _interrupt_on_cancel(instance, run):  # pyright: ignore
                for event in events:
                    yield event
                    if _reports_interrupt(event) or check_captured_interrupt():
                        raise DagsterExecutionInterruptedError
        except INTERRUPTS:
            known = instance.get_run_by_id(run.run_id)
            if known and known.status == Status.STARTED and not is_launched(run):
                # Dagster would record it as failed, since nobody has cancelled it.
                instance.report_run_canceling(run, INTERRUPTED)
            raise
        finally:
            free_slots(instance, run.run_id)


def _step_events(
    job_context: PlanExecutionContext, execution_plan: ExecutionPlan
) -> Iterator[DagsterEvent]:
    with PoolClaims(job_context.instance, job_context.dagster_run) as claims:
        yield from inner_plan_execution_iterator(job_context, execution_plan, claims)


def _reports_interrupt(event: DagsterEvent) -> bool:
    """Whether an event says that a step failed, or is to be tried again, after an interrupt."""
    error = event.step_failure_data.error if event.is_step_failure else None
    if event.is_step_up_for_retry:
        error = event.step_retry_data.error
    while error is not None:
        if error.cls_name in [kind.__name__ for kind in INTERRUPTS]:
            return True
        error = error.cause
    return False


@contextmanager
def _interrupt_on_cancel(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Iterator[None]:
    """Interrupt this process when someone cancels or deletes the run in the user interface.

    A server does so itself for the runs that it launched.
    """
    if is_launched(run) or not instance.is_persistent:
        yield
        return
    done, main = threading.Event(), threading.get_ident()

    def watch() -> None:
        while not done.wait(POLL_SECONDS):
            try:
                known = instance.get_run_by_id(run.run_id)
            except SQLAlchemyError:
                continue
            if (known is None or known.status in ENDING) and not done.is_set():
                signal.pthread_kill(main, signal.SIGINT)
                return

    threading.Thread(target=watch, name="cancelled", daemon=True).start()
    try:
        yield
    finally:
        done.set()


@dg.executor(
    name=dg.multi_or_in_process_executor.name,
    config_schema=dg.multi_or_in_process_executor.config_schema.as_field(),
    requirements=dg.multi_or_in_process_executor.get_requirements,
)
def interruptible_executor(context: dg.InitExecutorContext) -> dg.Executor:
    """Dagster's default executor, whose runs in one process can be interrupted."""
    create = dg.multi_or_in_process_executor.executor_creation_fn
    assert create is not None
    executor = create(context)
    if isinstance(executor, InProcessExecutor):
        return InterruptibleExecutor(executor.retries, executor.step_dependency_config)
    return executor


def execute_in_process(
    job: dg.JobDefinition,
    instance: dg.DagsterInstance,
    partition: str | None,
    run_config: Mapping[str, Any],
) -> dg.ExecuteInProcessResult:
    """Execute a job in this process, as `JobDefinition.execute_in_process` does it.

    The run bears the process in its tags, and can be interrupted and cancelled.

    Raises:
        KeyboardInterrupt: it was.
    """
    executor = InterruptibleExecutor(RetryMode.ENABLED)
    ephemeral = job.as_ephemeral_job(resource_defs={}, input_values={})
    result = core_execute_in_process(
        job=InMemoryJob(
            ephemeral.with_executor_def(dg.ExecutorDefinition.hardcoded_executor(executor))
        ),
        run_config=run_config,
        instance=instance,
        output_capturing_enabled=True,
        raise_on_error=False,
        run_tags=merge_run_tags(job, partition, own_tags(), None, instance, run_config),
        asset_selection=frozenset(),
    )
    run = instance.get_run_by_id(result.run_id)
    if run is None or run.status == Status.CANCELED:
        raise KeyboardInterrupt
    return result
