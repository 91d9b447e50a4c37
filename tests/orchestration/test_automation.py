"""Sensors and the schedule, tick by tick, on an ephemeral instance."""

import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from assets.checks import check_specs
from delift_pipeline.core.errors import InputError
from delift_pipeline.core.home import Home
from delift_pipeline.definitions import defs
from delift_pipeline.orchestration.jobs import weekly_reselection_schedule
from delift_pipeline.orchestration.partitions import dataset_version
from delift_pipeline.orchestration.sensors import (
    applicable_arms_sensor,
    busy_versions,
    new_dataset_version_sensor,
)
from delift_pipeline.records.inbox import ingest_from_inbox
from delift_pipeline.records.stored import newest_versions
from delift_pipeline.records.versions import ingest
from resources import StoreResource

VERSIONS = str(dataset_version.name)
ARM = "instruction_tuning.random"


@pytest.fixture
def store(home: Home) -> StoreResource:
    return StoreResource(home=str(home.root))


def write_pool(path: Path, prefix: str, rows: int = 12) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"id": f"{prefix}-{i}", "instruction": f"{prefix} {i}", "output": f"answer {i}"})
        for i in range(rows)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


class Inbox:
    """The sensor of new versions, tick after tick on one instance."""

    def __init__(self, store: StoreResource, instance: dg.DagsterInstance) -> None:
        self.store, self.instance, self.cursor = store, instance, None
        self.keys: list[str] = []

    def tick(self) -> dg.SensorResult:
        context = dg.build_sensor_context(instance=self.instance, cursor=self.cursor)
        result = new_dataset_version_sensor(context, store=self.store)
        assert isinstance(result, dg.SensorResult)
        self.cursor = result.cursor
        for request in result.dynamic_partitions_requests or []:
            self.instance.add_dynamic_partitions(VERSIONS, list(request.partition_keys))
        for event in result.asset_events:
            self.instance.report_runless_asset_event(event)
        return result

    def asked(self) -> list[str]:
        return [str(request.partition_key) for request in self.tick().run_requests or []]

    def start_run(self) -> dg.DagsterRun:
        """The one run that a tick asks for, as the daemon would start it."""
        (request,) = self.tick().run_requests or []
        assert request.run_key not in self.keys  # the daemon would skip it
        self.keys.append(str(request.run_key))
        return self.instance.create_run_for_job(
            defs.resolve_job_def("score_version"),
            tags={"dagster/partition": str(request.partition_key), **request.tags},
            status=dg.DagsterRunStatus.STARTED,
        )

    def skip_reason(self) -> str:
        reason = self.tick().skip_reason
        assert reason is not None
        return str(reason.skip_message)

    @property
    def partitions(self) -> list[str]:
        return list(self.instance.get_dynamic_partitions(VERSIONS))


@pytest.fixture
def inbox(store: StoreResource) -> Iterator[Inbox]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Inbox(store, instance)


