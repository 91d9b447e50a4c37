"""Sensors: new versions become partitions and runs; scored versions ask for their arms."""

import dagster as dg

from assets.selection import utility_kernel
from delift_pipeline.arms import Arm
from delift_pipeline.errors import DeliftError
from delift_pipeline.jobs import arm_job, score_job, select_job
from delift_pipeline.partitions import dataset_version, partition_of
from delift_pipeline.records.stored import load_version
from delift_pipeline.storage.home import NAME_PATTERN, Home
from resources.store import StoreResource

INBOX_SECONDS = 30
KERNELS_A_TICK = 20


def waiting_versions(home: Home) -> list[str]:
    """Versions that are stored or lie in `inbox/<version>/` whole, by name."""
    dropped = [path.name for path in home.inbox.glob("*/") if any(path.glob("pool.*"))]
    return sorted({*home.versions(), *(name for name in dropped if NAME_PATTERN.fullmatch(name))})


@dg.sensor(
    job=score_job,
    minimum_interval_seconds=INBOX_SECONDS,
    default_status=dg.DefaultSensorStatus.STOPPED,
)
def new_dataset_version_sensor(
    context: dg.SensorEvaluationContext, store: StoreResource
) -> dg.SensorResult | dg.SkipReason:
    """A version that is ingested, or dropped into the inbox, becomes a partition and is scored."""
    known = set(context.instance.get_dynamic_partitions(str(dataset_version.name)))
    new = [version for version in waiting_versions(store.open()) if version not in known]
    if not new:
        return dg.SkipReason("no version that is not a partition yet")
    return dg.SensorResult(
        run_requests=[dg.RunRequest(run_key=name, partition_key=name) for name in new],
        dynamic_partitions_requests=[dataset_version.build_add_request(new)],
    )


@dg.sensor(
    jobs=[select_job, arm_job],
    minimum_interval_seconds=INBOX_SECONDS,
    default_status=dg.DefaultSensorStatus.STOPPED,
)
def applicable_arms_sensor(
    context: dg.SensorEvaluationContext, store: StoreResource
) -> dg.SensorResult | dg.SkipReason:
    """Every new kernel asks for one run per enabled arm that applies to its version.

    Arms are selected; they are trained and evaluated too where arms.yaml says
    `automation: {train: true}`. The cursor is the last kernel seen, so that of several versions
    scored between two ticks none is passed over, as it would be by a sensor on the latest one.
    """
    after = int(context.cursor) if context.cursor else None
    records = context.instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=utility_kernel.key, after_storage_id=after),
        limit=KERNELS_A_TICK,
        ascending=True,
    ).records
    if not records:
        return dg.SkipReason("no new kernel")
    home, arms = store.open(), store.arms()
    job = arm_job if arms.automation.train else select_job
    requests = [
        arm_request(job.name, version, arm, digest)
        for version, digest in map(_kernel_of, records)
        for arm in arms.of_stages(load_version(home, version).stages())
    ]
    return dg.SensorResult(run_requests=requests, cursor=str(records[-1].storage_id))


def _kernel_of(record: dg.EventLogRecord) -> tuple[str, str]:
    """The version a kernel was made for, and the kernel's data version."""
    event = record.asset_materialization
    if event is None or event.partition is None:
        raise DeliftError("a utility_kernel was materialised without a version")
    return event.partition, (event.tags or {}).get("dagster/data_version", "")


def arm_request(job: str, version: str, arm: Arm, digest: str) -> dg.RunRequest:
    """The run of one arm on one version; the same kernel asks for it once."""
    return dg.RunRequest(
        run_key=f"{job}:{version}:{arm.name}:{digest}",
        partition_key=partition_of(version, arm.name),
        job_name=job,
    )


ALL_SENSORS = [
    new_dataset_version_sensor,
    applicable_arms_sensor,
    dg.AutomationConditionSensorDefinition(
        "automation_conditions",
        target=dg.AssetSelection.groups("scoring", "selection", "evaluation")
        - dg.AssetSelection.assets("eval_report"),
        default_status=dg.DefaultSensorStatus.STOPPED,
    ),
]
