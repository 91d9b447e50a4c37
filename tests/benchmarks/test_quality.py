"""The quality benchmark: stacked training is PEFT's, tables are paired, cells are kept."""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from benchmarks import experiments
from benchmarks.cells import Cell, Setting
from benchmarks.contenders import contenders
from benchmarks.experiments import EXPERIMENTS, FINAL_SEEDS, ExperimentRequest, units_of
from benchmarks.pools import Sizes, draw_pool, score_pool
from delift_pipeline.bench import quality
from delift_pipeline.bench.quality import run_quality
from delift_pipeline.bench.table import table_rows
from delift_pipeline.cli.main import run
from delift_pipeline.core.home import Home
from delift_pipeline.core.progress import SilentProgress
from delift_pipeline.selection.selector import Needs

TINY = Sizes(pool=40, heldout_per_task=2, target=4)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


COMPARED = ("random", "delift", "delift-published", "delift_se-tfidf", "delift_trusted")


def tiny(stage: str = "instruction_tuning", seed: int = 700, **changed: Any) -> Cell:
    setting = Setting(**{"steps": {0.2: 3}, **changed})
    return Cell(cast(Any, stage), seed, 0.15, (0.2,), contenders(COMPARED), TINY, setting)


@pytest.mark.parametrize("stage", ["instruction_tuning", "task_specific", "continual"])
def test_a_pool_is_drawn_and_its_cell_measured(stage: str, tmp_path: Path) -> None:
    result = run_quality(tmp_path, "selectors", [tiny(stage)], SilentProgress())
    rows = result["rows"]
    assert {row["selector"] for row in rows} == set(COMPARED)
    metrics = {row["metric"] for row in rows}
    wanted = {
        "instruction_tuning": {"exact_match", "exact_match_pool"},
        "task_specific": {"exact_match"},
        "continual": {"exact_match_new", "exact_match_old"},
    }
    assert wanted[stage] <= metrics
    trusted = [row for row in rows if row["selector"] == "delift_trusted"]
    limit = 45 + (TINY.target if stage == "task_specific" else 0)
    assert all(0 < row["pairs_per_record"] <= limit for row in trusted)
    assert all(row["n"] == 1 and row["se"] is None for row in rows)
    assert all(0 <= row["mean"] <= 1 for row in rows if row["metric"].startswith("exact"))


def test_cells_are_found_again_and_equal(tmp_path: Path, monkeypatch) -> None:
    first = run_quality(tmp_path / "a", "selectors", [tiny()], SilentProgress())
    again = run_quality(tmp_path / "b", "selectors", [tiny()], SilentProgress())
    assert first["rows"] == again["rows"]
    monkeypatch.setattr(quality, "_run_unit", lambda *given: pytest.fail("measured again"))
    found = run_quality(tmp_path / "a", "selectors", [tiny()], SilentProgress())
    assert found["rows"] == first["rows"]
    assert tiny().key != tiny(seed=701).key != tiny(steps={0.2: 4}).key


def test_wrong_answers_are_known_to_the_table_alone(tmp_path: Path) -> None:
    drawn = draw_pool("instruction_tuning", 700, 0.15, TINY)
    assert len(drawn.wrong) == 6
    assert draw_pool("instruction_tuning", 700, 0.0, TINY).wrong == frozenset()
    scores = score_pool(Home.at(tmp_path), "x", drawn, [Needs("neighbours")])
    assert scores.pairs["self"] == scores.pairs["neighbours"] <= 40 * 40
    assert "correct" not in scores.inputs.pool.columns


def _row(selector: str, value: float, draw_number: int = 0) -> dict[str, Any]:
    return {
        "selector": selector,
        "mode": "lora",
        "budget": 0.2,
        "draw": draw_number,
        "metric": "exact_match",
        "value": value,
        "size": 8,
        "wrong": 0.0,
        "pairs_per_record": 0.0,
    }


def test_differences_are_paired_by_pool_and_doubt_is_said() -> None:
    gains, found = [0.1, 0.2, 0.15], []
    for seed, gain in enumerate(gains):
        base = 0.1 * seed
        rows = [_row("random", base + d, n) for n, d in enumerate((-0.05, 0.0, 0.05))]
        rows += [_row("delift_trusted", base + gain), _row("delift", base + gain - 0.1)]
        found.append((tiny(seed=seed), rows))
    table = {row["selector"]: row for row in table_rows(found)}
    trusted, plain = table["delift_trusted"], table["delift"]
    assert trusted["diff_random"] == pytest.approx(0.15) and trusted["n"] == 3
    assert trusted["diff_se"] == pytest.approx(np.std(gains, ddof=1) / 3**0.5)
    assert trusted["random_verdict"] == "higher" and trusted["within_error_of_best"]
    assert plain["diff_random"] == pytest.approx(0.05)
    assert plain["random_verdict"] == "not resolved" and not plain["within_error_of_best"]
    assert trusted["diff_delift"] == pytest.approx(0.1) and trusted["diff_tfidf"] is None
    assert table["random"]["diff_random"] is None


