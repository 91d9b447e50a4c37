"""Benchmarks by name: rows in their publishers' columns, real files, and transfers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from delift_pipeline.core.errors import InputError
from delift_pipeline.evaluation.options import METRICS, EvaluationOptions
from delift_pipeline.evaluation.run import listed_options
from delift_pipeline.records.read import read_records
from delift_pipeline.records.recipes.read import (
    PartSizes,
    benchmark_rows,
    write_rows,
    write_transfer,
)
from delift_pipeline.records.recipes.table import RECIPES, TRANSFERS, find_recipe

# One row of each in its publishers' own columns, and the record it makes.
PUBLISHED: dict[str, tuple[dict[str, Any], list[tuple[str, str, str]]]] = {
    "mix_instruct": (
        {
            "id": "unified_chip2/3",
            "instruction": "",
            "input": "Name a fruit",
            "output": "An apple.",
            "candidates": [{"model": "m", "text": "A pear", "scores": {"bleu": 1.0}}],
        },
        [("", "Name a fruit", "An apple.")],
    ),
    "p3": (
        {"inputs_pretokenized": "Is it? \n", "targets_pretokenized": "\nYes"},
        [("Is it?", "", "Yes")],
    ),
    "hotpotqa": (
        {
            "id": "5a",
            "question": "Who?",
            "answer": "Ann",
            "type": "bridge",
            "context": {"title": ["T", "U"], "sentences": [["One. ", "Two."], ["Three."]]},
        },
        [("Who?", "[1] T: One. Two.\n[2] U: Three.", "Ann")],
    ),
    "mmlu": (
        {"question": "2+2?", "subject": "school_maths", "choices": ["3", "4"], "answer": 1},
        [
            (
                "The following is a multiple choice question about school maths. Answer with the "
                "letter of the correct option.",
                "2+2?\nA. 3\nB. 4",
                "B",
            )
        ],
    ),
    "mt_bench": (
        {
            "question_id": 101,
            "category": "math",
            "turns": ["Add 1 and 2.", "Double it."],
            "reference": ["3", "6"],
        },
        [("Add 1 and 2.", "", "3"), ("Double it.", "User: Add 1 and 2.\nAssistant: 3", "6")],
    ),
    "gsm8k": ({"question": "1+1?", "answer": "2\n#### 2"}, [("1+1?", "", "2\n#### 2")]),
    "squad": (
        {
            "id": "a",
            "title": "T",
            "question": "Who?",
            "context": "Ann did.",
            "answers": {"text": ["Ann", "Ann did"], "answer_start": [0, 0]},
        },
        [("Who?", "Ann did.", "Ann")],
    ),
    "query_rewriting": (
        {
            "History": ["Frank Zappa", "Disbandment", "What group disbanded?", "The Mothers."],
            "Question": "When did they?",
            "Rewrite": "When did The Mothers disband?",
            "QuAC_dialog_id": "C_1",
            "Question_no": 2,
        },
        [
            (
                "Rewrite the last question so that it can be understood without the conversation.",
                "Topic: Frank Zappa / Disbandment\nQ: What group disbanded?\nA: The Mothers.\n"
                "Q: When did they?",
                "When did The Mothers disband?",
            )
        ],
    ),
    "alpaca": (
        {"instruction": "Add", "input": "1 2", "output": "3", "text": "all of it"},
        [("Add", "1 2", "3")],
    ),
    "dolly": (
        {"instruction": "Add", "context": "1 2", "response": "3", "category": "maths"},
        [("Add", "1 2", "3")],
    ),
}
LOCAL = {
    "p3": "p3_t0",
    "query_rewriting": "query_rewriting_canard",
    **{name: name for name in ("hotpotqa", "mmlu", "mt_bench", "gsm8k", "squad", "dolly")},
}


def write_json_lines(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_every_recipe_has_a_published_row_here() -> None:
    assert set(PUBLISHED) == set(RECIPES)


@pytest.mark.parametrize("name", list(RECIPES))
def test_rows_in_their_publishers_columns_become_records(name: str, tmp_path: Path) -> None:
    row, expected = PUBLISHED[name]
    source = write_json_lines(tmp_path / "train.jsonl", [row])
    found = benchmark_rows(RECIPES[name], str(source))
    assert [(r["instruction"], r.get("input", ""), r["output"]) for r in found] == expected
    out = tmp_path / "records.jsonl"
    write_rows(out, found)
    assert read_records(out).frame.height == len(expected)


@pytest.mark.parametrize("name", list(RECIPES))
def test_metrics_of_a_recipe_can_be_asked_for(name: str) -> None:
    recipe = RECIPES[name]
    options = EvaluationOptions.model_validate({"metrics": recipe.metrics})
    assert options.metrics == recipe.metrics
    assert set(recipe.metrics) <= set(METRICS)


def test_a_hub_layout_is_found_in_a_local_copy(tmp_path: Path) -> None:
    row = PUBLISHED["gsm8k"][0]
    path = tmp_path / "main" / "train-00000-of-00001.parquet"
    path.parent.mkdir()
    pl.DataFrame([row]).write_parquet(path)
    found = benchmark_rows(find_recipe("gsm8k"), str(tmp_path))
    assert found[0]["output"] == row["answer"]


def test_turns_without_a_reference_make_no_record(tmp_path: Path) -> None:
    row = {"question_id": 1, "category": "x", "turns": ["a", "b"], "reference": ["c", ""]}
    bare = {"question_id": 2, "category": "x", "turns": ["a", "b"], "reference": []}
    source = write_json_lines(tmp_path / "test.jsonl", [row, bare])
    found = benchmark_rows(find_recipe("mt_bench"), str(source), "test")
    assert [one["source_id"] for one in found] == ["1-turn1"]


@pytest.mark.data
@pytest.mark.parametrize("name", list(LOCAL))
def test_the_public_samples_are_read(name: str, shared_data: Path, tmp_path: Path) -> None:
    split = "test" if name == "mt_bench" else "train"
    found = benchmark_rows(RECIPES[name], str(shared_data / LOCAL[name]), split, limit=40)
    assert 0 < len(found) <= 40
    out = tmp_path / "records.jsonl"
    write_rows(out, found)
    frame = read_records(out).frame
    assert frame.height + frame["copies"].sum() - frame.height == len(found)
    if name == "mmlu":
        prompts = [f"{row['instruction']}\n{row['input']}" for row in found]
        assert all(len(listed_options(prompt)) == 4 for prompt in prompts)


@pytest.mark.data
def test_alpaca_is_read_from_a_file(shared_data: Path) -> None:
    path = shared_data / "alpaca" / "v1_original.jsonl"
    assert len(benchmark_rows(RECIPES["alpaca"], str(path))) == 2000 - 4


def test_a_limit_draws_with_the_seed_and_keeps_the_order(tmp_path: Path) -> None:
    rows = [{"question": f"{i}", "answer": f"#### {i}"} for i in range(50)]
    source = str(write_json_lines(tmp_path / "train.jsonl", rows))
    first = benchmark_rows(find_recipe("gsm8k"), source, limit=10)
    assert first == benchmark_rows(find_recipe("gsm8k"), source, limit=10)
    assert first != benchmark_rows(find_recipe("gsm8k"), source, limit=10, seed=1)
    numbers = [int(row["instruction"]) for row in first]
    assert numbers == sorted(numbers)


def test_what_is_no_benchmark_is_refused_with_its_lines(tmp_path: Path) -> None:
    source = write_json_lines(
        tmp_path / "train.jsonl", [{"question": "a", "answer": "b"}, {"x": 1}]
    )
    with pytest.raises(InputError, match=r"train.jsonl:2: .*gsm8k needs answer, question"):
        benchmark_rows(find_recipe("gsm8k"), str(source))
    with pytest.raises(InputError, match="test split of gsm8k has no file"):
        benchmark_rows(find_recipe("gsm8k"), str(tmp_path), "test")
    with pytest.raises(InputError, match="recipes are mix_instruct"):
        find_recipe("unknown")
    with pytest.raises(InputError, match="give the files of p3 by --source"):
        benchmark_rows(find_recipe("p3"), None)
    with pytest.raises(InputError, match="neither a file, a folder nor a dataset"):
        benchmark_rows(find_recipe("gsm8k"), str(tmp_path / "nowhere"))


@pytest.fixture
def sources(tmp_path: Path, shared_data: Path) -> dict[str, str]:
    """Public samples by recipe; MixInstruct by a fixture of its schema."""
    row = PUBLISHED["mix_instruct"][0]
    rows = [{**row, "id": f"x/{i}", "input": f"Name fruit {i}"} for i in range(30)]
    for split in ("train", "test"):
        write_json_lines(tmp_path / "mix" / f"{split}_data_prepared.jsonl", rows)
    places = {name: str(shared_data / folder) for name, folder in LOCAL.items()}
    return {**places, "mix_instruct": str(tmp_path / "mix")}


@pytest.mark.data
@pytest.mark.parametrize("name", list(TRANSFERS))
def test_a_transfer_is_versions_for_the_inbox(
    name: str, sources: dict[str, str], tmp_path: Path
) -> None:
    inbox = tmp_path / "inbox"
    transfer = TRANSFERS[name]
    versions = write_transfer(inbox, transfer, sources, PartSizes(25, 8, 12))
    assert len(versions) == (1 if transfer.stage == "task_specific" else 2)
    seen: set[str] = set()
    for version in versions:
        parts = {path.stem for path in (inbox / version).glob("*.jsonl")}
        wanted = {"pool", "heldout"} | ({"target"} if transfer.stage == "task_specific" else set())
        assert parts == wanted
        for part in parts:
            found = set(read_records(inbox / version / f"{part}.jsonl").frame["record_id"])
            assert not found & seen
            seen |= found
    with pytest.raises(InputError, match="exists already"):
        write_transfer(inbox, transfer, sources, PartSizes(25, 8, 12))


@pytest.mark.data
def test_old_and_new_domain_share_no_topic(sources: dict[str, str], tmp_path: Path) -> None:
    versions = write_transfer(
        tmp_path, TRANSFERS["query_rewriting"], sources, PartSizes(400, 1, 200)
    )
    topics = [
        {
            row["input"].partition("\n")[0].partition(" / ")[0]
            for row in read_records(tmp_path / version / "pool.jsonl").frame.iter_rows(named=True)
        }
        for version in versions
    ]
    assert topics[0]
    assert topics[1]
    assert not topics[0] & topics[1]


@pytest.mark.data
def test_the_command_writes_a_benchmark_and_a_transfer(
    sources: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from delift_pipeline.cli.main import run

    program: Callable[..., int] = lambda *given: run([str(part) for part in given])  # noqa: E731
    out = tmp_path / "gsm8k.jsonl"
    given = ("recipe", "gsm8k", "--source", sources["gsm8k"], "--limit", 5, "--out", out)
    assert program(*given, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["records"] == 5
    assert "final_answer" in facts["metrics"]
    assert program("recipe") == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in (*RECIPES, *TRANSFERS))
    pairs = [f"{name}={sources[name]}" for name in ("squad", "hotpotqa")]
    given = ("recipe", "squad-hotpotqa", "--source", pairs[0], "--source", pairs[1])
    assert program(*given, "--limit", 20, "--heldout", 5, "--out", tmp_path / "in") == 0
    assert "stage continual" in capsys.readouterr().out
    assert program("recipe", "squad-hotpotqa", "--source", "squad", "--out", tmp_path) == 2
    assert "write RECIPE=PLACE" in capsys.readouterr().err
