"""Make the folder that `DELIFT_TEST_DATA` names: samples of public datasets, and a small model.

`docs/tests.md` says how to call it, lists the files, and says what the tests assume of them.
"""

import argparse
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from delift_pipeline.records.recipes.read import benchmark_rows, split_files, write_rows
from delift_pipeline.records.recipes.table import RECIPES, Recipe

MODEL = Path("models") / "stories260k"
ORIGINAL = RECIPES["alpaca"]
CLEANED = replace(
    ORIGINAL,
    name="alpaca_cleaned",
    hub="yahma/alpaca-cleaned",
    files={"train": ("train.jsonl", "train.json", "alpaca_data_cleaned.json")},
)
FOLDERS = {"p3": "p3_t0", "query_rewriting": "query_rewriting_canard"}
"""Where a recipe's files lie, if not under its name."""
SPLITS = {
    "dolly": ("train",),
    "gsm8k": ("train", "test"),
    "hotpotqa": ("train", "test"),
    "mmlu": ("train", "test"),
    "mt_bench": ("test",),
    "p3": ("train",),
    "query_rewriting": ("train", "test"),
    "squad": ("train", "test"),
}
LIMITS = {"train": 2000, "test": 300}


def main() -> None:
    """Read the command line and write the folder."""
    parser = argparse.ArgumentParser(description="Make the folder that DELIFT_TEST_DATA names.")
    parser.add_argument("folder", type=Path, help="the folder to make")
    parser.add_argument("--model", type=Path, help="a small pretrained model's folder, to copy")
    parser.add_argument(
        "--source",
        action="append",
        default=[],
        type=_named_source,
        metavar="RECIPE=PLACE",
        help="where to read the dataset of a recipe: a local file, a local folder or a hub id "
        "[the hub id of the recipe]",
    )
    given = parser.parse_args()
    make(given.folder, dict(given.source), given.model)


def _named_source(text: str) -> tuple[str, str]:
    name, separator, place = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"write RECIPE=PLACE, not {text}")
    return name, place


def make(folder: Path, sources: Mapping[str, str], model: Path | None) -> None:
    """Write all samples, each drawn with seed 0, and copy the model.

    Args:
        folder: The folder to make.
        sources: Recipe -> a local file or folder, or a hub id; the others come from the hub.
        model: The folder of a small pretrained model, or None to leave it out.
    """
    for name, splits in SPLITS.items():
        for split in splits:
            place, limit = sources.get(name), LIMITS[split]
            rows = benchmark_rows(RECIPES[name], place, split, limit=limit)
            path = folder / "data" / FOLDERS.get(name, name) / f"{split}.jsonl"
            write_rows(path, numbered(unique(rows), f"{name}-{split}"))
    write_alpaca(folder / "data" / "alpaca", sources)
    if model is not None:
        shutil.copytree(model, folder / MODEL, dirs_exist_ok=True)


def write_alpaca(folder: Path, sources: Mapping[str, str]) -> None:
    """The first records of Alpaca as published, and what became of the same prompts later."""
    first = numbered(published(ORIGINAL, sources)[: LIMITS["train"]], "alpaca")
    ids = {prompt_of(row): row["id"] for row in first}
    cleaned = [row for row in unique(published(CLEANED, sources)) if row["output"].strip()]
    later = [
        {**row, "id": ids[prompt_of(row)]}
        for row in numbered(cleaned, "alpaca")
        if prompt_of(row) in ids
    ]
    other = numbered([row for row in cleaned if prompt_of(row) not in ids], "alpaca-test")
    write_rows(folder / "v1_original.jsonl", first)
    write_rows(folder / "v3_latest_cleaned.jsonl", later)
    write_rows(folder / "test.jsonl", other[-LIMITS["test"] :])


def published(recipe: Recipe, sources: Mapping[str, str]) -> list[dict[str, Any]]:
    """The rows of an Alpaca dataset as they are, empty answers included."""
    rows: list[dict[str, Any]] = []
    for path in split_files(recipe, sources.get(recipe.name), "train"):
        text = "" if path.suffix == ".parquet" else path.read_text(encoding="utf-8")
        if path.suffix == ".parquet":
            rows += pl.read_parquet(path).to_dicts()
        elif path.suffix == ".json":
            rows += json.loads(text)
        else:
            rows += [json.loads(line) for line in text.split("\n") if line.strip()]
    return [{name: row[name] for name in ("instruction", "input", "output")} for row in rows]


def prompt_of(row: Mapping[str, str]) -> tuple[str, str]:
    """What is asked in a row."""
    return row["instruction"], row.get("input", "")


def unique(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without those that repeat an earlier prompt."""
    return list({prompt_of(row): row for row in reversed(rows)}.values())[::-1]


def numbered(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The rows in the fields that the folder's files have: an id each, and where they are from."""
    return [
        {
            "id": f"{name}-{number:05}",
            **{field: row.get(field, "") for field in ("instruction", "input", "output")},
            "source": name,
            "task": row.get("task", name),
        }
        for number, row in enumerate(rows)
    ]


if __name__ == "__main__":
    main()
