"""`delift ingest`: files become versions, or are refused whole."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

GOOD = [
    {"id": str(i), "instruction": "say", "input": f"word {i}", "output": "yes"} for i in range(8)
]


def write(path: Path, rows: Sequence[dict[str, Any] | str]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_json_is_the_manifest_and_nothing_else(delift: Any, files: Any, tmp_path: Path) -> None:
    home = tmp_path / "home"
    answer = delift(
        "ingest", files.first_pool, "--version", "mydata-v1", "--target", files.first_target,
        "--heldout", files.first_heldout, "--model", "demo", "--template", "world",
        "--home", home, "--json",
    )  # fmt: skip
    manifest = answer.json
    assert manifest == json.loads((home / "datasets" / "mydata-v1" / "manifest.json").read_text())
    assert manifest["kind"] == "dataset"
    assert manifest["details"]["dataset"] == "mydata"
    assert manifest["details"]["model"] == "demo"
    counts = {name: manifest["counts"][name] for name in ("pool", "target", "heldout", "left_out")}
    assert counts == {"pool": 24, "target": 4, "heldout": 10, "left_out": 0}


def test_the_same_command_twice_changes_nothing(delift: Any, files: Any, tmp_path: Path) -> None:
    command = ("ingest", files.first_pool, "--version", "v1", "--home", tmp_path / "home")
    first = delift(*command)
    manifest = tmp_path / "home" / "datasets" / "v1" / "manifest.json"
    written = manifest.read_bytes()
    second = delift(*command)
    assert (first.status, second.status) == (0, 0)
    assert manifest.read_bytes() == written
    assert "delift run --version v1" in second.out


def test_a_version_never_changes(delift: Any, files: Any, tmp_path: Path) -> None:
    delift("ingest", files.first_pool, "--version", "v1", "--home", tmp_path / "home")
    answer = delift("ingest", files.second_pool, "--version", "v1", "--home", tmp_path / "home")
    (fault,) = answer.faults
    assert "never changes" in fault


def test_every_fault_is_a_line_and_nothing_is_written(delift: Any, tmp_path: Path) -> None:
    rows = [GOOD[0], {"id": "x", "instruction": "say"}, "{broken", {**GOOD[1], "output": 5}]
    file = write(tmp_path / "bad.jsonl", rows)
    faults = delift("ingest", file, "--version", "v1", "--home", tmp_path / "home").faults
    assert [fault.split(": ")[0] for fault in faults] == [f"{file}:{line}" for line in (2, 3, 4)]
    assert faults[0].split(": ")[1] == "output"
    assert not (tmp_path / "home").exists()


def test_skip_bad_loads_the_good_and_says_how_many_were_left_out(
    delift: Any, tmp_path: Path
) -> None:
    file = write(tmp_path / "bad.jsonl", [*GOOD, {"id": "x", "instruction": "say"}, "{broken"])
    answer = delift(
        "ingest", file, "--version", "v1", "--skip-bad", "--home", tmp_path / "home", "--json"
    )
    assert answer.json["counts"]["left_out"] == 2
    assert "2 faulty rows were left out" in answer.err


def test_faults_of_all_files_come_together(delift: Any, files: Any, tmp_path: Path) -> None:
    target = write(tmp_path / "target.jsonl", ["{broken"])
    answer = delift(
        "ingest", tmp_path / "absent.jsonl", "--version", "Not A Name", "--target", target,
        "--parent", "nowhere", "--coverage", "some", "--home", tmp_path / "home",
    )  # fmt: skip
    said = "\n".join(answer.faults)
    for part in ("absent.jsonl", "target.jsonl:1", "Not A Name", "nowhere", "some"):
        assert part in said


def test_shared_records_are_refused_with_their_ids(delift: Any, tmp_path: Path) -> None:
    pool = write(tmp_path / "pool.jsonl", GOOD)
    heldout = write(tmp_path / "heldout.jsonl", GOOD[2:4])
    answer = delift(
        "ingest", pool, "--heldout", heldout, "--version", "v1", "--home", tmp_path / "home"
    )
    said = "\n".join(answer.faults)
    assert "2" in said and "3" in said and "held" in said


def test_columns_of_other_names_are_mapped(delift: Any, tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    pl.DataFrame({"question": ["a", "b", "c"], "reply": ["x", "y", "z"]}).write_csv(file)
    answer = delift(
        "ingest", file, "--version", "v1", "--column", "instruction=question",
        "--column", "output=reply", "--home", tmp_path / "home", "--json",
    )  # fmt: skip
    assert answer.json["counts"]["pool"] + answer.json["counts"]["heldout"] == 3
    pool = pl.read_parquet(tmp_path / "home" / "datasets" / "v1" / "pool.parquet")
    assert set(pool["instruction"]) <= {"a", "b", "c"}
    assert set(pool["output"]) <= {"x", "y", "z"}


def test_a_child_inherits_the_held_out_set_and_counts_what_is_new(
    delift: Any, files: Any, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    first = ("ingest", files.first_pool, "--heldout", files.first_heldout, "--version", "v1")
    second = ("ingest", files.second_pool, "--parent", "v1", "--version", "v2")
    parent = delift(*first, "--home", home, "--json").json
    child = delift(*second, "--home", home, "--json").json
    assert child["details"]["heldout_hash"] == parent["details"]["heldout_hash"]
    assert child["counts"]["new"] == 20
    assert child["parents"] == {"dataset:v1": parent["content_hash"]}


@pytest.mark.parametrize("variable", [True, False])
def test_home_comes_from_the_option_or_the_environment(
    delift: Any, files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: bool
) -> None:
    home = tmp_path / "elsewhere"
    option = () if variable else ("--home", home)
    if variable:
        monkeypatch.setenv("DELIFT_HOME", str(home))
    assert delift("ingest", files.first_pool, "--version", "v1", *option).status == 0
    assert (home / "datasets" / "v1" / "manifest.json").is_file()
