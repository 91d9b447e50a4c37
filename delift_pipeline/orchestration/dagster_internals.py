"""All use of Dagster's internals: interruptible runs, and closing runs whose process is gone.

This code is written for Dagster 1.13.27. Public interfaces are not enough:

- Dagster's in-process executor does not notice an interrupt while a step waits for a pool, and
  polls without a pause. `InterruptibleExecutor` is that executor with another loop. Steps in
  their own processes use Dagster's multiprocess executor.
- `JobDefinition.execute_in_process` always uses Dagster's own in-process executor.
- No public function shows which run has a slot of a pool, frees a slot, returns a sensor's cursor,
  sets the daemon's cursor, or opens an instance with settings other than those of its file.
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
"""Names the process (id and start time) of a `delift` program that executes a run itself."""
ACTIVE = [Status.STARTING, Status.STARTED, Status.CANCELING]
ACTIVE_OR_CREATED = [Status.NOT_STARTED, *ACTIVE]
ENDING = (Status.CANCELING, Status.CANCELED, Status.FAILURE)
FAILURE_CURSOR = "EVENT_LOG_CONSUMER_CURSOR-RUN_FAILURE"
"""The cursor of Dagster's daemon: the last failure that it considered for a retry."""
POLL_SECONDS = 1.0
REPORT_SECONDS = 30.0
SLACK_SECONDS = 2.0
"""How much later than the event that names it a process may seem to have started."""
NO_RETRY = {"dagster/max_retries": "0"}
RELAUNCHED = "the run's process is gone. Dagster launches the run again and reuses finished work"
GONE = "the run's process is gone. The next run reuses its finished work"
INTERRUPTED_BY_SIGNAL = "a signal ended the run's process. The next run reuses its finished work"


# Find the process of a run, and close runs whose process is gone


def own_run_tags() -> dict[str, str]:
    """Return the tags of a run that this process executes. No daemon may launch it again."""
    process = psutil.Process()
    return {PROCESS_TAG: f"{process.pid} {start_after_boot(process)}", **NO_RETRY}


def start_after_boot(process: psutil.Process) -> float:
    """Return the seconds from boot to the start of a process, which no clock change affects."""
    return round(process.create_time() - psutil.boot_time(), 2)


def is_launched(run: dg.DagsterRun) -> bool:
    """Whether a server launched the run, and not a `delift` program that executes it itself."""
    return run.remote_job_origin is not None


def process_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> psutil.Process | None:
    """Return the process that works on a run, or None if it is gone or not known."""
    if tag := run.tags.get(PROCESS_TAG):
        pid, started = tag.split()
        # A process with this id that started at another time is a different one.
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
    """Record the end of a run whose process is gone or about to exit, and free its slots."""
    if run.status == Status.CANCELING:
        instance.report_run_canceled(run)
    elif not run.is_finished and is_launched(run):
        instance.report_run_failed(run, RELAUNCHED)
    elif not run.is_finished:
        instance.add_run_tags(run.run_id, NO_RETRY)
        instance.report_run_failed(run, GONE)
    free_slots(instance, run.run_id)


def free_slots(instance: dg.DagsterInstance, run_id: str) -> None:
    """Free the slots of pools that a run has, and remove it from the pools' queues."""
    if instance.event_log_storage.supports_global_concurrency_limits:
        instance.event_log_storage.free_concurrency_slots_for_run(run_id)


