"""The conditions, tick by tick, on an ephemeral instance."""

import json
from pathlib import Path

import dagster as dg
import polars as pl

from assets.checks import check_specs
from assets.ingest import raw_dataset
from assets.scoring import pair_plan
from delift_pipeline.core.home import Home
from delift_pipeline.definitions import defs
from delift_pipeline.graph import build_assets
from delift_pipeline.orchestration.partitions import dataset_version, partition_of
from delift_pipeline.records.versions import ingest
from delift_pipeline.stages.arms import load_arms
from resources import EmbedderResource, StoreResource

VERSIONS = str(dataset_version.name)
ARM = "instruction_tuning.random"
ARMS = load_arms()


class Ticks:
    """Materialisations reported as runs, and what a tick of the conditions then asks for."""

    def __init__(self, instance: dg.DagsterInstance, *versions: str) -> None:
        self.instance, self.cursor = instance, None
        self.versions = versions or ("v1",)
        instance.add_dynamic_partitions(VERSIONS, list(self.versions))

    def made(self, data_version: str, sound: bool = True, version: str = "v1") -> None:
        checks = check_specs("raw_dataset", dataset_version)

        @dg.asset(name="raw_dataset", partitions_def=dataset_version, check_specs=checks)
        def stand_in() -> dg.MaterializeResult:
            results = [dg.AssetCheckResult(check_name=one.name, passed=sound) for one in checks]
            return dg.MaterializeResult(
                data_version=dg.DataVersion(data_version), check_results=results
            )

        dg.materialize(
            [stand_in], instance=self.instance, partition_key=version, raise_on_error=False
        )

    def ran(self, version: str, *, succeeds: bool) -> None:
        """A run of the pair plan that is killed, or that ends well."""

        @dg.asset(name="pair_plan", partitions_def=dataset_version)
        def stand_in() -> None:
            if not succeeds:
                raise RuntimeError("the process is gone")

        dg.materialize(
            [stand_in], instance=self.instance, partition_key=version, raise_on_error=False
        )

    def planned(self) -> None:
        self.instance.report_runless_asset_event(
            dg.AssetMaterialization("pair_plan", partition="v1")
        )

    def tick(self) -> int:
        return len(self.asked())

    def asked(self) -> set[str]:
        """The versions whose pair plan this tick asks for."""
        result = dg.evaluate_automation_conditions(
            dg.Definitions(
                assets=[raw_dataset(ARMS), pair_plan(ARMS)],
                resources={"store": StoreResource(), "embedder": EmbedderResource()},
            ),
            instance=self.instance,
            cursor=self.cursor,
        )
        self.cursor = result.cursor
        return set(result.get_requested_partitions(dg.AssetKey("pair_plan")))  # pyright: ignore


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

    def test_a_failed_check_of_one_version_holds_back_no_other(self) -> None:
        with dg.DagsterInstance.ephemeral() as instance:
            ticks = Ticks(instance, "v1", "v2", "v3")
            ticks.tick()
            ticks.made("x", version="v1")
            ticks.made("y", sound=False, version="v2")
            ticks.made("z", version="v3")
            assert ticks.asked() == {"v1", "v3"}

    def test_a_damaged_version_launches_nothing_after_its_real_checks(
        self, home: Home, tmp_path: Path
    ) -> None:
        rows = [{"instruction": f"say {i}", "output": f"answer {i}"} for i in range(12)]
        file = tmp_path / "pool.jsonl"
        file.write_text("\n".join(map(json.dumps, rows)) + "\n")
        for version in ("a-v1", "b-v1"):
            ingest(home, file, version=version)
        damaged = home.dataset("a-v1") / "pool.parquet"
        pl.read_parquet(damaged).with_columns(pl.col("copies").cast(pl.Int64)).write_parquet(
            damaged
        )
        with dg.DagsterInstance.ephemeral() as instance:
            ticks = Ticks(instance, "a-v1", "b-v1")
            ticks.tick()
            for version in ("b-v1", "a-v1"):
                dg.materialize(
                    [raw_dataset(ARMS)],
                    instance=instance,
                    partition_key=version,
                    resources={"store": StoreResource(home=str(home.root))},
                    raise_on_error=False,
                )
            assert ticks.asked() == {"b-v1"}
            assert [ticks.tick() for _ in range(2)] == [0, 0]

    def test_what_failed_is_left_to_its_retry(self) -> None:
        with dg.DagsterInstance.ephemeral() as instance:
            ticks = Ticks(instance, "v1", "v2")
            ticks.tick()
            for version in ("v1", "v2"):
                ticks.made("x", version=version)
            ticks.ran("v1", succeeds=False)
            assert ticks.asked() == {"v2"}
            ticks.made("y")
            assert ticks.tick() == 0
            ticks.ran("v1", succeeds=True)
            assert ticks.tick() == 0
            ticks.made("z")
            assert ticks.asked() == {"v1"}


class TestOnAnyReport:
    def test_the_leaderboard_is_asked_for_after_a_report_and_not_twice(self) -> None:
        key, cursor, counts = dg.AssetKey("leaderboard"), None, []
        with dg.DagsterInstance.ephemeral() as instance:
            instance.add_dynamic_partitions(VERSIONS, ["v1", "v2"])
            for report in (False, True, False, True):
                if report:
                    instance.report_runless_asset_event(
                        dg.AssetMaterialization("eval_report", partition=partition_of("v1", ARM))
                    )
                result = dg.evaluate_automation_conditions(
                    dg.Definitions(assets=build_assets(ARMS), resources=defs.resources),
                    instance=instance,
                    asset_selection=dg.AssetSelection.assets(key),
                    cursor=cursor,
                )
                cursor = result.cursor
                counts.append(result.get_num_requested(key))
        assert counts == [0, 1, 0, 1]
