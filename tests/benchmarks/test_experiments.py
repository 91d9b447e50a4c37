"""The experiments: each runs whole, is found again, survives a kill, and is shown and tracked."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from benchmarks import experiments
from benchmarks.cells import Cell, JudgeConfig, Setting
from benchmarks.contenders import contenders, known_names
from benchmarks.experiments import (
    EXPERIMENTS,
    ExperimentRequest,
    experiment,
    units_of,
)
from benchmarks.measure import training_options
from benchmarks.page import experiment_page, markdown_tables, write_page
from benchmarks.pools import Sizes
from benchmarks.theory import (
    Rules,
    mutual_information,
    pointwise_information,
    utilities,
)
from benchmarks.tracking import track_table
from delift_pipeline.bench.quality import run_quality
from delift_pipeline.bench.table import table_rows
from delift_pipeline.core.errors import DeliftError, InputError
from delift_pipeline.core.progress import SilentProgress
from delift_pipeline.demo import verify_demo_model
from delift_pipeline.scoring.fingerprint import fingerprint_of
from delift_pipeline.selection.registry import SELECTORS

TINY = Sizes(pool=40, heldout_per_task=2, target=4)
STEPS = dict.fromkeys(experiments.SWEEP, 2)
COLUMNS = (
    "stage selector mode budget wrong_share metric n mean se diff_random diff_se "
    "within_error_of_best"
).split()
PROGRAM = """
import sys
from pathlib import Path
from benchmarks.experiments import ExperimentRequest, experiment, units_of
from benchmarks.pools import Sizes
from delift_pipeline.bench.quality import run_quality
from delift_pipeline.core.progress import SilentProgress
sizes, steps = Sizes(40, 2, 4), {0.2: 2}
seeds = (700, 701, 702)
request = ExperimentRequest(("instruction_tuning",), seeds, ("delift",), True, sizes, steps)
units = units_of(experiment("selectors"), request)
run_quality(Path(sys.argv[1]), "selectors", units, SilentProgress())
"""


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def request_for(*stages: str, **given: Any) -> ExperimentRequest:
    return ExperimentRequest(
        cast(Any, stages),
        **{"seeds": (700,), "quick": True, "sizes": TINY, "steps": STEPS, **given},
    )


def tables(rows: list[dict[str, Any]], metric: str) -> dict[tuple[str, str, float], float]:
    found = [row for row in rows if row["metric"] == metric]
    return {(row["selector"], row["mode"], row["budget"]): row["mean"] for row in found}


@pytest.mark.parametrize(
    ("name", "stage", "present"),
    [
        ("stages", "continual", {("delift", "in_context"), ("initial", "lora"), ("full", "lora")}),
        ("budget", "task_specific", {("delift_trusted", "lora")}),
        ("annotation_budget", "instruction_tuning", {("delift-near-5", "lora")}),
        ("tuning", "instruction_tuning", {("full", "full"), ("delift_trusted", "lora")}),
        ("objectives", "task_specific", {("delift-fl2mi-eta=1", "lora")}),
        ("objectives", "continual", {("delift-flcg-nu=0", "lora")}),
        ("kernel", "instruction_tuning", {("delift-kl-min_max-keep", "lora")}),
        ("transfer", "instruction_tuning", {("delift-by-small", "lora")}),
    ],
)
def test_an_experiment_gives_the_rows_of_its_table(
    name: str, stage: str, present: set[tuple[str, str]], tmp_path: Path
) -> None:
    units = units_of(experiment(name), request_for(stage))
    result = run_quality(tmp_path, name, units, SilentProgress())
    rows = result["rows"]
    assert all(set(COLUMNS) <= set(row) and row["stage"] == stage for row in rows)
    assert present <= {(row["selector"], row["mode"]) for row in rows}
    paired = [row for row in rows if row["selector"] != "random"]
    assert paired and all(row["diff_random"] is not None for row in paired)
    page = write_page(tmp_path, experiment(name), result).read_text(encoding="utf-8")
    assert all(row["selector"] in page for row in rows) and page.count("<svg") >= 1


def test_another_model_is_tuned_by_the_papers_preset(tiny: Any, tmp_path: Path) -> None:
    given = request_for("continual", names=("delift_trusted",), model=tiny.model)
    units = units_of(experiment("tuning"), given)
    rows = run_quality(tmp_path, "tuning", units, SilentProgress())["rows"]
    losses = tables(rows, "answer_loss_new")
    assert losses["random", "lora", 0.2] != losses["random", "full", 0.2]
    paper = training_options("qlora", None, "paper")
    assert (paper.rank, paper.learning_rate, paper.epochs) == (8, 2.5e-5, 20.0)
    with pytest.raises(InputError, match="Use the experiment tuning"):
        units_of(experiment("budget"), ExperimentRequest(model=tiny.model))


def test_untrained_is_the_base_model_in_every_mode(tmp_path: Path) -> None:
    units = units_of(experiment("stages"), request_for("instruction_tuning", names=("initial",)))
    rows = run_quality(tmp_path, "stages", units, SilentProgress())["rows"]
    for metric in ("exact_match", "answer_loss", "rougeL", "squad_f1", "embedding_similarity"):
        found = tables(rows, metric)
        trained, shown = found["initial", "lora", 0.2], found["initial", "in_context", 0.2]
        assert trained == pytest.approx(shown, abs=1e-5)
        assert found["random", "lora", 0.2] != trained


def test_costs_grow_with_the_pairs_that_are_read(tmp_path: Path) -> None:
    units = units_of(experiment("cost"), request_for(names=("initial", "delift", "delift_trusted")))
    rows = run_quality(tmp_path, "cost", units, SilentProgress())["rows"]
    flops = tables(rows, "selection_flops")
    near, every = flops["delift_trusted", "lora", 0.2], flops["delift", "lora", 0.2]
    assert 0 == flops["random", "lora", 0.2] < near < every
    training = tables(rows, "training_flops")
    assert training["initial", "lora", 0.2] == 0 < training["random", "lora", 0.2]
    assert all(value >= 0 for value in tables(rows, "selection_seconds").values())
    best = next(row for row in rows if row["metric"] == "selection_flops")
    assert best["mean"] == 0, "less is better"
    page = experiment_page(experiment("cost"), {**_table(), "rows": rows})
    for metric in ("exact match", "exact match pool"):
        plot = page.partition(f'aria-label="{metric} by floating-point operations"')[2]
        drawn = plot.partition("</svg>")[0]
        assert all(one.name in drawn for one in contenders(["delift", "delift_trusted"]))
        assert "initial" not in drawn


@pytest.mark.parametrize("seed", range(5))
def test_log_probability_utility_is_conditional_mutual_information(seed: int) -> None:
    rules = Rules.draw(seed)
    ours, exact = utilities(rules), pointwise_information(rules)
    assert np.abs(exact).max() > 1
    np.testing.assert_allclose(ours, exact, atol=1e-6, rtol=0)
    information = mutual_information(rules, exact)
    assert information > 0.01
    assert mutual_information(rules, ours) == pytest.approx(information, abs=1e-6)
    # Bayes' rule over one rule is independence: nothing is learnt from a demonstration.
    alone = Rules(np.array([1.0]), rules.answers[:1])
    assert np.abs(utilities(alone)).max() < 1e-6


def test_theory_is_an_experiment_like_the_others(tmp_path: Path) -> None:
    units = units_of(experiment("theory"), ExperimentRequest())
    rows = run_quality(tmp_path, "theory", units, SilentProgress())["rows"]
    largest = next(row for row in rows if row["metric"] == "largest_difference")
    assert largest["n"] == 5 and 0 < largest["mean"] < 1e-6


def test_the_smaller_scorer_is_packaged_whole() -> None:
    small, demo = Setting(scorer="small-1500").scoring_model, Setting().scoring_model
    verify_demo_model(Path(small.model))
    assert (Path(small.model) / "model.safetensors").stat().st_size < 300_000
    prints = [fingerprint_of(model).parts for model in (small, demo)]
    assert prints[0]["tokenizer"] == prints[1]["tokenizer"]
    assert prints[0]["weights"] != prints[1]["weights"]
    with pytest.raises(InputError, match="is not a scorer"):
        _ = Setting(scorer="../other").scoring_model


def test_every_registered_selector_is_a_contender() -> None:
    assert {*SELECTORS, "initial", "delift_se-tfidf"} <= set(known_names())
    assert [one.name for one in contenders(["delift", "random"])] == ["random", "delift"]
    everyone = cast(Cell, units_of(EXPERIMENTS["selectors"], ExperimentRequest())[0]).contenders
    assert {one.selector for one in everyone} >= set(SELECTORS)
    with pytest.raises(InputError, match="'best' is not a selector"):
        contenders(["best"])


def test_a_judge_scores_the_answers_and_is_asked_once(chat_folder: Path, tmp_path: Path) -> None:
    judge_config = JudgeConfig.from_name(str(chat_folder), None, scoring="expected", least_mass=0.0)
    given = request_for("instruction_tuning", names=("initial",), judge=judge_config)
    stages = experiment("stages")
    units = units_of(stages, given)
    first = run_quality(tmp_path, "stages", units, SilentProgress(), notes=stages.notes(given))
    rows = first["rows"]
    for mode in ("lora", "in_context"):
        score, share = (
            tables(rows, name)["initial", mode, 0.2] for name in ("judge", "judge_scored")
        )
        assert 1 < score < 5 and share == 1
    assert any("mean score from 1 to 5" in note for note in first["notes"])
    (journal,) = tmp_path.glob("home/judgements/*/journal.jsonl")
    said = journal.read_bytes()
    for cell in tmp_path.glob("cells/*.json"):
        cell.unlink()
    second = run_quality(tmp_path, "stages", units, SilentProgress())
    assert second["rows"] == rows and journal.read_bytes() == said
    unjudged = units_of(stages, request_for("instruction_tuning", names=("initial",)))
    assert unjudged[0].key != units[0].key
    with pytest.raises(InputError, match="generates no answers to judge"):
        units_of(experiment("budget"), given)


def test_a_judge_that_does_not_reply_stops_the_experiment(tmp_path: Path) -> None:
    nobody = JudgeConfig.from_name("judge", "http://127.0.0.1:9/v1", retries=0)
    given = request_for(
        "instruction_tuning", names=("initial",), judge=nobody, modes=("in_context",)
    )
    units = units_of(experiment("stages"), given)
    with pytest.raises(DeliftError, match="questions to the judge failed"):
        run_quality(tmp_path, "stages", units, SilentProgress())
    assert not list(tmp_path.glob("cells/*.json"))


def test_a_table_says_what_it_leaves_out_and_what_its_numbers_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        experiments, "find_spec", lambda name: None if name == "bitsandbytes" else found(name)
    )
    tuning = experiment("tuning")
    given = request_for("instruction_tuning", names=("initial",))
    units = units_of(tuning, given)
    table = run_quality(tmp_path, "tuning", units, SilentProgress(), notes=tuning.notes(given))
    assert {row["mode"] for row in table["rows"]} == {"lora", "full"}
    (note,) = json.loads((tmp_path / "tuning.table.json").read_text())["notes"]
    assert note.startswith("qlora is left out")
    assert note in markdown_tables(table)
    assert "qlora is left out" in experiment_page(tuning, table)


def test_ratings_of_the_demo_model_are_said_to_mean_nothing() -> None:
    from delift_pipeline.scoring.model import load_encoder
    from delift_pipeline.scoring.options import ModelOptions
    from delift_pipeline.selection.selectors.selectit import QUESTION, RATING_PROMPTS

    selectors, stages = experiment("selectors"), experiment("stages")
    assert any("selectit" in note for note in selectors.notes(ExperimentRequest()))
    assert any("selectit" in note for note in stages.notes(ExperimentRequest()))
    assert not selectors.notes(ExperimentRequest(names=("delift",)))
    encoder = load_encoder(ModelOptions(model="demo", template="world"))
    unknown: Any = encoder.tokenizer.unk_token_id
    ids = [token for text in (*RATING_PROMPTS, QUESTION) for token in encoder.plain.ids(text)]
    counts = f"{ids.count(unknown)} of the {len(ids)} tokens"
    assert counts in experiments.SELECTIT_NOTE


def test_every_experiment_has_five_pools_and_a_quick_form() -> None:
    for one in EXPERIMENTS.values():
        seeds = {unit.seed for unit in units_of(one, ExperimentRequest())}
        quick = units_of(one, ExperimentRequest(quick=True))
        assert len(seeds) >= 5 and len({unit.seed for unit in quick}) == 2
        assert not {unit.seed for unit in quick} & set(experiments.FINAL_SEEDS)
        assert len({unit.key for unit in quick}) == len(quick)


def test_equal_compute_at_every_budget() -> None:
    setting = Setting()
    assert [setting.steps_at(b) for b in (0.05, 0.1, 0.2, 0.3, 0.5)] == [150, 150, 200, 300, 500]


def _table() -> dict[str, Any]:
    cells = [
        Cell("continual", seed, 0.15, (0.2,), contenders(["delift"]), TINY) for seed in (1, 2, 3)
    ]
    rows = [
        {
            "selector": name,
            "mode": "lora",
            "budget": 0.2,
            "draw": 0,
            "metric": "exact_match",
            "value": value,
            "size": 8,
            "wrong": 0.1,
            "pairs_per_record": 4.0,
        }
        for name, value in (("random", 0.2), ("<b>delift</b>", 0.5))
    ]
    varied = [[{**row, "value": row["value"] + 0.01 * cell.seed} for row in rows] for cell in cells]
    return {
        "experiment": "stages",
        "commit": "c0ffee",
        "commits_of_cells": ["c0ffee"],
        "seeds": [1, 2, 3],
        "notes": ["<i>a note"],
        "rows": table_rows(list(zip(cells, varied, strict=True))),
    }


def test_a_page_escapes_names_and_shows_errors() -> None:
    page = experiment_page(EXPERIMENTS["stages"], _table())
    assert "<i>a note" not in page and "&lt;i&gt;a note" in page
    assert "<b>delift" not in page and "&lt;b&gt;delift" in page
    assert "0.520 ± 0.006 *" in page and "+0.300 ± 0.000" in page and "15% wrong answers" in page


def test_a_markdown_table_says_what_is_not_resolved() -> None:
    table = _table()
    written = markdown_tables(table, ("exact",))
    assert "Pools 1, 2, 3; commit c0ffee." in written
    assert "| 20% | random | 0.220 ± 0.006 | - | 10% | 4.0 |" in written
    doubtful = [{**row, "random_verdict": "not resolved"} for row in table["rows"]]
    assert "+0.300 ± 0.000 (not resolved)" in markdown_tables({**table, "rows": doubtful})
    assert "contender" not in markdown_tables(table, ("answer_loss",))


def test_a_table_is_tracked_once_with_a_run_for_every_contender(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    from delift_pipeline.core.home import Home
    from delift_pipeline.lineage.tracking_store import local_uri

    table, kept = _table(), tmp_path / "table.json"
    kept.write_text(json.dumps(table), encoding="utf-8")
    parent = track_table(tmp_path, table, [kept])
    assert track_table(tmp_path, table, [kept]) == parent
    client = MlflowClient(local_uri(Home.at(tmp_path / "home")))
    where = client.get_run(parent).info.experiment_id
    runs = {run.info.run_id: run for run in client.search_runs([where])}
    assert runs.pop(parent).info.status == "FINISHED" and len(runs) == 2
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent}
    metrics = {run.data.params["selector"]: run.data.metrics for run in runs.values()}
    for row in table["rows"]:
        logged = metrics[row["selector"]]
        assert logged["exact_match"] == row["mean"] and logged["exact_match_se"] == row["se"]
        assert logged.get("exact_match_minus_random") == row["diff_random"]
    child = next(iter(runs))
    client.set_terminated(parent, "KILLED")
    client.set_terminated(child, "KILLED")
    assert track_table(tmp_path, table, [kept]) == parent
    assert len(client.search_runs([where])) == 3


@pytest.mark.slow
def test_a_killed_experiment_ends_with_the_same_table(tmp_path: Path) -> None:
    def start(folder: Path) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder)], env=environment)

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    first = start(killed)
    deadline = time.monotonic() + 900
    while not list(killed.glob("cells/*.json")) and time.monotonic() < deadline:
        assert first.poll() is None, "it ended before it could be killed"
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait(60)
    done = {path.name: path.stat().st_mtime_ns for path in killed.glob("cells/*.json")}
    assert 1 <= len(done) < 3 and not (killed / "selectors.table.json").exists()
    for folder in (killed, whole):
        assert start(folder).wait(900) == 0
    assert all((killed / "cells" / name).stat().st_mtime_ns == at for name, at in done.items())
    tables = [json.loads((f / "selectors.table.json").read_text()) for f in (killed, whole)]
    assert tables[0]["rows"] == tables[1]["rows"] and len(tables[0]["rows"]) > 0
