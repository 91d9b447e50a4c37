"""Sensors: files in the inbox become partitions and runs, and new kernels start their arms' runs.

A failed run becomes an alert: a line in the home's `alerts.jsonl` and, if set, a webhook call.
"""

import datetime as dt
import json
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

import dagster as dg
from dagster import DagsterRunStatus as Status
from filelock import FileLock

from delift_pipeline.core.errors import DeliftError, Fault, InputError
from delift_pipeline.core.home import Home
from delift_pipeline.core.output import json_text
from delift_pipeline.core.validation import check_webhook
from delift_pipeline.orchestration.dagster_internals import ACTIVE_OR_CREATED, sensor_cursor
from delift_pipeline.orchestration.jobs import arm_job, score_job, select_job
from delift_pipeline.orchestration.partitions import (
    PARTITION_TAG,
    dataset_version,
    partition_of,
    version_and_arm_in,
)
from delift_pipeline.records.inbox import InboxEntry, reject_entry, scan_inbox
from delift_pipeline.records.stored import DatasetVersion, load_version
from delift_pipeline.stages.arms import Arm, Arms
from resources import StoreResource

WEBHOOK_VARIABLE = "DELIFT_ALERT_URL"
WEBHOOK_SECONDS = 10.0
TEXT_LIMIT = 2000
LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Alert:
    """One failed run.

    Attributes:
        reason: The message of the failed step, shortened.
        version, arm: The run's partition, if it has one.
        will_retry: Whether Dagster launches the run again.
        time: When the sensor saw the failure, ISO 8601 in UTC.
    """

    job: str
    run_id: str
    reason: str
    version: str | None = None
    arm: str | None = None
    step: str | None = None
    will_retry: bool = False
    time: str = field(default_factory=lambda: dt.datetime.now(dt.UTC).isoformat(timespec="seconds"))

    def as_json(self) -> dict[str, str | bool | None]:
        """Return the alert as it is logged and posted. A chat shows its `text`."""
        what = "/".join(filter(None, (self.version, self.arm))) or "no partition"
        where = f", step {self.step}" if self.step else ""
        text = f"delift: {self.job} of {what} failed{where}: {self.reason[:TEXT_LIMIT]}"
        return {**asdict(self), "reason": self.reason[:TEXT_LIMIT], "text": text}


