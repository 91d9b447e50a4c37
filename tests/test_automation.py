"""Sensors, the schedule and the conditions, tick by tick, on an ephemeral instance."""

import datetime as dt
import json
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData,
)

from assets.ingest import raw_dataset
from assets.scoring import pair_plan
from delift_pipeline.partitions import dataset_version
from delift_pipeline.records.versions import ingest
from delift_pipeline.schedules import newest_versions, weekly_reselection_schedule
from delift_pipeline.sensors import applicable_arms_sensor, new_dataset_version_sensor
from delift_pipeline.storage.home import Home
from resources.embedder import EmbedderResource
from resources.store import StoreResource

VERSIONS = str(dataset_version.name)


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


def new_versions(store: StoreResource, instance: dg.DagsterInstance) -> dg.SensorResult | None:
    context = dg.build_sensor_context(instance=instance)
    result = new_dataset_version_sensor(context, store=store)
    return result if isinstance(result, dg.SensorResult) else None


class TestNewDatasetVersionSensor:
    def test_dropped_version_becomes_a_partition_and_one_run(
        self, home: Home, store: StoreResource
    ) -> None:
        write_pool(home.inbox / "alpha-v1" / "pool.jsonl", "alpha")
        with dg.DagsterInstance.ephemeral() as instance:
            result = new_versions(store, instance)
        assert result is not None
        assert [(r.run_key, r.partition_key) for r in result.run_requests or []] == [
            ("alpha-v1", "alpha-v1")
        ]
        (request,) = result.dynamic_partitions_requests or []
        assert list(request.partition_keys) == ["alpha-v1"]

    def test_ingested_version_is_seen_too_and_known_ones_are_left(
        self, home: Home, store: StoreResource, tmp_path: Path
    ) -> None:
        ingest(home, write_pool(tmp_path / "a.jsonl", "a"), version="a-v1")
        with dg.DagsterInstance.ephemeral() as instance:
            assert new_versions(store, instance) is not None
            instance.add_dynamic_partitions(VERSIONS, ["a-v1"])
            assert new_versions(store, instance) is None

    def test_folder_without_a_pool_or_with_a_bad_name_is_left_alone(
        self, home: Home, store: StoreResource
    ) -> None:
        (home.inbox / "empty-v1").mkdir(parents=True)
        write_pool(home.inbox / "Bad Name" / "pool.jsonl", "bad")
        with dg.DagsterInstance.ephemeral() as instance:
            assert new_versions(store, instance) is None


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
        context = dg.build_schedule_context(instance=instance, scheduled_execution_time=time)
        requests = list(weekly_reselection_schedule(context, store=store) or [])  # type: ignore[arg-type, call-overload]
        assert sorted(request.partition_key for request in requests) == ["a-v2", "b-v1"]
        assert set(instance.get_dynamic_partitions(VERSIONS)) == {"a-v1", "a-v2", "b-v1"}


class Ticks:
    """Materialisations reported by hand, and what a tick of the conditions then asks for."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance, self.cursor = instance, None
        instance.add_dynamic_partitions(VERSIONS, ["v1"])

    def made(self, data_version: str, sound: bool = True) -> None:
        self.instance.report_runless_asset_event(
            dg.AssetMaterialization(
                "raw_dataset", partition="v1", tags={"dagster/data_version": data_version}
            )
        )
        (record,) = self.instance.fetch_materializations(
            dg.AssetKey("raw_dataset"), limit=1
        ).records
        for name in ("schema", "not_empty", "disjoint"):
            self.instance.report_runless_asset_event(
                dg.AssetCheckEvaluation(
                    asset_key=dg.AssetKey("raw_dataset"),
                    check_name=name,
                    passed=sound,
                    metadata={},
                    target_materialization_data=AssetCheckEvaluationTargetMaterializationData(
                        storage_id=record.storage_id,
                        run_id=record.run_id,
                        timestamp=record.timestamp,
                    ),
                )
            )

    def planned(self) -> None:
        self.instance.report_runless_asset_event(
            dg.AssetMaterialization("pair_plan", partition="v1")
        )

    def tick(self) -> int:
        result = dg.evaluate_automation_conditions(
            dg.Definitions(
                assets=[raw_dataset, pair_plan],
                resources={"store": StoreResource(), "embedder": EmbedderResource()},
            ),
            instance=self.instance,
            cursor=self.cursor,
        )
        self.cursor = result.cursor
        return result.get_num_requested(dg.AssetKey("pair_plan"))


class TestOnNewDataVersion:
    def test_same_content_made_again_asks_for_nothing_and_new_content_asks_once(self) -> None:
        with dg.DagsterInstance.ephemeral() as instance:
            ticks = Ticks(instance)
            assert ticks.tick() == 0
            ticks.made("x")
            assert ticks.tick() == 1
            ticks.planned()
            assert ticks.tick() == 0
            ticks.made("x")
            assert ticks.tick() == 0
            ticks.made("y")
            assert ticks.tick() == 1
            ticks.planned()
            assert ticks.tick() == 0

    def test_failed_blocking_check_launches_nothing_over_three_ticks(self) -> None:
        with dg.DagsterInstance.ephemeral() as instance:
            ticks = Ticks(instance)
            ticks.tick()
            ticks.made("x", sound=False)
            assert [ticks.tick() for _ in range(3)] == [0, 0, 0]
