"""The weekly reselection."""

from collections.abc import Iterator

import dagster as dg

from delift_pipeline.jobs import score_job
from delift_pipeline.partitions import add_versions
from delift_pipeline.records.stored import newest_versions
from resources.store import StoreResource

MONDAY_AT_THREE = "0 3 * * 1"


@dg.schedule(
    cron_schedule=MONDAY_AT_THREE,
    job=score_job,
    default_status=dg.DefaultScheduleStatus.STOPPED,
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
