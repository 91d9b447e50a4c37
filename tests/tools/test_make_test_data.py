"""The script that makes the folder of `DELIFT_TEST_DATA`, on local copies of the datasets."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from delift_pipeline.records.read import read_records
from tests.records.recipes.test_recipes import PUBLISHED, write_json_lines

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "make_test_data.py"
QUESTION = {
    "dolly": "instruction",
    "gsm8k": "question",
    "hotpotqa": "question",
    "mmlu": "question",
    "p3": "inputs_pretokenized",
    "query_rewriting": "Question",
    "squad": "question",
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_test_data", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def alpaca(number: int, output: str) -> dict[str, str]:
    return {"instruction": f"Task {number}", "input": "", "output": output}


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, str]:
    """A few rows of each dataset in its publishers' columns, one prompt given twice."""
    folder = tmp_path / "sources"
    for name, column in QUESTION.items():
        row = PUBLISHED[name][0]
        rows = [{**row, column: f"What is {number % 5}?"} for number in range(6)]
        for split in ("train", "test"):
            write_json_lines(folder / name / f"{split}.jsonl", rows)
    write_json_lines(folder / "mt_bench" / "test.jsonl", [PUBLISHED["mt_bench"][0]])
    original = [alpaca(number, "" if number == 2 else "old") for number in range(6)]
    cleaned = [alpaca(number, "new" if number % 2 else "old") for number in range(3, 9)]
    write_json_lines(folder / "alpaca" / "train.jsonl", original)
    write_json_lines(folder / "alpaca_cleaned" / "train.jsonl", cleaned)
    return {path.name: str(path) for path in folder.iterdir()}


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_folder_has_every_file_with_the_layout_that_tests_read(
    script: ModuleType, sources: dict[str, str], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    made = tmp_path / "made"
    script.make(made, sources, model)
    assert (made / "models" / "stories260k" / "config.json").is_file()
    paths = sorted(path.relative_to(made / "data") for path in (made / "data").rglob("*.jsonl"))
    assert {path.parent.name for path in paths} == {
        *("alpaca", "dolly", "gsm8k", "hotpotqa", "mmlu", "mt_bench"),
        *("p3_t0", "query_rewriting_canard", "squad"),
    }
    for path in paths:
        found = read_records(made / "data" / path, skip_bad=True)
        assert found.folded == 0, path
        assert found.left_out == (1 if path.stem == "v1_original" else 0), path
        rows = rows_of(made / "data" / path)
        assert len({row["id"] for row in rows}) == len(rows), path
        names = {"id", "instruction", "input", "output", "source", "task"}
        assert all(set(row) == names for row in rows), path


def test_the_cleaned_alpaca_follows_the_original_under_the_same_ids(
    script: ModuleType, sources: dict[str, str], tmp_path: Path
) -> None:
    script.write_alpaca(tmp_path / "alpaca", sources)
    first, later, test = (
        rows_of(tmp_path / "alpaca" / f"{name}.jsonl")
        for name in ("v1_original", "v3_latest_cleaned", "test")
    )
    assert [row["id"] for row in first] == [f"alpaca-{number:05}" for number in range(6)]
    assert first[2]["output"] == ""
    assert [(row["id"], row["output"]) for row in later] == [
        ("alpaca-00003", "new"),
        ("alpaca-00004", "old"),
        ("alpaca-00005", "new"),
    ]
    assert [row["instruction"] for row in test] == ["Task 6", "Task 7", "Task 8"]