def runs_without_process(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """Return the runs that are recorded as working but have no process, oldest first."""
    # A server's run may wait long before it starts; ours starts as soon as it is created.
    runs = [
        run
        for run in instance.get_runs(dg.RunsFilter(statuses=ACTIVE_OR_CREATED))
        if run.status in ACTIVE or PROCESS_TAG in run.tags
    ]
    return [run for run in reversed(runs) if process_of(instance, run) is None]


def close_dead_runs(instance: dg.DagsterInstance, *, served: bool = False) -> list[str]:
    """Close every run that is recorded as working but has no process any more.

    The daemon then launches again those that a server had launched. Pool slots of closed and of
    ended runs are freed. `served` means that a `delift ui` is running: the runs that it launched
    are left to it, because such a run has no process until it starts.

    Returns:
        The ids of the closed runs, oldest first.
    """
    storage, cursors = instance.event_log_storage, instance.daemon_cursor_storage
    if not served and FAILURE_CURSOR not in cursors.get_cursor_values({FAILURE_CURSOR}):
        # Without a cursor the daemon would ignore all earlier failures.
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
    """Yield each pool with a queue: its name, the waiting runs, and run -> process of its slots."""
    storage = instance.event_log_storage
    for pool in sorted(storage.get_concurrency_keys()):
        info = storage.get_concurrency_info(pool)
        waiting = sorted(step.run_id for step in info.pending_steps if not step.assigned_timestamp)
        if waiting:
            runs = {one: instance.get_run_by_id(one) for one in sorted(info.active_run_ids)}
            holders = {one: process_of(instance, run) if run else None for one, run in runs.items()}
            yield pool, waiting, holders


def cancel_own_runs(instance: dg.DagsterInstance) -> None:
    """Record the runs of this process as canceled, because the process is about to exit."""
    own = {PROCESS_TAG: own_run_tags()[PROCESS_TAG]}
    for run in instance.get_runs(dg.RunsFilter(tags=own, statuses=ACTIVE_OR_CREATED)):
        instance.report_run_canceled(run, INTERRUPTED_BY_SIGNAL)
        free_slots(instance, run.run_id)


def instance_at(folder: str) -> dg.DagsterInstance:
    """Open the instance of a folder. Its runs print to this program's own output.

    Dagster would copy the output to files with extra processes, and Ctrl-C would end each of them
    with a traceback.
    """
    module = "dagster._core.storage.noop_compute_log_manager"
    overrides = {"compute_logs": {"module": module, "class": "NoOpComputeLogManager"}}
    return dg.DagsterInstance.from_ref(InstanceRef.from_dir(folder, overrides=overrides))


def sensor_cursor(instance: dg.DagsterInstance, name: str) -> tuple[bool, str | None]:
    """Return whether a sensor is switched on, and its cursor."""
    # An ephemeral instance has no schedule storage.
    for state in instance.all_instigator_state() if instance.schedule_storage else ():
        if state.name == name and state.is_running:
            return True, getattr(state.instigator_data, "cursor", None)
    return False, None


# Execute the steps of a run in this process


class PoolClaims(InstanceConcurrencyContext):
    """A run's claims of slots in pools. While a step waits, it reports who has the slots."""

    def __init__(self, instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
        super().__init__(instance, run)
        # Step -> when its wait began, and after how many seconds it is reported again.
        self._waiting: dict[str, tuple[float, float]] = {}

    def claim(self, concurrency_key: str, step_key: str, step_priority: int = 0) -> bool:
        """Claim a slot for a step. If none is free, return False after a pause.

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
            what = f"{step_key} has waited {waited:.0f} s for a slot in the pool {concurrency_key}"
            print(f"{what}, used by {holders}", file=sys.stderr, flush=True)
        sleep(POLL_SECONDS)
        if check_captured_interrupt():
            raise DagsterExecutionInterruptedError
        return False

    def _pool_holders(self, pool: str, waited: float) -> str:
        """Describe the runs that have the slots of a pool; close those whose process is gone."""
        living = []
        for run_id in self._instance.event_log_storage.get_concurrency_info(pool).active_run_ids:
            run = self._instance.get_run_by_id(run_id)
            if run is None:
                free_slots(self._instance, run_id)
            elif process := process_of(self._instance, run):
                living.append(f"run {run_id[:8]} (process {process.pid})")
            elif is_launched(run) and waited < REPORT_SECONDS:
                # The run's server notices this too, and launches it again.
                living.append(f"run {run_id[:8]} (no process)")
            else:
                close_run(self._instance, run)
        return " and ".join(sorted(living))


class InterruptibleExecutor(InProcessExecutor):
    """Executes all steps in this process. An interrupted step is not tried again."""

    def execute(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[DagsterEvent]:
        """Execute a plan and yield the events of its steps.

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
                # Otherwise Dagster would record it as failed, because nobody cancelled it.
                instance.report_run_canceling(run, INTERRUPTED_BY_SIGNAL)
            raise
        finally:
            free_slots(instance, run.run_id)


def _step_events(
    job_context: PlanExecutionContext, execution_plan: ExecutionPlan
) -> Iterator[DagsterEvent]:
    with PoolClaims(job_context.instance, job_context.dagster_run) as claims:
        yield from inner_plan_execution_iterator(job_context, execution_plan, claims)


def _reports_interrupt(event: DagsterEvent) -> bool:
    """Whether an event reports an interrupted step, as failed or as waiting for another try."""
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
    """Interrupt this process when a user cancels or deletes the run in the web interface.

    For the runs that a server launched, the server does so itself.
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
    """Create Dagster's default executor, or the interruptible one for a single process."""
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
    """Execute a job in this process, as `JobDefinition.execute_in_process` does.

    The run's tags name the process, and the run can be interrupted and cancelled.

    Raises:
        KeyboardInterrupt: the run was interrupted or cancelled.
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
        run_tags=merge_run_tags(job, partition, own_run_tags(), None, instance, run_config),
        asset_selection=frozenset(),
    )
    run = instance.get_run_by_id(result.run_id)
    if run is None or run.status == Status.CANCELED:
        raise KeyboardInterrupt
    return result
