"""`delift explain --why`: the reasons that `delift select` wrote, record by record."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from delift_pipeline.demo.dataset import DemoSizes, write_demo_files

MODEL = ("--model", "demo", "--template", "world", "--threads", 1)


@pytest.fixture
def reasons(delift: Any, files: Any, scores: Path, tmp_path: Path) -> Path:
    why = tmp_path / "w.jsonl"
    where = ("--out", tmp_path / "o.jsonl", "--why", why, "--home", scores)
    assert delift("select", files.first_pool, *MODEL, "--budget", 0.3, *where).status == 0
    return why


def test_chosen_and_dropped_records_are_explained(delift: Any, files: Any, reasons: Path) -> None:
    rows = [json.loads(line) for line in reasons.read_text(encoding="utf-8").splitlines()]
    first = next(row for row in rows if row.get("rank") == 0)
    found = delift("explain", "--why", reasons, "--record", first["source_id"], "--json").json
    assert found["selected"] and found["gain"] == first["gain"]
    assert [one["record_id"] for one in found["covers"]] == first["covers"]
    original = next(
        row
        for row in map(json.loads, files.first_pool.read_text(encoding="utf-8").splitlines())
        if row["id"] == first["source_id"]
    )
    assert original["output"] in found["record"]["text"]
    covered = next(row for row in rows if row.get("covered_by"))
    said = delift("explain", "--why", reasons, "--record", covered["record_id"][:16]).out
    by = next(row for row in rows if row["record_id"] == covered["covered_by"])
    assert f"by {by['source_id']}: " in said and covered["text"] in said and "trust" in said


def test_a_suspect_is_shown_with_who_disagrees(delift: Any, reasons: Path) -> None:
    lines = reasons.read_text(encoding="utf-8").splitlines()
    row = json.loads(lines[0])
    near = {"record_id": "n", "similarity": 0.9, "helps": -0.2, "helped": None, "text": "a -> b"}
    lines[0] = json.dumps({**row, "trust": 0.1, "suspected": [near]})
    reasons.write_text("\n".join(lines), encoding="utf-8")
    said = delift("explain", "--why", reasons, "--record", row["record_id"]).out
    assert "SUSPECTED WRONG" in said
    assert "n disagrees (prompt cosine 0.90, helped by this record -0.200" in said


def distance(logprobs: list[float]) -> float:
    return float(np.sqrt(np.mean((1 - np.exp(logprobs)) ** 2)))


def test_a_planted_wrong_record_is_named_with_who_disagrees_and_the_tokens_that_lose(
    delift: Any, tmp_path: Path
) -> None:
    sizes = DemoSizes(pool=40, new_tasks=10, old_tasks=10, heldout_per_task=2, target=4)
    pool = write_demo_files(tmp_path, seed=1, wrong_share=0.0, sizes=sizes).first_pool
    records = [json.loads(line) for line in pool.read_text(encoding="utf-8").splitlines()]
    planted = next(record for record in records if record["id"] == "pool-00003")
    planted["output"] = "wux"  # the word of another thing of its task
    pool.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    why = tmp_path / "why.jsonl"
    where = ("--out", tmp_path / "o.jsonl", "--why", why, "--home", tmp_path / "home")
    assert delift("select", pool, *MODEL, "--budget", 0.3, *where).status == 0
    rows = [json.loads(line) for line in why.read_text(encoding="utf-8").splitlines()]
    row = next(row for row in rows if row["source_id"] == planted["id"])
    assert row["trust"] < 0.5 and "rank" not in row and len(row["suspected"]) == 3
    for near in row["suspected"]:
        assert near["disagrees"] and "nuza" in near["text"]  # the same language to translate to
        tokens = near["tokens"]
        assert tokens["tokens"][0] == "wux" and tokens["change"][0] < -0.5
        assert tokens["change"] == pytest.approx(np.subtract(tokens["after"], tokens["alone"]))
        utility = distance(tokens["alone"]) - distance(tokens["after"])
        assert near["helped"] == pytest.approx(utility, abs=2e-4)
    said = delift("explain", "--why", why, "--record", planted["id"]).out
    loss = row["suspected"][0]["tokens"]["change"][0]
    assert "SUSPECTED WRONG" in said and f"'wux' {tokens['alone'][0]:.3f} {loss:+.3f}" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--record", "nobody"), "no record of the file has the id"),
        (("--record", "p", "--version", "v1"), "pass --version and --arm"),
        (("--record", "p", "--model", "demo"), "pass --version and --arm"),
    ],
)
def test_what_is_not_there_is_refused(
    delift: Any, reasons: Path, arguments: tuple[str, ...], said: str
) -> None:
    (fault,) = delift("explain", "--why", reasons, *arguments).faults
    assert said in fault


@pytest.mark.parametrize("text", ["{", "3", "{}"])
def test_a_file_of_something_else_is_refused(delift: Any, tmp_path: Path, text: str) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(text, encoding="utf-8")
    (fault,) = delift("explain", "--why", other, "--record", "r").faults
    assert fault.startswith(f"{other}:1: ")
