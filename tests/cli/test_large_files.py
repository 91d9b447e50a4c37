"""What is said of more than 20,000 records, before the work begins."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

MANY = 20_500
THINGS = "red blue green grey pink gold teal plum rust lime navy sand".split()


def write(path: Path, count: int) -> Path:
    """Short records, no two alike."""
    with path.open("w") as lines:
        for number in range(count):
            words = f"{THINGS[number % 12]} {number}"
            row = {"instruction": f"say the code of {words}", "output": "one two"}
            lines.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("many") / "many.jsonl", MANY)


def test_reading_many_records_is_announced_with_its_time_and_memory(
    many: Path, tiny: Any, delift: Any, tmp_path: Path
) -> None:
    home, model = ("--home", tmp_path / "home"), ("--model", tiny.model)
    chosen = ("--selector", "random", "--budget", 5, "--out", tmp_path / "out.jsonl")
    answer = delift("select", many, *model, *home, *chosen)
    assert answer.status == 0, answer.err
    line = answer.err.splitlines()[0]
    assert line.startswith("reading many.jsonl: about 20,500 records")
    assert re.search(r"second|minute", line) and "GiB of memory" in line


def test_the_announcement_comes_before_anything_is_read(
    many: Path, tiny: Any, delift: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("read")

    monkeypatch.setattr("delift_pipeline.records.read.input_files", fail)
    home, model = ("--home", tmp_path), ("--model", tiny.model)
    for command in (
        ("select", many, *model, *home, "--budget", 5, "--out", tmp_path / "o.jsonl"),
        ("score", many, *model, *home, "--out", tmp_path / "o.parquet"),
        ("ingest", many, "--version", "many-v1", *home),
        ("plan", many, *home),
    ):
        answer = delift(*command)
        assert answer.status == 1
        assert answer.err.startswith("reading many.jsonl: about 20,500 records")


def test_a_small_file_is_read_without_announcement(tiny: Any, delift: Any, tmp_path: Path) -> None:
    few = write(tmp_path / "few.jsonl", 50)
    given = ("--home", tmp_path / "home", "--out", tmp_path / "out.jsonl", "--budget", 5)
    assert "reading" not in delift("select", few, "--model", tiny.model, *given).err


def test_pairs_time_and_memory_are_said_before_scoring(
    tiny: Any, delift: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("core.progress", "stages.announce", "stages.score"):
        monkeypatch.setattr(f"delift_pipeline.{place}.LARGE", 20)
    file = write(tmp_path / "few.jsonl", 30)
    given = ("--home", tmp_path / "home", "--out", tmp_path / "out.jsonl", "--budget", 5)
    said = delift("select", file, "--model", tiny.model, *given).err.splitlines()
    kinds = [
        "reading few.jsonl: about 30 records",
        "30 records: at most 870 pairs to score, the time is estimated after a trial",
        "tokenised: 30/30 records done",
        "near prompts: 30/30 records done",
        "pairs to score, about 1 second at",
        "baseline: 60/60 passes",
        "pairs: ",
    ]
    places = [next(i for i, line in enumerate(said) if kind in line) for kind in kinds]
    assert places == sorted(places)
    again = delift("select", file, "--model", tiny.model, *given).err
    assert "870 pairs to score, about 1 second, in about" in again


def test_a_plan_counts_the_pairs_that_select_scores(tiny: Any, delift: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "few.jsonl", 60)
    common = ("--model", tiny.model, "--home", tmp_path / "home")
    planned = delift("plan", file, *common, "--json").json
    assert (planned["records"], planned["arms"]) == (60, [])
    given = ("--out", tmp_path / "out.jsonl", "--budget", 5, "--json")
    scored = delift("select", file, *common, *given).json["pairs_scored"]
    assert planned["pairs"] == scored > 0
    after = delift("plan", file, *common)
    assert "nothing is missing" in after.out and "training" not in after.out


def test_a_plan_of_a_file_may_name_arms_that_need_no_more_than_it(
    tiny: Any, delift: Any, tmp_path: Path
) -> None:
    file, home = write(tmp_path / "few.jsonl", 30), ("--home", tmp_path / "home")
    dense = delift("plan", file, "--arm", "instruction_tuning.delift", *home, "--json").json
    assert dense["pairs"] == 900
    none = delift("plan", file, "--arm", "instruction_tuning.random", *home, "--json").json
    assert none["pairs"] == 0
    (line,) = delift("plan", file, "--arm", "continual.delift", *home).faults
    assert "continual.delift" in line and "Ingest" in line


def test_a_file_that_cannot_be_read_is_refused_by_the_reading_itself(
    many: Path, tiny: Any, delift: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(many))

    monkeypatch.setattr("delift_pipeline.stages.announce._announcement", fail)
    chosen = ("--model", tiny.model, "--home", tmp_path / "home", "--selector", "random")
    out = tmp_path / "out.jsonl"
    assert delift("select", many, *chosen, "--budget", 5, "--out", out).status == 0
