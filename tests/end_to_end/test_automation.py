"""A running `delift ui` that works by itself, while its processes are killed one after the other.

The tests are one story in one home and follow each other.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import read_manifest
from delift_pipeline.demo.dataset import DemoFiles, DemoSizes, write_demo_files
from tests.end_to_end.serving import Served, until

# One process runs all of it: its tests share one home, in order.
pytestmark = pytest.mark.slow

SIZES = DemoSizes(pool=60, new_tasks=10, old_tasks=10, heldout_per_task=2, target=4)
ARMS = """
automation: {{train: {train}, seconds: 1, retry_seconds: 1, isolate_steps: false}}
defaults:
  training: {{preset: demo, steps: 40, batch_size: 8}}
  evaluation: {{metrics: [answer_loss]}}
arms:
  instruction_tuning.random: {{}}
  instruction_tuning.delift: {{}}
"""
ARM, OTHER = "instruction_tuning.delift", "instruction_tuning.random"
SENSORS = ("new_dataset_version_sensor", "applicable_arms_sensor", "automation_conditions")
ABOUT = "{dataset: demo, model: demo, template: world}\n"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> DemoFiles:
    return write_demo_files(tmp_path_factory.mktemp("files"), sizes=SIZES)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`delift ui` with its sensors on and automatic training, on a home without any version."""
    folder = tmp_path_factory.mktemp("served")
    home = Home.at(folder / "home")
    home.inbox.mkdir(parents=True)
    home.arms_file.write_text(ARMS.format(train="true"))
    running = Served(home, folder / "log")
    try:
        running.start()
        for sensor in SENSORS:
            running.switch_on(sensor)
        yield running
    finally:
        running.end()


def drop(home: Home, version: str, files: DemoFiles) -> None:
    """A version's folder, put into the inbox whole."""
    folder = home.root / f"{version}.made"
    folder.mkdir(parents=True)
    (folder / "pool.jsonl").write_bytes(files.first_pool.read_bytes())
    (folder / "heldout.jsonl").write_bytes(files.first_heldout.read_bytes())
    (folder / "version.yaml").write_text(ABOUT)
    folder.rename(home.inbox / version)


def test_a_dropped_version_reaches_the_leaderboard_though_everything_is_killed(
    served: Served, files: DemoFiles
) -> None:
    home = served.home
    drop(home, "demo-v1", files)
    until("lease of scoring", served.leases, pause=0.05)
    served.kill_worker()
    until("training", lambda: list(home.root.glob("adapters/*/.tmp-*")), pause=0.05)
    served.kill_server("dagster-daemon")
    until("subset", lambda: read_manifest(home.subset("demo-v1", ARM)))
    served.kill_server("dagster_webserver")
    until("row of both arms", lambda: served.leaderboard("demo-v1") == {ARM, OTHER})
    until("end of all runs", lambda: served.runs() and not served.at_work())
    assert {run["status"] for run in served.runs("score_version")} == {"FAILURE", "SUCCESS"}


