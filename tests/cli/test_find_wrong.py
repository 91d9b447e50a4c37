"""`delift find-wrong`: rank the records of a file by support."""

import csv
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from delift_pipeline.demo.draws import make_pool
from delift_pipeline.demo.world import make_world
from delift_pipeline.records.schema import record_id

MODEL = ("--model", "demo", "--template", "world")
SWAPPED = 4


@pytest.fixture(scope="module")
def swapped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """Records of tasks that the demo model can do without help, and the ids of swapped answers."""
    records, _ = make_pool(make_world(3), 200, 3, 0.0)
    rows = [row for row in records if row["task"].startswith("order")][:30]
    answers = [row["output"] for row in rows]
    places = [place for place in range(len(rows)) if answers[place] != answers[place - 7]]
    for place in places[:SWAPPED]:
        rows[place] = {**rows[place], "output": answers[place - 7]}
    path = tmp_path_factory.mktemp("swapped") / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path, {rows[place]["id"] for place in places[:SWAPPED]}


def test_swapped_answers_are_the_least_supported(
    swapped: tuple[Path, set[str]], delift: Any, tmp_path: Path
) -> None:
    path, wrong = swapped
    answer = delift("find-wrong", path, *MODEL, "--home", tmp_path, "--show", SWAPPED, "--json")
    assert answer.status == 0, answer.err
    found = json.loads(answer.out)
    listed = found["least_supported"]
    assert {one["source_ids"][0] for one in listed} == wrong
    supports = [one["support"] for one in listed]
    assert supports == sorted(supports) and [one["rank"] for one in listed] == [1, 2, 3, 4]
    assert all(token["change"] < 0 for one in listed for token in one["tokens"])
    assert any(one["tokens"] for one in listed) and any(one["near"] for one in listed)
    assert found["scored"] == found["records"] and found["pairs_scored"] == 0
    assert found["passes"] == 2 * found["scored"]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_the_table_has_a_row_for_each_scorable_record(
    suffix: str, swapped: tuple[Path, set[str]], delift: Any, tmp_path: Path
) -> None:
    path, wrong = swapped
    out = tmp_path / f"out.{suffix}"
    answer = delift("find-wrong", path, *MODEL, "--home", tmp_path, "--show", 0, "--out", out)
    assert answer.status == 0, answer.err
    if suffix == "parquet":
        rows = pl.read_parquet(out).to_dicts()
    elif suffix == "csv":
        rows = list(csv.DictReader(out.read_text().splitlines()))
        rows = [{**row, "source_ids": json.loads(row["source_ids"])} for row in rows]
    else:
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert list(rows[0]) == ["record_id", "source_ids", "support", "trust"]
    assert len(rows) == len(path.read_text().splitlines())
    assert {row["source_ids"][0] for row in rows[:SWAPPED]} == wrong
    assert float(rows[0]["trust"]) < 0.5 < float(rows[-1]["trust"])


def test_a_record_that_is_too_long_is_listed_as_left_out(delift: Any, tmp_path: Path) -> None:
    short = {"instruction": "say", "input": "", "output": "red"}
    long = {"instruction": "say", "input": "", "output": "red " * 3000}
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (short, long)))
    answer = delift("find-wrong", path, *MODEL, "--home", tmp_path, "--json")
    assert answer.status == 0, answer.err
    found = json.loads(answer.out)
    (left,) = found["left_out"]
    assert left["record_id"] == record_id("say", "", "red " * 3000) and left["reason"]
    assert (found["records"], found["scored"]) == (2, 1)


def test_a_second_run_scores_nothing_again(
    swapped: tuple[Path, set[str]], delift: Any, tmp_path: Path
) -> None:
    args = ("find-wrong", swapped[0], *MODEL, "--home", tmp_path, "--json")
    first = json.loads(delift(*args).out)
    second = json.loads(delift(*args).out)
    assert first["passes_done"] == first["passes"] and second["passes_done"] == 0
    assert first["least_supported"] == second["least_supported"]


def test_select_without_pairs_reads_support_and_covers_prompts(
    swapped: tuple[Path, set[str]], delift: Any, tmp_path: Path
) -> None:
    path, wrong = swapped
    args = ("select", path, *MODEL, "--home", tmp_path, "--budget", 10, "--json")
    answer = delift(*args, "--pairs", 0, "--out", tmp_path / "a.jsonl")
    assert answer.status == 0, answer.err
    found = json.loads(answer.out)
    assert found["pairs_scored"] == 0 and found["objective"] is not None
    assert not wrong & {json.loads(line)["id"] for line in (tmp_path / "a.jsonl").open()}
    options = ("--option", "trust=support", "--option", "covers=prompts")
    assert delift(*args, *options, "--out", tmp_path / "b.jsonl").status == 0
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_pairs_says_how_many_near_prompts_are_scored(
    swapped: tuple[Path, set[str]], delift: Any, tmp_path: Path
) -> None:
    scored = []
    for pairs in (1, 3):
        home, out = tmp_path / str(pairs), tmp_path / f"{pairs}.jsonl"
        options = ("--budget", 5, "--pairs", pairs, "--home", home, "--out", out, "--json")
        answer = delift("select", swapped[0], *MODEL, *options)
        assert answer.status == 0, answer.err
        scored.append(json.loads(answer.out)["pairs_scored"])
    assert 0 < scored[0] <= 2 * 30 < scored[1] <= 6 * 30


def test_a_selector_that_needs_pairs_refuses_to_go_without(
    swapped: tuple[Path, set[str]], delift: Any, tmp_path: Path
) -> None:
    args = ("select", swapped[0], *MODEL, "--home", tmp_path, "--budget", 5, "--pairs", 0)
    answer = delift(*args, "--selector", "delift", "--out", tmp_path / "o.jsonl")
    assert answer.status == 2 and "--pairs" in answer.err
    assert not (tmp_path / "o.jsonl").exists()
