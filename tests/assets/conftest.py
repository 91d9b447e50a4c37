"""A small demonstration world, materialised once through the real graph."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import torch
from dagster import AssetCheckEvaluation

from delift_pipeline.core.home import Home
from delift_pipeline.definitions import defs
from delift_pipeline.demo.dataset import DemoFiles, DemoSizes, write_demo_files
from delift_pipeline.graph import build_assets
from delift_pipeline.orchestration.partitions import add_versions, dataset_version, partition_of
from delift_pipeline.records.versions import ingest
from delift_pipeline.stages.arms import load_arms

SIZES = DemoSizes(pool=24, new_tasks=10, old_tasks=10, heldout_per_task=2, target=4)
ARMS = """
defaults:
  training: {preset: demo, steps: 3, batch_size: 8}
  evaluation: {metrics: [answer_loss, exact_match], max_new_tokens: 3}
arms:
  instruction_tuning.random: {}
  instruction_tuning.full: {budget: full}
  instruction_tuning.delift: {}
  task_specific.random: {}
  task_specific.delift: {}
  continual.random: {}
  continual.delift: {}
"""


@dataclass(frozen=True)
class Run:
    """What one run of a job did."""

    result: dg.ExecuteInProcessResult

    @property
    def success(self) -> bool:
        """Whether every step succeeded."""
        return self.result.success

    @property
    def failure(self) -> str:
        """What the failed step said, as the user interface shows it."""
        (event,) = [event for event in self.result.all_events if event.is_step_failure]
        data = event.step_failure_data
        assert data.user_failure_data is not None, data.error
        return data.user_failure_data.description or ""

    @property
    def made(self) -> dict[str, dg.AssetMaterialization]:
        """Materialisations by asset, in order."""
        events = self.result.get_asset_materialization_events()
        found = [event.step_materialization_data.materialization for event in events]
        return {one.asset_key.path[-1]: one for one in found}

    def facts(self, asset: str) -> dict[str, Any]:
        """An asset's metadata as plain values, tables as lists of rows."""
        return {name: _plain(value) for name, value in self.made[asset].metadata.items()}

    @property
    def checks(self) -> dict[str, AssetCheckEvaluation]:
        """Check evaluations by `asset.check`."""
        return {
            f"{one.asset_key.path[-1]}.{one.check_name}": one
            for one in self.result.get_asset_check_evaluations()
        }


def _plain(value: dg.MetadataValue) -> Any:
    if isinstance(value, dg.TableMetadataValue):
        return [dict(record.data) for record in value.records]
    return value.value


@dataclass(frozen=True)
class World:
    """A home, its Dagster instance, and what ran in it."""

    home: Home
    instance: dg.DagsterInstance
    runs: dict[str, Run] = field(default_factory=dict)

    def execute(
        self, job: str, version: str | None = None, arm: str | None = None, **resources: Any
    ) -> Run:
        """Run a job on one partition; failures are in the result, not raised."""
        run = self._run(defs.resolve_job_def(job), version, arm, resources)
        self.runs[":".join(part for part in (job, version, arm) if part)] = run
        return run

    def execute_asset(self, asset: str, version: str, arm: str | None = None) -> Run:
        """Run one asset alone."""
        job = dg.define_asset_job("alone", selection=[asset])
        assets = build_assets(load_arms())
        alone = dg.Definitions(assets=assets, resources=defs.resources, jobs=[job])
        return self._run(alone.resolve_job_def("alone"), version, arm, {})

    def _run(
        self, job: dg.JobDefinition, version: str | None, arm: str | None, resources: Any
    ) -> Run:
        key: Any = partition_of(version, arm) if version and arm else version
        given = {"store": {"home": str(self.home.root)}, "compute": {"threads": 1}, **resources}
        config = {
            "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            "resources": {name: {"config": values} for name, values in given.items()},
        }
        return Run(
            job.execute_in_process(
                instance=self.instance, partition_key=key, run_config=config, raise_on_error=False
            )
        )

    def succeed(
        self, job: str, version: str | None = None, arm: str | None = None, **resources: Any
    ) -> Run:
        """Run a job that has to succeed."""
        run = self.execute(job, version, arm, **resources)
        assert run.success, run.failure
        return run

    def write_arms(self, text: str) -> None:
        """Replace the home's arms."""
        self.home.arms_file.write_text(text, encoding="utf-8")

    def add_version(self, version: str) -> None:
        """Make a partition of a version that is not stored yet."""
        self.instance.add_dynamic_partitions(str(dataset_version.name), [version])


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Matrices this small are not worth sharing."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def demo_files(tmp_path_factory: pytest.TempPathFactory) -> DemoFiles:
    """Both versions of a small demonstration dataset."""
    return write_demo_files(tmp_path_factory.mktemp("files"), sizes=SIZES)


def ingest_both(home: Home, files: DemoFiles) -> None:
    """Store v1 (with targets) and v2, its child."""
    about: dict[str, Any] = {"model": "demo", "template": "world", "dataset": "demo"}
    ingest(
        home,
        files.first_pool,
        version="v1",
        target=files.first_target,
        heldout=files.first_heldout,
        **about,
    )
    ingest(
        home,
        files.second_pool,
        version="v2",
        parents=["v1"],
        heldout=files.second_heldout,
        **about,
    )


@pytest.fixture(scope="session")
def ingested(tmp_path_factory: pytest.TempPathFactory, demo_files: DemoFiles) -> Home:
    """A home with both versions and the small arms; nothing is scored. Copy before changing."""
    home = Home.at(tmp_path_factory.mktemp("ingested") / "home")
    ingest_both(home, demo_files)
    home.arms_file.write_text(ARMS, encoding="utf-8")
    return home


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, ingested: Home) -> Iterator[World]:
    """Version v1 with four arms, v2 with two, and the leaderboard. For reading only."""
    home = Home.at(tmp_path_factory.mktemp("world") / "home")
    shutil.copytree(ingested.root, home.root)
    with dg.DagsterInstance.ephemeral() as instance:
        add_versions(instance, home)
        made = World(home, instance)
        made.succeed("score_version", "v1")
        for arm in ("random", "full", "delift"):
            made.succeed("finetune_arm", "v1", f"instruction_tuning.{arm}")
        made.succeed("finetune_arm", "v1", "task_specific.delift")
        made.succeed("score_version", "v2")
        for arm in ("random", "delift"):
            made.succeed("finetune_arm", "v2", f"continual.{arm}")
        made.succeed("refresh_leaderboard")
        yield made


@pytest.fixture
def copied(tmp_path: Path) -> Iterator[Callable[[Home], World]]:
    """Make a world from a copy of a home, with an instance that knows nothing of it."""
    with dg.DagsterInstance.ephemeral() as instance:

        def copy(home: Home) -> World:
            place = Home.at(tmp_path / "copied")
            shutil.copytree(home.root, place.root)
            add_versions(instance, place)
            return World(place, instance)

        yield copy
