"""Jobs: named parts of the graph to launch from the UI, a schedule or the command line."""

from collections.abc import Iterator

import dagster as dg

from delift_pipeline.orchestration.partitions import add_versions
from delift_pipeline.records.stored import newest_versions
from resources import StoreResource

SCORED = ["pair_plan", "baseline_logprobs", "in_context_logprobs", "utility_kernel"]

score_job = dg.define_asset_job(
    "score_version",
    selection=["raw_dataset", *SCORED],
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
    """Rescan, plan and score what is missing of the newest version of each data set.

    What was scored is found again, so that a week without change costs seconds; a new kernel asks
    for its arms through the sensor.
    """
    home = store.open()
    add_versions(context.instance, home)
    for version in newest_versions(home).values():
        key = f"{version}:{context.scheduled_execution_time:%Y-%m-%d}"
        yield dg.RunRequest(run_key=key, partition_key=version)


ALL_SCHEDULES = [weekly_reselection_schedule]
