"""Jobs, the weekly schedule, the executor, and the conditions of automatic materialisation.

Schedules and conditions are off until a user switches them on.
"""

from collections.abc import Iterator

import dagster as dg

from delift_pipeline.orchestration.dagster_internals import interruptible_executor
from delift_pipeline.orchestration.partitions import add_versions
from delift_pipeline.records.stored import newest_versions
from delift_pipeline.stages.arms import AutomationOptions
from resources import StoreResource

SCORED = ["raw_dataset", "pair_plan", "baseline_logprobs", "in_context_logprobs", "utility_kernel"]

score_job = dg.define_asset_job(
    "score_version",
    selection=SCORED,
    description="Ingest a version, plan its pairs, score what is missing, build the kernel.",
)
select_job = dg.define_asset_job(
    "select_arm", selection=["subset"], description="Choose one arm's subset of a scored version."
)
arm_job = dg.define_asset_job(
    "finetune_arm",
    selection=["subset", "adapter", "eval_report"],
    description="Choose one arm's subset of a scored version, fine-tune on it, evaluate.",
)
leaderboard_job = dg.define_asset_job(
    "refresh_leaderboard", selection=["leaderboard"], description="Rebuild the leaderboard."
)

ALL_JOBS = [score_job, select_job, arm_job, leaderboard_job]


# Mondays at three.
@dg.schedule(
    cron_schedule="0 3 * * 1", job=score_job, default_status=dg.DefaultScheduleStatus.STOPPED
)
def weekly_reselection_schedule(
    context: dg.ScheduleEvaluationContext, store: StoreResource
) -> Iterator[dg.RunRequest]:
    """Score what is missing of the newest version of each dataset.

    Stored scores are reused, so a week without changes costs seconds. If the kernel is new, the
    sensor `applicable_arms_sensor` starts its arms.
    """
    home = store.open()
    add_versions(context.instance, home)
    for version in newest_versions(home).values():
        key = f"{version}:{context.scheduled_execution_time:%Y-%m-%d}"
        yield dg.RunRequest(run_key=key, partition_key=version)


ALL_SCHEDULES = [weekly_reselection_schedule]


def retry_policy(options: AutomationOptions) -> dg.RetryPolicy:
    """Return how often a step is tried again after a kill or a failure that may pass.

    The step continues where it stopped. `assets.execution` decides which failures may pass
    (`core.errors.may_pass`). Refused input is never tried again.
    """
    backoff = dg.Backoff.EXPONENTIAL
    return dg.RetryPolicy(options.retries, delay=options.retry_seconds, backoff=backoff)


def build_executor(options: AutomationOptions) -> dg.ExecutorDefinition:
    """Return the default executor of runs. A user can choose another one in the launchpad."""
    config = (
        {"multiprocess": {"max_concurrent": 2}} if options.isolate_steps else {"in_process": {}}
    )
    return interruptible_executor.configured(config)


# Like `eager`, but a parent that was made again with the same content causes no run, and neither
# does a parent whose blocking check failed. An asset that failed last is left to its retries and to
# users: between a killed run and the run that Dagster launches instead, no run is in progress, and
# a tick would launch an additional one.
on_new_data_version = (
    dg.AutomationCondition.eager().replace(
        "newly_updated", dg.AutomationCondition.data_version_changed()
    )
    & dg.AutomationCondition.all_deps_blocking_checks_passed()
    & ~dg.AutomationCondition.execution_failed()
).with_label("on_new_data_version")

# The leaderboard has no partitions, and `eager` would wait until no partition is missing.
on_any_report = (
    dg.AutomationCondition.any_deps_updated() & ~dg.AutomationCondition.in_progress()
).with_label("on_any_report")