class TestNewDatasetVersionSensor:
    def test_dropped_version_becomes_a_partition_and_one_run_at_the_second_tick(
        self, home: Home, inbox: Inbox
    ) -> None:
        write_pool(home.inbox / "alpha-v1" / "pool.jsonl", "alpha")
        write_pool(home.inbox / "beta-v1.jsonl", "beta")
        assert inbox.asked() == [] and inbox.partitions == []
        assert inbox.asked() == ["alpha-v1", "beta-v1"]
        assert inbox.partitions == ["alpha-v1", "beta-v1"]
        assert inbox.asked() == []

    def test_ingested_version_is_seen_at_once_and_known_ones_are_left(
        self, home: Home, inbox: Inbox, tmp_path: Path
    ) -> None:
        ingest(home, write_pool(tmp_path / "a.jsonl", "a"), version="a-v1")
        assert inbox.asked() == ["a-v1"]
        assert inbox.asked() == []

    def test_a_tick_without_requests_says_what_waits_and_why(
        self, home: Home, inbox: Inbox
    ) -> None:
        write_pool(home.inbox / "a-v1.jsonl", "a")
        skipped = inbox.tick().skip_reason
        assert skipped is not None and skipped.skip_message is not None
        assert "a-v1.jsonl: it is still being copied" in skipped.skip_message

    def test_a_bad_name_is_rejected_with_a_failed_check_and_the_next_goes_on(
        self, home: Home, inbox: Inbox
    ) -> None:
        write_pool(home.inbox / "Bad Name.jsonl", "bad")
        write_pool(home.inbox / "good-v1.jsonl", "good")
        assert inbox.asked() == []
        assert inbox.asked() == ["good-v1"]
        rejected = home.inbox / "rejected"
        assert "<dataset>-<version>" in (rejected / "Bad Name.jsonl.faults.txt").read_text()
        key = dg.AssetCheckKey(dg.AssetKey("raw_dataset"), "inbox")
        (failed,) = inbox.instance.event_log_storage.get_asset_check_execution_history(key, limit=5)
        assert failed.status.value == "FAILED"

    def test_a_better_file_under_a_rejected_name_is_asked_for_again(
        self, home: Home, inbox: Inbox
    ) -> None:
        path = write_pool(home.inbox / "a-v1.jsonl", "a")
        inbox.tick()
        assert inbox.asked() == ["a-v1"]
        path.write_text("{broken\n")
        with pytest.raises(InputError):
            ingest_from_inbox(home, "a-v1")
        write_pool(home.inbox / "a-v1.jsonl", "better")
        inbox.tick()
        assert inbox.asked() == ["a-v1"]

    def test_two_versions_at_once_go_in_order_each_after_the_runs_of_the_one_before(
        self, home: Home, inbox: Inbox
    ) -> None:
        write_pool(home.inbox / "a-v1.jsonl", "a", rows=12)
        write_pool(home.inbox / "a-v2.jsonl", "a", rows=15)
        inbox.tick()
        assert inbox.asked() == ["a-v1"]
        ingest_from_inbox(home, "a-v1")
        run = inbox.instance.create_run_for_job(
            defs.resolve_job_def("score_version"),
            tags={"dagster/partition": "a-v1"},
            status=dg.DagsterRunStatus.STARTED,
        )
        assert inbox.asked() == []
        inbox.instance.report_run_failed(run)
        assert inbox.asked() == ["a-v2"]

    @pytest.mark.parametrize("end", ["report_run_canceled", "report_run_failed"])
    def test_a_file_moved_back_after_its_run_ended_is_asked_for_under_a_new_key(
        self, home: Home, inbox: Inbox, end: str
    ) -> None:
        path = write_pool(home.inbox / "a-v1.jsonl", "a")
        inbox.tick()
        run = inbox.start_run()
        ingest_from_inbox(home, "a-v1")
        getattr(inbox.instance, end)(run)
        assert inbox.asked() == []
        (home.inbox / "accepted" / "a-v1.jsonl").rename(path)
        assert inbox.asked() == []
        inbox.start_run()
        assert inbox.asked() == []

    @pytest.mark.parametrize(
        ("end", "said"), [("report_run_canceled", "cancelled"), ("report_run_failed", "failed")]
    )
    def test_what_its_run_left_in_the_inbox_is_asked_for_again_only_once_it_was_moved(
        self, home: Home, inbox: Inbox, end: str, said: str
    ) -> None:
        path = write_pool(home.inbox / "a-v1.jsonl", "a")
        inbox.tick()
        run = inbox.start_run()
        assert run.run_id[:8] in inbox.skip_reason()
        getattr(inbox.instance, end)(run)
        for _ in range(3):
            reason = inbox.skip_reason()
            assert run.run_id[:8] in reason and said in reason and "move it" in reason
        path.rename(home.root / path.name)
        (home.root / path.name).rename(path)  # within one tick
        inbox.start_run()

    def test_what_its_run_left_is_not_asked_for_again_after_its_parent_was_busy(
        self, home: Home, inbox: Inbox, tmp_path: Path
    ) -> None:
        ingest(home, write_pool(tmp_path / "a.jsonl", "a"), version="a-v1")
        inbox.instance.add_dynamic_partitions(VERSIONS, ["a-v1"])
        write_pool(home.inbox / "a-v2.jsonl", "b")
        inbox.tick()
        inbox.instance.report_run_failed(inbox.start_run())
        busy = inbox.instance.create_run_for_job(
            defs.resolve_job_def("score_version"),
            tags={"dagster/partition": "a-v1"},
            status=dg.DagsterRunStatus.STARTED,
        )
        assert busy.run_id[:8] in inbox.skip_reason()
        inbox.instance.report_run_canceled(busy)
        assert "failed" in inbox.skip_reason()

    def test_a_file_waits_while_the_run_that_was_asked_for_is_being_cancelled(
        self, home: Home, inbox: Inbox
    ) -> None:
        path = write_pool(home.inbox / "a-v1.jsonl", "a")
        inbox.tick()
        run = inbox.start_run()
        inbox.instance.report_run_canceling(run)
        path.rename(home.root / path.name)
        (home.root / path.name).rename(path)
        assert "being cancelled" in inbox.skip_reason()
        inbox.instance.report_run_canceled(run)
        inbox.start_run()

    def test_the_tick_says_that_the_run_of_a_file_was_deleted(
        self, home: Home, inbox: Inbox
    ) -> None:
        path = write_pool(home.inbox / "a-v1.jsonl", "a")
        inbox.tick()
        inbox.instance.delete_run(inbox.start_run().run_id)
        assert "deleted" in inbox.skip_reason()
        path.rename(home.root / path.name)
        (home.root / path.name).rename(path)
        assert inbox.asked() == ["a-v1"]

    def test_a_stored_version_whose_partition_was_deleted_is_asked_for_under_a_new_key(
        self, home: Home, inbox: Inbox, tmp_path: Path
    ) -> None:
        ingest(home, write_pool(tmp_path / "a.jsonl", "a"), version="a-v1")
        run = inbox.start_run()
        inbox.instance.report_run_canceled(run)
        inbox.instance.delete_dynamic_partition(VERSIONS, "a-v1")
        inbox.start_run()

    def test_a_run_that_is_being_cancelled_still_holds_back_what_follows(
        self, inbox: Inbox
    ) -> None:
        run = inbox.instance.create_run_for_job(
            defs.resolve_job_def("score_version"),
            tags={"dagster/partition": "a-v1"},
            status=dg.DagsterRunStatus.CANCELING,
        )
        assert run.run_id[:8] in busy_versions(inbox.instance)["a-v1"]

    def test_a_run_of_one_arm_holds_back_the_versions_that_follow(self, inbox: Inbox) -> None:
        inbox.instance.add_dynamic_partitions(VERSIONS, ["a-v1"])
        run = inbox.instance.create_run_for_job(
            defs.resolve_job_def("select_arm"),
            tags={"dagster/partition/version": "a-v1", "dagster/partition/arm": ARM},
            status=dg.DagsterRunStatus.STARTED,
        )
        assert run.run_id[:8] in busy_versions(inbox.instance)["a-v1"]