def send_alert(home: Home, alert: Alert, webhook: str | None) -> str | None:
    """Log an alert and post it to `$DELIFT_ALERT_URL`, else to `webhook`, if one is set.

    The log is the home's `alerts.jsonl`, with one JSON object per line.

    Returns:
        Why the alert could not be posted, or None. A failed post is not an error.
    """
    line, file = json_text(alert.as_json()), home.root / "alerts.jsonl"
    home.root.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f".{file.name}.lock")), file.open("a", encoding="utf-8") as log:
        log.write(f"{line}\n")
    url = os.environ.get(WEBHOOK_VARIABLE) or webhook
    return _post(url, line) if url else None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, because only the address that the user set was checked."""

    def redirect_request(self, *_: object) -> None:
        return None


def _post(url: str, body: str) -> str | None:
    try:
        request = urllib.request.Request(
            check_webhook(url), body.encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=WEBHOOK_SECONDS):
            return None
    except (InputError, urllib.error.URLError, OSError, ValueError) as error:
        # The address may contain a secret, so only the host is shown.
        reason = f"the alert could not be posted to {urlsplit(url).hostname}: {error}"
        LOG.warning(reason)
        return reason


KERNELS_PER_TICK = 20
MAX_FAULTS = 20
ARMS_SENSOR = "applicable_arms_sensor"
RAW_DATASET, UTILITY_KERNEL = dg.AssetKey("raw_dataset"), dg.AssetKey("utility_kernel")
UNFINISHED = [Status.QUEUED, *ACTIVE_OR_CREATED]
SIGNATURE_TAG = "delift/inbox_signature"
"""Names the inbox contents that a run was launched to ingest."""
RETRY_HINT = "to try again, move it out of the inbox and back, or touch it"
WILL_RETRY = "dagster/will_retry"


def new_dataset_version_sensor(
    context: dg.SensorEvaluationContext, store: StoreResource
) -> dg.SensorResult:
    """Turn ingested versions and inbox entries into partitions, and start runs that score them.

    An entry is ready when two ticks saw it unchanged and its parent versions are done. An entry
    whose name cannot be a version is rejected here; the run reads all others and may reject them.
    If a run leaves its entry in the inbox, the next run starts only after a user moved or touched
    the entry, so a failing run does not start again at every tick.
    """
    home, instance = store.open(), context.instance
    known = set(instance.get_dynamic_partitions(str(dataset_version.name)))
    stored = [name for name in home.versions() if name not in known]
    before = json.loads(context.cursor) if context.cursor else {"seen": {}, "asked": {}}
    busy = busy_versions(instance) | dict.fromkeys(stored, "it is scored first")
    scan = scan_inbox(home, before["seen"], busy)
    requests = []
    for version in stored:
        tags = {PARTITION_TAG: version}
        runs = instance.get_runs(dg.RunsFilter(job_name=score_job.name, tags=tags))
        requests.append(dg.RunRequest(run_key=_run_key(version, runs), partition_key=version))
    requested = {name: mark for name, mark in before["asked"].items() if name in scan.seen}
    waiting = [f"{name}: {why}" for name, why in scan.waiting.items()]
    for entry in scan.ready:
        name, mark = entry.path.name, f"{entry.signature}:{entry.arrived}"
        tags = {SIGNATURE_TAG: entry.signature}
        runs = instance.get_runs(dg.RunsFilter(tags=tags))  # newest first
        unfinished = any(run.status in UNFINISHED for run in runs)
        state, again = _describe_state(runs)
        if requested.get(name) == mark or unfinished:
            waiting.append(f"{name}: {state}{'' if unfinished or again else f'; {RETRY_HINT}'}")
            continue
        requested[name] = mark
        if runs:
            context.log.info(f"another run will ingest {name}: {state}")
        key = _run_key(f"{entry.version}:{entry.signature}", runs)
        requests.append(dg.RunRequest(run_key=key, partition_key=entry.version, tags=tags))
    keys = dict.fromkeys(str(one.partition_key) for one in requests)
    new = [name for name in keys if name not in known]
    nothing = "; ".join(waiting) or "there is nothing new in the inbox"
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else dg.SkipReason(nothing),
        dynamic_partitions_requests=[dataset_version.build_add_request(new)] if new else [],
        asset_events=[_reject(home, entry, faults) for entry, faults in scan.faulty],
        cursor=json.dumps({"seen": scan.seen, "asked": requested}),
    )


def _run_key(base: str, runs: Sequence[dg.DagsterRun]) -> str:
    """Return a run key that is new to Dagster as soon as the earlier runs have ended."""
    return f"{base}:{sum(run.is_finished for run in runs)}"


def _describe_state(runs: Sequence[dg.DagsterRun]) -> tuple[str, bool]:
    """Describe the newest run that was launched to ingest an entry.

    Also return whether Dagster launches this run again.
    """
    if not runs:
        return "the run that was to ingest it was deleted", False
    states = {
        Status.CANCELING: "is being cancelled",
        Status.CANCELED: "was cancelled",
        Status.FAILURE: "failed",
        Status.SUCCESS: "has succeeded",
    }
    newest, status = runs[0], runs[0].status
    state = states.get(status, f"is to ingest it ({status.value.lower()})")
    again = status == Status.FAILURE and newest.tags.get(WILL_RETRY) == "true"
    return f"run {newest.run_id[:8]} {state}{' and is launched again' if again else ''}", again


def _reject(home: Home, entry: InboxEntry, faults: list[Fault]) -> dg.AssetCheckEvaluation:
    """Reject an inbox entry, and return a failed check. It names no version: there is none."""
    faults_file = reject_entry(home, entry, faults)
    first = "\n".join(f"- `{fault}`" for fault in faults[:MAX_FAULTS])
    return dg.AssetCheckEvaluation(
        asset_key=RAW_DATASET,
        check_name="inbox",
        passed=False,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{entry.path.name} is rejected: {faults[0].reason}",
        metadata={
            "faults": dg.MetadataValue.int(len(faults)),
            "first faults": dg.MetadataValue.md(first),
            "file": dg.MetadataValue.text(faults_file.relative_to(home.root).as_posix()),
        },
    )


def busy_versions(instance: dg.DagsterInstance) -> dict[str, str]:
    """Return version -> why it cannot be a parent yet: a run works on it, or its arms wait."""
    running, cursor = sensor_cursor(instance, ARMS_SENSOR)
    unseen = _kernels_after(instance, cursor) if running else []
    busy = {_version_and_digest(one)[0]: f"its kernel waits for {ARMS_SENSOR}" for one in unseen}
    for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)):
        version, _ = version_and_arm_in(run.tags)
        if version:
            busy[version] = f"run {run.run_id[:8]} works on it"
    return busy


def applicable_arms_sensor(
    context: dg.SensorEvaluationContext, store: StoreResource
) -> dg.SensorResult | dg.SkipReason:
    """Start one run for each enabled arm that applies to a version with a new kernel.

    A run selects a subset. If arms.yaml has `automation: {train: true}`, it also trains and
    evaluates. The cursor is the last kernel that a tick saw, so no version is missed if several
    kernels are made between two ticks.
    """
    records = _kernels_after(context.instance, context.cursor)
    if not records:
        return dg.SkipReason("no new kernel")
    home, arms = store.open(), store.arms()
    job = arm_job if arms.automation.train else select_job
    requests: list[dg.RunRequest] = []
    for record in records:
        version, digest = _version_and_digest(record)
        if failed := _failed_checks(context.instance, record, version):
            context.log.warning(f"{version} starts no arm: its kernel failed {', '.join(failed)}")
            continue
        dataset = load_version(home, version)
        if same := dataset.manifest.details.get("same_as"):
            context.log.info(f"{version} has the same records as {same}: see the arms of {same}")
        for arm in automatic_arms(dataset, arms):
            # Dagster skips a key that it has seen, so a kernel starts each arm once.
            key = f"{job.name}:{version}:{arm.name}:{digest}"
            partition = partition_of(version, arm.name)
            requests.append(dg.RunRequest(key, partition_key=partition, job_name=job.name))
    return dg.SensorResult(run_requests=requests, cursor=str(records[-1].storage_id))


def automatic_arms(dataset: DatasetVersion, arms: Arms) -> list[Arm]:
    """Return the arms that start automatically, reference arms first.

    There are none for a version that repeats another, and no continual ones without new records.
    """
    if "same_as" in dataset.manifest.details:
        return []
    nothing_new = dataset.manifest.counts["new"] == 0
    stages = [s for s in dataset.stages() if s != "continual" or not nothing_new]
    return arms.of_stages(tuple(stages))


def _kernels_after(instance: dg.DagsterInstance, cursor: str | None) -> list[dg.EventLogRecord]:
    after = int(cursor) if cursor else None
    records = dg.AssetRecordsFilter(UTILITY_KERNEL, after_storage_id=after)
    page = instance.fetch_materializations(records, limit=KERNELS_PER_TICK, ascending=True)
    return list(page.records)


def _version_and_digest(record: dg.EventLogRecord) -> tuple[str, str]:
    """Return the version that a kernel belongs to, and the kernel's data version."""
    event = record.asset_materialization
    if event is None or event.partition is None:
        raise DeliftError("a materialisation of utility_kernel has no version as its partition")
    return event.partition, (event.tags or {}).get("dagster/data_version", "")