def test_what_was_killed_ends_in_the_bytes_of_an_undisturbed_run(
    served: Served, files: DemoFiles, tmp_path: Path
) -> None:
    calm = Home.at(tmp_path / "calm")
    calm.inbox.mkdir(parents=True)
    calm.arms_file.write_text(ARMS.format(train="true"))
    drop(calm, "demo-v1", files)
    command = [sys.executable, "-m", "delift_pipeline.cli.main", "run", "--version", "demo-v1"]
    done = subprocess.run(
        [*command, "--json", "--home", str(calm.root)],
        capture_output=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr.decode()
    for arm in (ARM, OTHER):
        for folder, file in (
            ("subset", "subset.parquet"),
            ("adapter", "adapter_model.safetensors"),
        ):
            ours, theirs = (
                getattr(one, folder)("demo-v1", arm) / file for one in (served.home, calm)
            )
            assert ours.read_bytes() == theirs.read_bytes(), (arm, file)


def test_after_the_kills_no_slot_is_held_and_nothing_is_left_behind(served: Served) -> None:
    with dg.DagsterInstance.from_config(str(served.home.dagster)) as instance:
        until("end of all runs", lambda: not served.at_work())
        until("free pool", lambda: not instance.event_log_storage.get_concurrency_run_ids())
    until("free leases", lambda: not served.leases())


def test_a_bad_file_is_rejected_with_reasons_and_a_failed_check(served: Served) -> None:
    part = served.home.inbox / "demo-bad.jsonl.part"
    part.write_text('{"instruction": "say", "output": "yes"}\n{"instruction": "say"}\n')
    part.rename(part.with_suffix(""))
    rejected = served.home.inbox / "rejected" / "demo-bad.jsonl.faults.txt"
    until("faults", rejected.is_file)
    assert rejected.read_text().startswith("demo-bad.jsonl:2: output: ")
    until("end of its run", lambda: not served.at_work())
    check = served.query(
        '{ assetCheckExecutions(assetKey: {path: ["raw_dataset"]}, checkName: "schema", limit: 1) '
        "{ status evaluation { success description } } }"
    )["assetCheckExecutions"][0]
    assert check["evaluation"]["success"] is False
    assert "demo-bad" not in served.home.versions()


def test_an_identical_version_is_linked_and_scores_nothing(
    served: Served, files: DemoFiles
) -> None:
    before = len(served.runs("finetune_arm"))
    lines = files.first_pool.read_text().splitlines()
    part = served.home.inbox / ".demo-v2.jsonl"
    part.write_text("\n".join(reversed(lines)) + "\n")
    part.rename(served.home.inbox / "demo-v2.jsonl")
    until("kernel", lambda: list(served.home.root.glob("kernels/demo-v2/*/manifest.json")))
    until("end of all runs", lambda: not served.at_work())
    manifest = read_manifest(served.home.dataset("demo-v2"))
    assert manifest is not None and manifest.details["same_as"] == "demo-v1"
    with dg.DagsterInstance.from_config(str(served.home.dagster)) as instance:
        (made,) = instance.fetch_materializations(
            dg.AssetRecordsFilter(
                asset_key=dg.AssetKey("in_context_logprobs"), asset_partitions=["demo-v2"]
            ),
            limit=1,
        ).records
    assert made.asset_materialization is not None
    assert made.asset_materialization.metadata["pairs_scored"].value == 0
    time.sleep(5)  # several ticks of the sensor that would ask for arms
    assert len(served.runs("finetune_arm")) == before
    assert not served.home.adapter("demo-v2", ARM).exists()


def test_without_automatic_training_a_version_ends_with_its_subset(
    served: Served, files: DemoFiles
) -> None:
    served.home.arms_file.write_text(ARMS.format(train="false"))
    part = served.home.inbox / ".demo-v3.jsonl"
    part.write_text("\n".join(files.second_pool.read_text().splitlines()[:64]) + "\n")
    part.rename(served.home.inbox / "demo-v3.jsonl")
    until("subset", lambda: read_manifest(served.home.subset("demo-v3", ARM)))
    until("end of all runs", lambda: not served.at_work())
    time.sleep(5)  # several ticks of everything that could train
    assert served.at_work() == []
    assert not served.home.adapter("demo-v3", ARM).exists()
    assert served.leaderboard("demo-v3") == set()


def test_ended_in_the_middle_and_served_again_it_goes_on(served: Served, files: DemoFiles) -> None:
    part = served.home.inbox / ".demo-v4.jsonl"
    part.write_text("\n".join(files.second_pool.read_text().splitlines()[:70]) + "\n")
    part.rename(served.home.inbox / "demo-v4.jsonl")
    until("run", lambda: [run for run in served.at_work() if run["status"] == "STARTED"])
    served.end()
    served.start()
    until("subset", lambda: read_manifest(served.home.subset("demo-v4", ARM)))
    until("end of all runs", lambda: not served.at_work())