def requested(
    home: Home, store: StoreResource, *versions: str
) -> list[tuple[str | None, str | None]]:
    """What the sensor asks for in the tick after the kernels of these versions were made."""
    with dg.DagsterInstance.ephemeral() as instance:
        for version in versions:
            instance.report_runless_asset_event(
                dg.AssetMaterialization("utility_kernel", partition=version)
            )
        context = dg.build_sensor_context(instance=instance)
        result = applicable_arms_sensor(context, store=store)
        assert isinstance(result, dg.SensorResult)
        after = dg.build_sensor_context(instance=instance, cursor=result.cursor)
        assert isinstance(applicable_arms_sensor(after, store=store), dg.SkipReason)
    return [(request.job_name, request.partition_key) for request in result.run_requests or []]


def make_kernel(instance: dg.DagsterInstance, version: str, sound: bool) -> None:
    """A run that makes a kernel whose checks pass or fail."""
    checks = check_specs("utility_kernel", dataset_version)

    @dg.asset(name="utility_kernel", partitions_def=dataset_version, check_specs=checks)
    def stand_in() -> dg.MaterializeResult:
        results = [dg.AssetCheckResult(check_name=one.name, passed=sound) for one in checks]
        return dg.MaterializeResult(check_results=results)

    dg.materialize([stand_in], instance=instance, partition_key=version, raise_on_error=False)


