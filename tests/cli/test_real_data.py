"""Public data and a real pretrained model through everything, from the command line."""

import json
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from delift_pipeline.core.home import Home
from delift_pipeline.graph import build_assets
from delift_pipeline.stages.arms import load_arms

pytestmark = pytest.mark.data

# Thirty steps are enough to see an adapter that differs from its start; the length of an answer is
# held down because a model that writes stories ends none of them early.
ARMS = """
defaults:
  training: {{steps: {steps}, batch_size: 4, learning_rate: 2.0e-3}}
  evaluation: {{metrics: [answer_loss, exact_match, rougeL], max_new_tokens: 8}}
selectors:
  delift: {{utility: kl_mean}}
arms:
  instruction_tuning.random: {{}}
  instruction_tuning.full: {{budget: full}}
  instruction_tuning.delift: {{}}
  continual.random: {{}}
  continual.full: {{budget: full}}
  continual.delift: {{}}
"""
FIRST = [f"instruction_tuning.{selector}" for selector in ("random", "full", "delift")]


def head(source: Path, path: Path, count: int) -> Path:
    with source.open(encoding="utf-8") as lines:
        path.write_text("".join(line for line, _ in zip(lines, range(count), strict=False)))
    return path


def with_arms(home: Home, steps: int) -> None:
    home.root.mkdir(parents=True, exist_ok=True)
    home.arms_file.write_text(ARMS.format(steps=steps), encoding="utf-8")


def ingest_and_run(program: Any, home: Home, version: str, *ingest: object) -> dict[str, Any]:
    stored = program("ingest", *ingest, "--version", version, "--home", home.root, "--json")
    assert stored.json["counts"]["pool"] > 0
    return program("run", "--version", version, "--home", home.root, "--json").json


def check_assets(home: Home) -> None:
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        for asset in build_assets(load_arms()):
            assert instance.get_latest_materialization_event(asset.key) is not None, asset.key


def check_mlflow(home: Home, version: str, arms: list[str]) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{home.mlflow / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("delift")
    assert experiment is not None
    wanted = f"tags.`delift.version` = '{version}'"
    found = client.search_runs([experiment.experiment_id], wanted)
    runs = [run for run in found if "delift.arm" in run.data.tags]
    assert sorted(run.data.tags["delift.arm"] for run in runs) == sorted(arms)
    assert all(run.info.status == "FINISHED" for run in runs)
    assert all("answer_loss" in run.data.metrics for run in runs)


def check_subsets(home: Home, version: str, sizes: dict[str, int]) -> None:
    for arm, size in sizes.items():
        subset = pl.read_parquet(home.subset(version, arm) / "subset.parquet")
        said = json.loads((home.subset(version, arm) / "manifest.json").read_text())
        assert subset.height == size or said["details"]["notes"], arm


def check_adapter(folder: Path, base: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    ids = torch.tensor([[1, 400, 401, 402]])
    with torch.inference_mode():
        before = model(ids).logits
        after = PeftModel.from_pretrained(model, folder)(ids).logits
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)


def check_reports(home: Home, version: str, arms: list[str], measured: int) -> None:
    for arm in arms:
        folder = home.report(version, arm)
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        counts = report["evaluation"]["counts"]
        assert counts["heldout"] == measured
        assert 0 < counts["records"] <= measured
        assert (folder / "report.html").stat().st_size > 1000


def gsm8k(
    program: Any, shared_data: Path, stories: Path, folder: Path, pool: int, heldout: int
) -> Home:
    home = Home.at(folder / "home")
    with_arms(home, steps=10)
    data = shared_data / "gsm8k"
    files = (
        head(data / "train.jsonl", folder / "pool.jsonl", pool),
        "--heldout",
        head(data / "test.jsonl", folder / "heldout.jsonl", heldout),
    )
    report = ingest_and_run(program, home, "gsm8k-v1", *files, "--model", stories)
    assert report["arms"] == FIRST
    check_assets(home)
    check_mlflow(home, "gsm8k-v1", FIRST)
    third = round(0.3 * pool)
    check_subsets(home, "gsm8k-v1", dict(zip(FIRST, (third, pool, third), strict=True)))
    check_adapter(home.adapter("gsm8k-v1", FIRST[2]), stories)
    check_reports(home, "gsm8k-v1", FIRST, heldout)
    assert (home.leaderboard / "report.html").is_file()
    return home


def test_sixty_records_of_grade_school_maths_run_through_everything(
    program: Any, shared_data: Path, stories: Path, tmp_path: Path
) -> None:
    home = gsm8k(program, shared_data, stories, tmp_path, pool=60, heldout=15)
    again = program("run", "--version", "gsm8k-v1", "--home", home.root, "--json").json
    assert again["pairs_scored"] == 0


@pytest.mark.slow
def test_two_hundred_records_of_grade_school_maths_run_through_everything(
    program: Any, shared_data: Path, stories: Path, tmp_path: Path
) -> None:
    gsm8k(program, shared_data, stories, tmp_path, pool=200, heldout=50)


@pytest.mark.slow
def test_a_cleaned_data_set_follows_its_first_version(
    program: Any, shared_data: Path, stories: Path, tmp_path: Path
) -> None:
    data, home = shared_data / "alpaca", Home.at(tmp_path / "home")
    with_arms(home, steps=10)
    before, after = aligned(data / "v1_original.jsonl", data / "v3_latest_cleaned.jsonl", 150)
    files = {name: tmp_path / f"{name}.jsonl" for name in ("before", "after")}
    for name, lines in (("before", before), ("after", after)):
        files[name].write_text("".join(lines), encoding="utf-8")
    heldout = head(data / "test.jsonl", tmp_path / "heldout.jsonl", 30)
    common = ("--heldout", heldout, "--model", stories, "--skip-bad")
    first = ingest_and_run(program, home, "alpaca-v1", files["before"], *common)
    assert first["arms"] == FIRST
    parent = ("--parent", "alpaca-v1")
    second = ingest_and_run(program, home, "alpaca-v3", files["after"], *common, *parent)
    arms = [*FIRST, *(f"continual.{selector}" for selector in ("random", "full", "delift"))]
    assert sorted(second["arms"]) == sorted(arms)
    check_mlflow(home, "alpaca-v3", arms)
    manifest = json.loads((home.dataset("alpaca-v3") / "manifest.json").read_text())
    new, pool = manifest["counts"]["new"], manifest["counts"]["pool"]
    assert 0 < new < pool <= 150
    assert second["pairs_reused"] > 0
    check_subsets(home, "alpaca-v3", {"continual.full": new})
    known = set(pl.read_parquet(home.dataset("alpaca-v1") / "pool.parquet")["record_id"])
    for arm in arms[3:]:
        picked = pl.read_parquet(home.subset("alpaca-v3", arm) / "subset.parquet")["record_id"]
        assert not known & set(picked)
        made = json.loads((home.adapter("alpaca-v3", arm) / "manifest.json").read_text())
        assert made["details"]["started_from"].startswith("adapter:alpaca-v1:")
    check_adapter(home.adapter("alpaca-v3", "continual.delift"), stories)
    check_reports(home, "alpaca-v3", arms, 30)


def aligned(first: Path, second: Path, count: int) -> tuple[list[str], list[str]]:
    """The first records that both files have under one id, line for line."""

    def by_id(path: Path) -> dict[str, str]:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        return {json.loads(line)["id"]: line for line in lines}

    old, new = by_id(first), by_id(second)
    shared = [name for name in old if name in new][:count]
    return [old[name] for name in shared], [new[name] for name in shared]
