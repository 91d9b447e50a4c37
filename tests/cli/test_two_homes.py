"""One process works in several homes, each with its own arms."""

import os
from pathlib import Path

import dagster as dg
import pytest

from delift_pipeline.cli.graph import open_instance
from delift_pipeline.core.home import Home
from delift_pipeline.demo.dataset import DemoFiles
from delift_pipeline.graph import build_definitions
from tests.conftest import Delift

ARMS = """
automation: {{seconds: {seconds}, retries: {seconds}, isolate_steps: {isolate}}}
defaults:
  training: {{preset: demo, steps: 1, batch_size: 2}}
  evaluation: {{metrics: [answer_loss]}}
arms:
  {arm}: {{}}
"""
FIRST, SECOND, THIRD = (f"instruction_tuning.random-{name}" for name in ("one", "two", "three"))


def write_arms(home: Home, arm: str, seconds: int = 30, isolate: str = "true") -> None:
    home.root.mkdir(parents=True, exist_ok=True)
    text = ARMS.format(arm=arm, seconds=seconds, isolate=isolate)
    home.arms_file.write_text(text, encoding="utf-8")


def arms_in_graph(home: Home) -> list[str]:
    """The arms that the graph of a home has partitions for."""
    subset = build_definitions(home).resolve_assets_def("subset")
    assert isinstance(subset.partitions_def, dg.MultiPartitionsDefinition)
    arms = subset.partitions_def.get_partitions_def_for_dimension("arm")
    assert {check.partitions_def for check in subset.check_specs} == {subset.partitions_def}
    return list(arms.get_partition_keys())


def test_each_home_has_a_graph_of_its_own_arms_as_they_are_now(tmp_path: Path) -> None:
    one, two = Home.at(tmp_path / "one"), Home.at(tmp_path / "two")
    write_arms(one, FIRST)
    write_arms(two, SECOND)
    assert (arms_in_graph(one), arms_in_graph(two)) == ([FIRST], [SECOND])
    write_arms(one, THIRD)
    assert (arms_in_graph(one), arms_in_graph(two)) == ([THIRD], [SECOND])


@pytest.mark.parametrize(("seconds", "isolate"), [(7, "true"), (9, "false")])
def test_automation_follows_the_homes_own_arms_file(
    tmp_path: Path, seconds: int, isolate: str
) -> None:
    home = Home.at(tmp_path)
    write_arms(home, FIRST, seconds, isolate)
    graph = build_definitions(home)
    assert {sensor.minimum_interval_seconds for sensor in graph.sensors or []} == {seconds}
    policy = graph.resolve_assets_def("adapter").op.retry_policy
    assert policy is not None and policy.max_retries == seconds
    assert isinstance(graph.executor, dg.ExecutorDefinition)
    settings = graph.executor.apply_config_mapping({}).value
    assert settings is not None
    assert list(settings["config"]) == ["multiprocess" if isolate == "true" else "in_process"]


def test_an_opened_home_leaves_the_environment_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DELIFT_HOME", "another")
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    with open_instance(Home.at(tmp_path / "home")):
        assert os.environ["DELIFT_HOME"] == str(tmp_path / "home")
        assert os.environ["DAGSTER_HOME"] == str(tmp_path / "home" / "dagster")
    assert os.environ["DELIFT_HOME"] == "another"
    assert "DAGSTER_HOME" not in os.environ


@pytest.mark.slow
def test_runs_in_two_homes_take_turns_in_one_process(
    delift: Delift, files: DemoFiles, tmp_path: Path
) -> None:
    one, two = Home.at(tmp_path / "one"), Home.at(tmp_path / "two")
    for home in (one, two):
        options = ("--model", "demo", "--template", "world", "--home", home.root)
        answer = delift("ingest", files.first_heldout, "--version", "v1", *options)
        assert answer.status == 0, answer.err
    leaderboards = []
    for home, arm in ((one, FIRST), (two, SECOND), (one, THIRD)):
        write_arms(home, arm)
        report = delift("run", "--version", "v1", "--home", home.root, "--json").json
        leaderboards.append([row["arm"] for row in report["leaderboard"]])
    assert leaderboards == [["initial", FIRST], ["initial", SECOND], ["initial", FIRST, THIRD]]
