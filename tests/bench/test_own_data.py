"""`delift bench quality --data`: pools of a user's file, with a tiny random model."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from delift_pipeline.bench import own_data
from delift_pipeline.bench.own_data import Training, compare_on_data, parse_contender
from delift_pipeline.bench.sources import Source, read_source
from delift_pipeline.core.errors import InputError
from delift_pipeline.core.progress import SilentProgress
from delift_pipeline.evaluation.options import EvaluationOptions
from delift_pipeline.evaluation.run import evaluate
from delift_pipeline.records.read import read_records
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.training import stacked_layers
from tests.conftest import CODES, THINGS, Delift

SELECTORS = ("initial", "random", "full", "delift_se", "delift_trusted")
ROW_KEYS = {
    *("stage", "wrong_share", "mode", "budget", "metric", "selector", "n", "mean", "se"),
    *("diff_random", "diff_se", "random_verdict", "diff_tfidf", "diff_tfidf_se", "tfidf_verdict"),
    *("diff_delift", "diff_delift_se", "delift_verdict", "within_error_of_best"),
    *("wrong_in_subset", "records", "pairs_per_record"),
}
"""The keys of a row of an experiment's table."""


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 records of four tasks, in the words of the tiny model."""
    path = tmp_path_factory.mktemp("data") / "records.jsonl"
    rows = [
        {
            "id": f"{task}-{number}",
            "instruction": f"{task} the code of",
            "input": thing,
            "output": f"{CODES[(number + shift) % 6]} {CODES[number // 6]}",
            "task": task,
        }
        for shift, task in enumerate(("say", "Task:", "Answer:", "of"))
        for number, thing in enumerate(THINGS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def source(file: Path) -> Source:
    return read_source(file, pool_size=20, heldout_size=8)


def compare(folder: Path, source: Source, model: ModelOptions, **changed: Any) -> dict[str, Any]:
    request: dict[str, Any] = {
        "selectors": SELECTORS,
        "budgets": (0.2, 0.4),
        "wrong_shares": (0.0, 0.25),
        "seeds": (0, 1),
        "training": Training(steps=3),
        **changed,
    }
    return compare_on_data(folder, source, model, SilentProgress(), **request)


@pytest.fixture(scope="module")
def comparison(
    tmp_path_factory: pytest.TempPathFactory, source: Source, tiny: ModelOptions
) -> tuple[Path, dict[str, Any]]:
    """A folder of results, and its table."""
    folder = tmp_path_factory.mktemp("bench")
    return folder, compare(folder, source, tiny)


def picks_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(p.read_text()) for p in sorted(folder.glob("pools/*/facts.json"))]


def test_the_table_has_the_rows_of_an_experiment_and_an_advice(
    comparison: tuple[Path, dict[str, Any]],
) -> None:
    folder, table = comparison
    assert {*table} == {
        *("experiment", "commit", "commits_of_cells", "seeds", "notes", "rows"),
        *("advice", "seconds", "pairs_scored"),
    }
    assert json.loads((folder / "data.table.json").read_text()) == table
    rows = table["rows"]
    assert all({*row} == ROW_KEYS for row in rows)
    trained = {row["metric"] for row in rows if row["mode"] == "lora"}
    assert trained == {"answer_loss", "token_accuracy", "training_seconds"}
    picked = {row["metric"] for row in rows if row["mode"] == "selection"}
    assert picked == {"tasks_kept", "selection_seconds"}
    for budget, wrong in ((0.2, 0.0), (0.2, 0.25), (0.4, 0.0), (0.4, 0.25)):
        group = [r for r in rows if (r["budget"], r["wrong_share"]) == (budget, wrong)]
        losses = {r["selector"]: r for r in group if r["metric"] == "answer_loss"}
        assert {*losses} == {*SELECTORS} and all(r["n"] == 2 for r in losses.values())
        assert losses["full"]["records"] == 20 and losses["random"]["records"] == 20 * budget
        assert losses["full"]["wrong_in_subset"] == pytest.approx(wrong)
        assert (
            losses["random"]["pairs_per_record"] == 0 < losses["delift_trusted"]["pairs_per_record"]
        )
    assert table["pairs_scored"] > 0 < table["seconds"]
    assert table["advice"].startswith("On this data, ")


def test_the_untrained_model_has_the_loss_that_evaluation_gives_it(
    comparison: tuple[Path, dict[str, Any]], source: Source, tiny: ModelOptions
) -> None:
    assert source.heldout is not None
    found = evaluate(tiny, None, source.heldout, EvaluationOptions(metrics=("answer_loss",)))
    rows = [
        r
        for r in comparison[1]["rows"]
        if (r["selector"], r["metric"]) == ("initial", "answer_loss")
    ]
    for row in rows:
        assert row["mean"] == pytest.approx(found.metrics["answer_loss"], abs=1e-5)
        assert row["se"] == pytest.approx(0, abs=1e-9)


def test_no_pool_has_a_heldout_prompt_and_each_pair_is_scored_once(
    comparison: tuple[Path, dict[str, Any]], source: Source
) -> None:
    folder, table = comparison
    assert source.heldout is not None
    asked = {tuple(row) for row in source.heldout.select("instruction", "input").rows()}
    pairs = set()
    for path in folder.glob("pools/*/pool.jsonl"):
        frame = read_records(path).frame
        assert frame.height == 20
        assert not asked & {tuple(row) for row in frame.select("instruction", "input").rows()}
        pairs |= {(a, b) for a in frame["record_id"] for b in frame["record_id"] if a != b}
    assert table["pairs_scored"] <= len(pairs)


def test_a_smaller_budget_takes_the_start_of_the_ranking(
    comparison: tuple[Path, dict[str, Any]],
) -> None:
    for facts in picks_of(comparison[0]):
        picks = {(name, budget, draw): ids for name, budget, draw, ids in facts["picks"]}
        assert len({draw for name, _, draw in picks if name == "random"}) == 2
        for (name, budget, draw), ids in picks.items():
            if budget == 0.2 and name not in ("initial", "full"):
                assert len(ids) == 4 and picks[name, 0.4, draw][:4] == ids


def test_a_comparison_resumes_with_the_cells_that_are_missing(
    comparison: tuple[Path, dict[str, Any]],
    source: Source,
    tiny: ModelOptions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, table = comparison
    runs = []
    run = own_data.DataCell.run
    monkeypatch.setattr(
        own_data.DataCell, "run", lambda cell, place: runs.append(cell.key) or run(cell, place)
    )
    assert compare(folder, source, tiny) == table and not runs
    lost = sorted((folder / "cells").glob("*.json"))[0]
    lost.unlink()
    again = compare(folder, source, tiny)
    assert runs == [lost.stem]
    timed = ("selection_seconds", "training_seconds")
    ours, theirs = (
        [row for row in one["rows"] if row["metric"] not in timed] for one in (again, table)
    )
    assert ours == theirs


def test_runs_that_do_not_fit_into_memory_together_are_trained_in_halves(
    comparison: tuple[Path, dict[str, Any]],
    source: Source,
    tiny: ModelOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip, sizes = stacked_layers.clip_each_run, []

    def short_of_memory(parameters: Any, limit: float | None) -> None:
        sizes.append(len(parameters[0]))
        if sizes[-1] > 1:
            raise MemoryError
        clip(parameters, limit)

    monkeypatch.setattr(stacked_layers, "clip_each_run", short_of_memory)
    again = compare(tmp_path, source, tiny, wrong_shares=(0.0,))
    assert max(sizes) > 1 and 1 in sizes

    def losses(table: dict[str, Any]) -> dict[Any, float]:
        return {
            (row["selector"], row["budget"]): row["mean"]
            for row in table["rows"]
            if row["metric"] == "answer_loss" and not row["wrong_share"]
        }

    assert losses(again) == pytest.approx(losses(comparison[1]), abs=1e-5)


def test_equal_epochs_train_the_full_data_longer(
    source: Source, tiny: ModelOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, steps = stacked_layers.train, []

    def counted(model: Any, sets: Any, seeds: Any, options: Any, *rest: Any) -> Any:
        steps.extend((len(one), options.presentations(len(one))) for one in sets)
        return train(model, sets, seeds, options, *rest)

    monkeypatch.setattr(stacked_layers, "train", counted)
    short = {"seeds": (0, 1), "wrong_shares": (0.0,), "budgets": (0.4,)}
    names = {"selectors": ("random", "full"), "training": Training(epochs=2)}
    table = compare(tmp_path, source, tiny, **short, **names)
    assert sorted(set(steps)) == [(8, 16), (20, 40)]
    assert "saves 60% of the training" in table["advice"]


def test_generated_answers_are_measured_on_request(
    source: Source, tiny: ModelOptions, tmp_path: Path
) -> None:
    short = {"seeds": (0,), "wrong_shares": (0.0,), "budgets": (0.4,), "selectors": ("initial",)}
    table = compare(tmp_path, source, tiny, **short, generate=True)
    assert source.heldout is not None
    names = ("exact_match", "rougeL")
    found = evaluate(tiny, None, source.heldout, EvaluationOptions(metrics=names))
    rows = {(row["selector"], row["metric"]): row["mean"] for row in table["rows"]}
    assert {metric for _, metric in rows} >= {*names}
    for name in names:
        assert rows["initial", name] == pytest.approx(found.metrics[name], abs=1e-6)


def test_the_command_compares_without_training(
    file: Path, tiny: ModelOptions, tmp_path: Path, delift: Delift
) -> None:
    arguments = ("bench", "quality", "--data", file, "--model", tiny.model, "--device", "cpu")
    arguments += ("--pools", 2, "--pool-size", 20, "--heldout-size", 8, "--wrong", "0.25")
    arguments += ("--skew", 0.7, "--selectors", "delift_se,random", "--budgets", "0.2")
    arguments += ("--no-train", "--out", tmp_path / "out")
    document = delift(*arguments, "--json").json
    assert {row["mode"] for row in document["rows"]} == {"selection"}
    assert document["advice"].startswith("Nothing was trained")
    assert document["pairs_scored"] == 0
    printed = delift(*arguments).out
    assert "tasks_kept" in printed and printed.splitlines()[-1] == document["advice"]


def test_the_demo_world_has_pools_of_its_own(tmp_path: Path, delift: Delift) -> None:
    document = delift(
        *("bench", "quality", "--data", "demo", "--pools", 1, "--pool-size", 60),
        *("--heldout-size", 20, "--wrong", 0.25, "--budgets", 0.2, "--selectors", "full,random"),
        *("--steps", 2, "--out", tmp_path / "out", "--json"),
    ).json
    full = [row for row in document["rows"] if row["selector"] == "full"]
    assert all(row["wrong_in_subset"] == 0.25 for row in full)
    assert any("template world" in note for note in document["notes"])


def test_what_does_not_fit_is_refused(
    file: Path, tiny: ModelOptions, tmp_path: Path, delift: Delift
) -> None:
    start = ("bench", "quality", "--data", file, "--out", tmp_path / "out")
    model = ("--model", tiny.model)
    assert "--model" in delift(*start).faults[0]
    assert "--epochs" in delift(*start, *model, "--steps", 1, "--epochs", 1).faults[0]
    assert "--budgets" in delift(*start, *model, "--budgets", 2).faults[0]
    assert "--wrong" in delift(*start, *model, "--wrong", 1.5).faults[0]
    assert "--pool-size" in delift(*start, *model, "--pool-size", 4000).faults[0]
    assert "--selectors" in delift(*start, *model, "--selectors", "best").faults[0]
    demo = ("bench", "quality", "--data", "demo", "--heldout", file, "--out", tmp_path / "out")
    assert "--heldout" in delift(*demo).faults[0]


def test_selectors_are_written_with_their_options() -> None:
    one = parse_contender("delift_se:embedder=minilm+eta=0.5")
    assert (one.selector, one.options) == ("delift_se", {"embedder": "minilm", "eta": 0.5})
    with pytest.raises(InputError, match="has no value"):
        parse_contender("delift_se:embedder")
    with pytest.raises(InputError, match="colour"):
        parse_contender("delift_se:colour=red")


def test_a_heldout_file_and_a_target_file_leave_their_prompts_out_of_the_pools(
    file: Path, tmp_path: Path
) -> None:
    lines = file.read_text().splitlines(keepends=True)
    heldout, target = tmp_path / "heldout.jsonl", tmp_path / "target.jsonl"
    heldout.write_text("".join(lines[:5]))
    target.write_text("".join(lines[5:9]))
    source = read_source(file, heldout, target)
    assert source.records is not None and source.heldout is not None
    assert source.records.height == 39 and source.heldout.height == 5
    assert not pl.Series(source.records["record_id"]).is_in(source.heldout["record_id"]).any()
    assert source.pool_size == 39 and any("overlap" in note for note in source.notes)