def _failed_checks(
    instance: dg.DagsterInstance, record: dg.EventLogRecord, version: str
) -> list[str]:
    """Return the blocking checks that a kernel failed in the run that made it."""
    logs = instance.all_logs(record.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    checks = [e.dagster_event.asset_check_evaluation_data for e in logs if e.dagster_event]
    own = [one for one in checks if (one.asset_key, one.partition) == (UTILITY_KERNEL, version)]
    return [one.check_name for one in own if one.blocking and not one.passed]


def failed_run_alerts(context: dg.RunFailureSensorContext, store: StoreResource) -> None:
    """Log a failed run in the home's alerts.jsonl, and post it to the webhook if one is set."""
    run = context.dagster_run
    version, arm = version_and_arm_in(run.tags)
    # The first step that failed gives the reason.
    step, reason = None, context.failure_event.message or "failed"
    for event in context.get_step_failure_events()[:1]:
        data = event.step_failure_data
        description = data.user_failure_data.description if data.user_failure_data else None
        step, reason = event.step_key, description or (data.error.message if data.error else reason)
    again = run.tags.get(WILL_RETRY) == "true"
    alert = Alert(run.job_name, run.run_id, reason.strip(), version, arm, step, will_retry=again)
    if why := send_alert(store.open(), alert, store.arms().automation.webhook):
        context.log.warning(why)


def build_sensors(seconds: int) -> list[dg.SensorDefinition]:
    """Build all sensors, stopped by default, with at least `seconds` between two evaluations."""
    settings: Any = {
        "minimum_interval_seconds": seconds,
        "default_status": dg.DefaultSensorStatus.STOPPED,
    }
    return [
        dg.sensor(job=score_job, **settings)(new_dataset_version_sensor),
        dg.sensor(jobs=[select_job, arm_job], **settings)(applicable_arms_sensor),
        dg.run_failure_sensor(name="failed_run_alerts", **settings)(failed_run_alerts),
        dg.AutomationConditionSensorDefinition(
            "automation_conditions",
            target=dg.AssetSelection.groups("scoring", "selection", "evaluation")
            - dg.AssetSelection.assets("eval_report"),
            **settings,
        ),
    ]
