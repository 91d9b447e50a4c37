"""When assets are redone by themselves. Everything here is shipped stopped."""

import dagster as dg

from delift_pipeline.orchestration.dagster_internals import interruptible_executor
from delift_pipeline.stages.arms import AutomationOptions


def retry_policy(options: AutomationOptions) -> dg.RetryPolicy:
    """How a step is tried again after its process was killed or a failure that may pass.

    The step goes on where it was. `assets.door` decides which failures may pass
    (`core.errors.may_pass`); a refusal is never tried again.
    """
    backoff = dg.Backoff.EXPONENTIAL
    return dg.RetryPolicy(options.retries, delay=options.retry_seconds, backoff=backoff)


def executor(options: AutomationOptions) -> dg.ExecutorDefinition:
    """How the steps of a run are executed; the launchpad can choose otherwise."""
    config = (
        {"multiprocess": {"max_concurrent": 2}} if options.isolate_steps else {"in_process": {}}
    )
    return interruptible_executor.configured(config)


# As `eager`, but a parent that was made again with the same content asks for nothing, and a parent
# whose blocking check failed launches nothing, in this run or in a later tick. What failed last is
# left to its retries and to people: between a killed run and the run that Dagster launches in its
# place, nothing is in progress, and a tick would launch a third run beside them.
on_new_data_version = (
    dg.AutomationCondition.eager().replace(
        "newly_updated", dg.AutomationCondition.data_version_changed()
    )
    & dg.AutomationCondition.all_deps_blocking_checks_passed()
    & ~dg.AutomationCondition.execution_failed()
).with_label("on_new_data_version")

# An unpartitioned table over all partitions: `eager` would wait until none is missing.
on_any_report = (
    dg.AutomationCondition.any_deps_updated() & ~dg.AutomationCondition.in_progress()
).with_label("on_any_report")
