"""When assets are redone by themselves. Everything here is shipped stopped."""

import dagster as dg

from delift_pipeline.arms import load_arms

_OPTIONS = load_arms().automation

# A step whose process was killed, or whose failure may pass (`errors.may_pass`), is tried again; it
# goes on where it was. Refusals are never tried again.
RETRIES = dg.RetryPolicy(
    max_retries=_OPTIONS.retries,
    delay=_OPTIONS.retry_seconds,
    backoff=dg.Backoff.EXPONENTIAL,
)

# How the steps of a run are executed; the launchpad can choose otherwise.
EXECUTOR = dg.multi_or_in_process_executor.configured(
    {"multiprocess": {"max_concurrent": 2}} if _OPTIONS.isolate_steps else {"in_process": {}}
)

# Least time between two looks of a sensor.
INTERVAL_SECONDS = _OPTIONS.seconds

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