def test_the_four_compared_selectors_keep_the_final_pools() -> None:
    selectors = EXPERIMENTS["selectors"]
    four = units_of(
        selectors, ExperimentRequest(names=("delift", "delift_trusted", "delift_se-tfidf"))
    )
    assert len(four) == 3 * 10 * 2 and {cell.seed for cell in four} == set(FINAL_SEEDS)
    quick = units_of(selectors, ExperimentRequest(names=("delift",), quick=True))
    assert len(quick) == 6 and not {cell.seed for cell in quick} & set(FINAL_SEEDS)
    assert all(isinstance(cell, Cell) and cell.budgets == (0.2,) for cell in quick)
    assert [one.name for one in cast(Cell, quick[0]).contenders] == ["random", "delift"]
    everyone = units_of(selectors, ExperimentRequest())
    assert len({cell.seed for cell in everyone}) == 5


def test_the_command_gives_one_document(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(experiments, "units_of", lambda *given: [tiny("task_specific")])
    where = ["bench", "quality", "--only", "task_specific,random", "--workers", "1", "--no-track"]
    assert run([*where, "--out", str(tmp_path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["experiment"] == "selectors"
    assert {"stage", "selector", "mode", "budget", "wrong_share", "metric", "n", "mean", "se"} <= (
        set(document["rows"][0])
    )
    assert Path(document["page"]).is_file()
    assert run([*where, "--out", str(tmp_path)]) == 0
    assert "task_specific: exact_match, lora, 15% wrong answers" in capsys.readouterr().out


def test_an_experiments_numbers_are_the_same_wherever_they_are_shown(
    delift: Any, tmp_path: Path
) -> None:
    from mlflow.tracking import MlflowClient

    from delift_pipeline.lineage.tracking_store import local_uri

    asked = ["--experiment", "theory", "--quick", "--workers", "1", "--out", tmp_path, "--json"]
    document = delift("bench", "quality", *asked).json
    kept = json.loads((tmp_path / "theory.table.json").read_text(encoding="utf-8"))
    compared = delift("compare", "--experiment", "theory", "--out", tmp_path, "--json").json
    assert document["rows"] == kept["rows"] == compared["rows"]
    assert compared["page"] == document["page"] == str(tmp_path / "theory.html")
    client = MlflowClient(local_uri(Home.at(tmp_path / "home")))
    where = client.get_run(document["mlflow_run"]).info.experiment_id
    wanted = f"tags.`mlflow.parentRunId` = '{document['mlflow_run']}'"
    runs = {run.data.params["selector"]: run.data for run in client.search_runs([where], wanted)}
    assert {row["selector"] for row in kept["rows"]} == set(runs)
    for row in kept["rows"]:
        logged = runs[row["selector"]].metrics
        assert (logged[row["metric"]], logged[f"{row['metric']}_se"]) == (row["mean"], row["se"])
        assert runs[row["selector"]].params["n"] == str(row["n"]) == "2"
    page = Path(document["page"]).read_text(encoding="utf-8")
    assert all(row["selector"] in page for row in kept["rows"])


def test_compare_shows_the_contenders_that_are_named(delift: Any, tmp_path: Path) -> None:
    row = {"stage": "continual", "wrong_share": 0.15, "mode": "lora", "budget": 0.2}
    row |= {"metric": "exact_match", "n": 2, "mean": 0.5, "se": 0.1, "pairs_per_record": 3.0}
    row |= {"within_error_of_best": True, "wrong_in_subset": 0.1, "records": 4.0}
    for short in ("random", "tfidf", "delift"):
        se = "diff_se" if short == "random" else f"diff_{short}_se"
        row |= {f"diff_{short}": None, se: None, f"{short}_verdict": None}
    rows = [{**row, "selector": name} for name in ("random", "delift")]
    table = {"experiment": "budget", "notes": ["a note"], "rows": rows}
    (tmp_path / "budget.table.json").write_text(json.dumps(table), encoding="utf-8")
    asked = ("compare", "--experiment", "budget", "--out", tmp_path)
    shown = delift(*asked, "delift").out
    assert "exact_match" in shown and "delift *" in shown and "random *" not in shown
    assert shown.splitlines()[-2:] == ["a note", str(tmp_path / "budget.html")]
    assert "'best' is not a contender" in delift(*asked, "best").faults[0]
    missing = delift("compare", "--experiment", "cost", "--out", tmp_path).faults[0]
    assert "`delift bench quality --experiment cost" in missing
    other = delift("compare", "--experiment", "other").faults[0]
    assert "'other' is not an experiment" in other
    assert "name arms as V/ARM" in delift("compare").faults[0]


def test_installed_command_knows_every_experiment() -> None:
    assert tuple(EXPERIMENTS) == quality.EXPERIMENT_NAMES


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--only", "best"], "not a stage or a selector"),
        (["--experiment", "other"], "Choose from: selectors, stages"),
        (["--experiment", "theory", "--only", "delift"], "has its own contenders"),
        (["--seeds", "a"], "write --seeds"),
        (["--seeds", "9-3"], "holds no pool"),
    ],
)
def test_what_cannot_be_asked_is_refused(asked, said, tmp_path: Path, capsys) -> None:
    assert run(["bench", "quality", *asked, "--out", str(tmp_path / "out")]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
