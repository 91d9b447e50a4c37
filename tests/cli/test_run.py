"""`delift run`: the whole graph from the command line, in a process of its own."""

import json
import traceback
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from delift_pipeline.cli.graph import GraphRuns
from delift_pipeline.core.errors import DeliftError
from delift_pipeline.core.home import Home

ARMS = """
defaults:
  training: {preset: demo, steps: 3, batch_size: 8}
  evaluation: {metrics: [answer_loss], max_new_tokens: 3}
arms:
  instruction_tuning.random: {}
  instruction_tuning.delift-near: {options: {pairs: neighbours}}
  instruction_tuning.full: {budget: full, enabled: false}
  continual.random: {}
"""
GOOD = '{"instruction": "say", "output": "yes"}\n'


@pytest.fixture(scope="module")
def home(program: Any, files: Any, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home with one version and its own arms; nothing has run."""
    place = Home.at(tmp_path_factory.mktemp("run") / "home")
    answer = program(
        "ingest", files.first_pool, "--version", "v1", "--heldout", files.first_heldout,
        "--model", "demo", "--template", "world", "--home", place.root,
    )  # fmt: skip
    assert answer.status == 0, answer.err
    place.arms_file.write_text(ARMS, encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def first(program: Any, home: Home) -> Any:
    """The first run of all arms that apply."""
    return program("run", "--version", "v1", "--home", home.root, "--json")


@pytest.fixture(scope="module")
def second(program: Any, home: Home, first: Any) -> Any:
    """The same command again."""
    assert first.status == 0, first.err
    return program("run", "--version", "v1", "--home", home.root, "--json")


def test_json_lists_arms_runs_and_the_leaderboard(first: Any) -> None:
    report = first.json
    assert report["version"] == "v1"
    assert report["arms"] == ["instruction_tuning.random", "instruction_tuning.delift-near"]
    found = {row["arm"] for row in report["leaderboard"]}
    assert found == {"initial", *report["arms"]}
    assert report["pairs_scored"] > 0 and report["pairs_reused"] == 0
    assert [run["job"] for run in report["runs"]] == [
        "score_version",
        "finetune_arm",
        "finetune_arm",
        "refresh_leaderboard",
    ]


def test_runs_are_in_the_homes_own_dagster(first: Any, home: Home) -> None:
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        assert instance.get_dynamic_partitions("dataset_version") == ["v1"]
        for run in first.json["runs"]:
            known = instance.get_run_by_id(run["run_id"])
            assert known is not None and known.is_success


def test_a_second_run_scores_nothing_and_says_the_same(first: Any, second: Any) -> None:
    assert second.json["pairs_scored"] == 0

    def numbers(report: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
        return [(row["arm"], row["metrics"]) for row in report["leaderboard"]]

    assert numbers(second.json) == numbers(first.json)


def test_a_retired_arm_runs_only_when_named(program: Any, home: Home, second: Any) -> None:
    assert second.status == 0, second.err
    answer = program(
        "run", "--version", "v1", "--arm", "instruction_tuning.full", "--home", home.root, "--json"
    )
    assert answer.json["arms"] == ["instruction_tuning.full"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--version", "v9"), "v1"),
        (("--version", "Not A Name"), "Not A Name"),
        (("--version", "v1", "--arm", "instruction_tuning.best"), "instruction_tuning.delift-near"),
        (("--version", "v1", "--arm", "continual.random"), "--parent"),
        (("--version", "v1", "--model", "no-such-model"), "no-such-model"),
        (("--version", "v1", "--template", "no-such-template"), "no-such-template"),
    ],
)
def test_what_cannot_run_is_refused_in_one_sentence(
    program: Any, home: Home, arguments: tuple[str, ...], said: str
) -> None:
    faults = program("run", *arguments, "--home", home.root).faults
    told = [fault for fault in faults if said in fault]
    assert len(told) == 1
    # What else is said is progress: the job that was asked, before the refusal.
    assert all(fault.startswith("score_version ") for fault in faults if fault not in told)


def test_an_unknown_version_leaves_no_trace(program: Any, tmp_path: Path) -> None:
    (fault,) = program("run", "--version", "v9", "--home", tmp_path / "home").faults
    assert "v9" in fault
    assert not (tmp_path / "home").exists()


def test_faults_in_arms_yaml_come_one_a_line(program: Any, files: Any, tmp_path: Path) -> None:
    ingest = ("ingest", files.first_pool, "--version", "v1", "--model", "demo")
    assert program(*ingest, "--home", tmp_path).status == 0
    wrong = "arms: {instruction_tuning.best: {}, instruction_tuning.random: {budget: -1}}\n"
    (tmp_path / "arms.yaml").write_text(wrong, encoding="utf-8")
    faults = program("run", "--version", "v1", "--home", tmp_path).faults
    assert len(faults) == 2  # the name and the budget
    assert all(fault.startswith("arms.yaml:1: arms.") for fault in faults)


def test_a_dropped_version_runs_from_the_inbox(program: Any, home: Home, second: Any) -> None:
    assert second.status == 0, second.err
    folder = home.inbox / "dropped"
    folder.mkdir(parents=True)
    pool = [
        json.dumps({"id": f"d{i}", "instruction": "say", "input": f"{i}", "output": "yes"})
        for i in range(6)
    ]
    (folder / "pool.jsonl").write_text("\n".join(pool) + "\n", encoding="utf-8")
    (folder / "version.yaml").write_text("{model: demo, template: world}\n", encoding="utf-8")
    arm = ("--arm", "instruction_tuning.random")
    answer = program("run", "--version", "dropped", *arm, "--home", home.root, "--json")
    assert answer.json["arms"] == ["instruction_tuning.random"]
    assert "dropped" in home.versions()


def test_faults_in_the_inbox_come_one_a_line(program: Any, home: Home) -> None:
    folder = home.inbox / "broken"
    folder.mkdir(parents=True)
    (folder / "pool.jsonl").write_text(GOOD + '{"instruction": "say"}\n{broken\n', encoding="utf-8")
    faults = program("run", "--version", "broken", "--home", home.root).faults
    places = [fault.split(": ")[0] for fault in faults if "pool.jsonl" in fault]
    assert [place.rpartition("/")[2] for place in places] == ["pool.jsonl:2", "pool.jsonl:3"]


def test_the_traceback_of_a_failed_step_is_kept_for_debug(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    @dg.op
    def broken() -> None:
        raise ValueError("deep down")

    @dg.job
    def refresh_leaderboard() -> None:
        broken()

    stand_in = dg.Definitions(jobs=[refresh_leaderboard])
    monkeypatch.setattr("delift_pipeline.graph.build_definitions", lambda home: stand_in)
    with dg.DagsterInstance.ephemeral() as instance, pytest.raises(DeliftError) as failed:
        GraphRuns(Home(tmp_path), instance).refresh_leaderboard()
    assert "Traceback" not in str(failed.value)
    shown = "".join(traceback.format_exception(failed.value))
    assert "ValueError: deep down" in shown and "in broken" in shown