class TestApplicableArmsSensor:
    def test_first_version_asks_for_its_instruction_tuning_arms_only(
        self, home: Home, store: StoreResource, tmp_path: Path
    ) -> None:
        ingest(home, write_pool(tmp_path / "a.jsonl", "a"), version="a-v1")
        asked = requested(home, store, "a-v1")
        assert {job for job, _ in asked} == {"select_arm"}
        assert asked and all("instruction_tuning." in str(key) for _, key in asked)
        assert "random" in str(asked[0][1])

    def test_version_with_parent_and_target_asks_for_all_three_stages(
        self, home: Home, store: StoreResource, tmp_path: Path
    ) -> None:
        ingest(home, write_pool(tmp_path / "a.jsonl", "a"), version="a-v1")
        ingest(
            home,
            write_pool(tmp_path / "b.jsonl", "b"),
            version="a-v2",
            parents=("a-v1",),
            target=write_pool(tmp_path / "t.jsonl", "t", rows=3),
        )
        stages = {str(key).split(".")[0] for _, key in requested(home, store, "a-v2")}
        assert stages == {"instruction_tuning", "task_specific", "continual"}

    def test_two_versions_scored_between_two_ticks_are_both_seen(
        self, home: Home, store: StoreResource, tmp_path: Path
    ) -> None:
        ingest(home, write_pool(tmp_path / "a.jsonl", "a"), version="a-v1")
        ingest(home, write_pool(tmp_path / "b.jsonl", "b"), version="b-v1")
        keys = {str(key).split("|")[1] for _, key in requested(home, store, "a-v1", "b-v1")}
        assert keys == {"a-v1", "b-v1"}

    def test_a_kernel_that_failed_its_blocking_check_launches_nothing_over_three_ticks(
        self, home: Home, store: StoreResource, tmp_path: Path
    ) -> None:
        ingest(home, write_pool(tmp_path / "a.jsonl", "a"), version="a-v1")
        asked = []
        for sound in (False, True):
            with dg.DagsterInstance.ephemeral() as instance:
                instance.add_dynamic_partitions(VERSIONS, ["a-v1"])
                make_kernel(instance, "a-v1", sound)
                cursor, requests = None, 0
                for _ in range(3):
                    context = dg.build_sensor_context(instance=instance, cursor=cursor)
                    result = applicable_arms_sensor(context, store=store)
                    if isinstance(result, dg.SensorResult):
                        cursor, requests = result.cursor, requests + len(result.run_requests or [])
            asked.append(requests)
        assert asked == [0, 4]

    def test_a_version_that_repeats_another_asks_for_no_arm(
        self, home: Home, store: StoreResource, tmp_path: Path
    ) -> None:
        pool = write_pool(tmp_path / "a.jsonl", "a", rows=30)
        ingest(home, pool, version="a-v1")
        ingest(home, pool, version="a-v2", parents=("a-v1",))
        assert requested(home, store, "a-v2") == []

    def test_a_version_without_new_records_asks_for_no_continual_arm(
        self, home: Home, store: StoreResource, tmp_path: Path
    ) -> None:
        ingest(home, write_pool(tmp_path / "a.jsonl", "a", rows=30), version="a-v1")
        fewer = write_pool(tmp_path / "fewer.jsonl", "a", rows=20)
        ingest(home, fewer, version="a-v2", parents=("a-v1",))
        asked = requested(home, store, "a-v2")
        assert asked and all("instruction_tuning." in str(key) for _, key in asked)

    def test_training_follows_only_where_automation_trains(
        self, home: Home, store: StoreResource, tmp_path: Path
    ) -> None:
        ingest(home, write_pool(tmp_path / "a.jsonl", "a"), version="a-v1")
        home.arms_file.write_text(
            "automation: {train: true}\n"
            "defaults: {training: {steps: 1}}\n"
            "arms: {instruction_tuning.random: {}}\n"
        )
        assert {job for job, _ in requested(home, store, "a-v1")} == {"finetune_arm"}


def test_weekly_schedule_asks_for_the_newest_version_of_each_data_set(
    home: Home, store: StoreResource, tmp_path: Path
) -> None:
    ingest(home, write_pool(tmp_path / "a.jsonl", "a"), version="a-v1")
    ingest(home, write_pool(tmp_path / "a2.jsonl", "a2"), version="a-v2", parents=("a-v1",))
    ingest(home, write_pool(tmp_path / "b.jsonl", "b"), version="b-v1")
    assert newest_versions(home) == {"a": "a-v2", "b": "b-v1"}
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        time = dt.datetime(2026, 11, 23, 3, tzinfo=dt.UTC)
        context = dg.build_schedule_context(
            instance=instance,
            scheduled_execution_time=time,
            resources={"store": store},
            repository_def=defs.get_repository_def(),
        )
        requests = weekly_reselection_schedule.evaluate_tick(context).run_requests or []
        assert sorted(str(request.partition_key) for request in requests) == ["a-v2", "b-v1"]
        assert set(instance.get_dynamic_partitions(VERSIONS)) == {"a-v1", "a-v2", "b-v1"}
