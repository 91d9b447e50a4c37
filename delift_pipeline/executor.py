"""Executing the steps of a run in one process, so that it can be interrupted at any moment.

Dagster's own executor does not see an interrupt while a step waits for a pool, and waits without a
pause. Steps in processes of their own are left to Dagster's multiprocess executor.
"""

import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from time import sleep
from typing import Any

import dagster as dg
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
from dagster._utils.interrupts import check_captured_interrupt
from dagster_shared.error import SerializableErrorInfo
from sqlalchemy.exc import SQLAlchemyError

from delift_pipeline.run_process import (
    INTERRUPTED,
    close_run,
    free_slots,
    is_launched,
    own_tags,
    process_of,
)

POLL_SECONDS = 1.0
REPORT_SECONDS = 30.0
INTERRUPTS = (KeyboardInterrupt.__name__, DagsterExecutionInterruptedError.__name__)
ENDING = (
    dg.DagsterRunStatus.CANCELING,
    dg.DagsterRunStatus.CANCELED,
    dg.DagsterRunStatus.FAILURE,
)


@dataclass
class _Wait:
    since: float
    report_at: float = 0.0
    """How long it has to last until it is reported again."""


class PoolClaims(InstanceConcurrencyContext):
    """A run's claims of places in pools; while one waits, it says who holds the place."""

    def __init__(self, instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
        super().__init__(instance, run)
        self._waiting: dict[str, _Wait] = {}

    def claim(self, concurrency_key: str, step_key: str, step_priority: int = 0) -> bool:
        """Claim a place for a step; where none is free, return after a pause.

        Raises:
            DagsterExecutionInterruptedError: the process was interrupted.
        """
        if super().claim(concurrency_key, step_key, step_priority):
            self._waiting.pop(step_key, None)
            return True
        self._report(concurrency_key, step_key)
        sleep(POLL_SECONDS)
        if check_captured_interrupt():
            raise DagsterExecutionInterruptedError
        return False

    def _report(self, pool: str, step: str) -> None:
        wait = self._waiting.setdefault(step, _Wait(time.monotonic()))
        waited = time.monotonic() - wait.since
        if waited < wait.report_at:
            return
        if holders := self._living_holders(pool, waited):
            wait.report_at = waited + REPORT_SECONDS
            what = f"{step} waits for a place in the pool {pool}"
            print(f"{what}, held by {holders}; {waited:.0f} s so far", file=sys.stderr, flush=True)

    def _living_holders(self, pool: str, waited: float) -> str:
        """The runs that hold the places of a pool; one whose process is gone is closed."""
        living = []
        for run_id in self._instance.event_log_storage.get_concurrency_info(pool).active_run_ids:
            run = self._instance.get_run_by_id(run_id)
            if run is None:
                free_slots(self._instance, run_id)
                continue
            process = process_of(self._instance, run)
            if process is not None:
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
            with closing(iter(steps)) as events, _interrupted_when_cancelled(instance, run):  # pyright: ignore
                for event in events:
                    yield event
                    if _reports_interrupt(event) or check_captured_interrupt():
                        raise DagsterExecutionInterruptedError
        except (KeyboardInterrupt, DagsterExecutionInterruptedError):
            known = instance.get_run_by_id(run.run_id)
            if known and known.status == dg.DagsterRunStatus.STARTED and not is_launched(run):
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
    if event.is_step_failure:
        error = event.step_failure_data.error
    elif event.is_step_up_for_retry:
        error = event.step_retry_data.error
    else:
        return False
    return any(cause.cls_name in INTERRUPTS for cause in _causes(error))


def _causes(error: SerializableErrorInfo | None) -> Iterator[SerializableErrorInfo]:
    while error is not None:
        yield error
        error = error.cause


@contextmanager
def _interrupted_when_cancelled(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Iterator[None]:
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
    made = create(context)
    if isinstance(made, InProcessExecutor):
        return InterruptibleExecutor(made.retries, made.step_dependency_config)
    return made


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
    run_id = str(uuid.uuid4())
    result = core_execute_in_process(
        job=InMemoryJob(
            ephemeral.with_executor_def(dg.ExecutorDefinition.hardcoded_executor(executor))
        ),
        run_config=run_config,
        instance=instance,
        output_capturing_enabled=True,
        raise_on_error=False,
        run_tags=merge_run_tags(job, partition, own_tags(), None, instance, run_config),
        run_id=run_id,
        asset_selection=frozenset(),
    )
    run = instance.get_run_by_id(run_id)
    if run is None or run.status == dg.DagsterRunStatus.CANCELED:
        raise KeyboardInterrupt
    return result
