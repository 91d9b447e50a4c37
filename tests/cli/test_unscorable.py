"""Records whose answer does not fit the model's window: refused early, named by the user's ids."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

THINGS = "red blue green grey pink gold teal plum rust lime navy sand".split()
WRITES = Callable[..., Path]


@pytest.fixture
def data(tmp_path: Path) -> WRITES:
    """Write a file of 12 records, `long` of which have an answer beyond the window of 64."""

    def write(long: int, first: int = 0, name: str = "data") -> Path:
        rows = [
            {
                "id": f"row-{number}",
                "instruction": f"say the code of {thing}",
                "output": "one two" if number < 12 - long else "one " * 90,
                "topic": "short" if number < 12 - long else "long",
            }
            for number, thing in enumerate(THINGS)
        ]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[first:]))
        return path

    return write


@pytest.fixture
def select(delift: Any, tiny: Any, tmp_path: Path) -> Any:
    def call(file: Path, *arguments: object) -> Any:
        where = ("--home", tmp_path / "home", "--out", tmp_path / "out.jsonl")
        return delift("select", file, "--model", tiny.model, *where, *arguments)

    return call


@pytest.mark.parametrize("selector", ["delift_trusted", "delift", "ifd", "nuggets", "less"])
def test_a_budget_above_what_can_be_scored_is_refused_before_scoring(
    data: WRITES, select: Any, tmp_path: Path, selector: str
) -> None:
    chosen = ("--selector", selector)
    for budget in (10, 0.9):
        (line,) = select(data(long=5), "--budget", budget, *chosen).faults
        assert "budget: " in line and "7 of 12" in line
        assert "row-7: its answer takes 91 tokens" in line
        assert "budget to 7" in line and "window" in line
    assert (
        not list(tmp_path.glob("home/scores/*/shards/*")) and not (tmp_path / "out.jsonl").exists()
    )


@pytest.mark.parametrize("selector", ["delift_trusted", "delift", "ifd", "nuggets", "less"])
@pytest.mark.parametrize("budget", [1, 0.3, "full", "auto", "50tokens"])
def test_a_file_of_which_nothing_can_be_scored_is_refused_with_the_reason(
    data: WRITES, select: Any, selector: str, budget: object
) -> None:
    (line,) = select(data(long=12), "--budget", budget, "--selector", selector).faults
    assert "window: none of the 12 records" in line
    assert "row-0: its answer takes 91 tokens" in line and "random" in line


def test_selectors_without_scores_choose_from_records_that_cannot_be_scored(
    data: WRITES, select: Any
) -> None:
    assert select(data(long=12), "--budget", 2, "--selector", "random").status == 0


def test_full_takes_what_can_be_scored_and_says_once_what_cannot(data: WRITES, select: Any) -> None:
    answer = select(data(long=5), "--budget", "full", "--json")
    assert (answer.json["selected"], answer.json["unscorable"]) == (7, 5)
    (note,) = (line for line in answer.err.splitlines() if line.startswith("5 records"))
    assert "cannot be ranked" in note and "row-7: its answer takes 91 tokens" in note


def test_reasons_and_explain_say_why_a_record_could_not_be_chosen(
    data: WRITES, select: Any, delift: Any, tmp_path: Path
) -> None:
    why = tmp_path / "why.jsonl"
    assert select(data(long=5), "--budget", 6, "--why", why).status == 0
    rows = {row["source_id"]: row for row in map(json.loads, why.read_text().splitlines())}
    assert "its answer takes 91 tokens" in rows["row-8"]["unscorable"]
    assert rows["row-0"]["unscorable"] is None
    said = delift("explain", "--why", why, "--record", "row-8").out
    assert "cannot be scored: its answer takes 91 tokens" in said
    chosen = next(row for row in rows.values() if len(row.get("covers", ())) > 1)
    said = delift("explain", "--why", why, "--record", chosen["source_id"]).out
    covered = [row["source_id"] for row in rows.values() if row["record_id"] in chosen["covers"]]
    assert all(f"  {name}: " in said for name in covered)


def test_a_target_set_of_which_nothing_can_be_scored_is_refused(data: WRITES, select: Any) -> None:
    target = data(long=3, first=9, name="target")
    pool = data(long=0)
    (line,) = select(pool, "--budget", 2, "--target", target).faults
    assert "none of the 3 target records" in line and "row-9: its answer" in line


def test_a_pin_or_quota_on_what_cannot_be_scored_is_refused_before_scoring(
    data: WRITES, select: Any, tmp_path: Path
) -> None:
    file = data(long=5)
    (line,) = select(file, "--budget", 3, "--pin", "row-8").faults
    assert "pin: " in line and "row-8" in line
    (line,) = select(file, "--budget", 3, "--quota", "topic=long:2..").faults
    assert "quota: " in line and "long" in line
    assert not list(tmp_path.glob("home/scores/*/shards/*"))


def test_score_says_what_cannot_be_scored_and_why(
    data: WRITES, delift: Any, tiny: Any, tmp_path: Path
) -> None:
    common = ("--model", tiny.model, "--home", tmp_path / "home", "--out", tmp_path / "s.parquet")
    (line,) = delift("score", data(long=12), *common).faults
    assert "none of the 12 records" in line and "row-0: its answer" in line
    said = delift("score", data(long=5), *common).err
    assert "5 records cannot be scored (first: row-7: its answer takes 91 tokens" in said


def test_the_graph_refuses_in_one_line_each_as_well(
    data: WRITES, delift: Any, tiny: Any, tmp_path: Path
) -> None:
    home, heldout = ("--home", tmp_path / "home"), data(long=0, first=9, name="heldout")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "arms.yaml").write_text(
        "defaults: {training: {preset: demo, steps: 1}}\n"
        "arms:\n  instruction_tuning.delift_trusted: {budget: 9}\n"
    )
    for version, long, words in (
        ("none-v1", 12, ["none of the 12 records of the pool", "row-0: its answer"]),
        ("some-v1", 5, ["the budget is 9 records", "7 of 12", "row-7: its answer"]),
    ):
        given = ("--version", version, "--model", tiny.model, "--heldout", heldout)
        assert delift("ingest", data(long), *given, *home).status == 0
        answer = delift("run", "--version", version, *home)
        lines = [line for line in answer.err.splitlines() if ": its answer" in line]
        assert answer.status == 2 and "Traceback" not in answer.err and len(lines) == 1
        assert [word for word in words if word not in lines[0]] == []
