"""Selectors as arms of a dataset version: what they depend on, and the base model's row."""

import json
from pathlib import Path

import polars as pl
import pytest

from assets.selection import subset_outcome
from assets.training import adapter_outcome
from delift_pipeline.core.home import Home
from delift_pipeline.core.progress import SilentProgress
from delift_pipeline.demo.dataset import DemoSizes, write_demo_files
from delift_pipeline.records.versions import ingest
from delift_pipeline.scoring.fingerprint import fingerprint_of
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.stages.adapter import make_adapter
from delift_pipeline.stages.arms import Arms, read_arms
from delift_pipeline.stages.report import make_report
from delift_pipeline.stages.subset import make_subset

ARMS = """
defaults:
  training: {preset: demo, steps: 2, batch_size: 4}
  evaluation: {metrics: [answer_loss, exact_match], max_new_tokens: 3}
selectors:
  less: {rank: 2, dims: 256, epochs: 1}
arms:
  instruction_tuning.initial: {}
  instruction_tuning.length: {}
  task_specific.less: {}
  task_specific.nuggets: {}
"""
MODEL = ModelOptions(model="demo", template="world", device="cpu", threads=1)
SIZES = DemoSizes(pool=24, new_tasks=10, old_tasks=10, heldout_per_task=2, target=4)


@pytest.fixture
def version(home: Home, tmp_path: Path) -> str:
    files = write_demo_files(tmp_path / "files", sizes=SIZES)
    ingest(
        home,
        files.first_pool,
        version="v1",
        target=files.first_target,
        heldout=files.first_heldout,
    )
    return "v1"


def arms() -> Arms:
    return read_arms(ARMS, "arms.yaml")


def test_a_subset_that_read_the_model_depends_on_it(home: Home, version: str) -> None:
    for name in ("instruction_tuning.length", "task_specific.less", "task_specific.nuggets"):
        arm = arms().arm(name)
        first = subset_outcome(make_subset(home, version, arm, MODEL))
        fingerprint = fingerprint_of(MODEL).digest
        assert first.manifest.parents["model"] == first.manifest.fingerprint == fingerprint
        assert first.manifest.counts["selected"] == 7
        # Seven records cannot hold every task of the pool, and `balance` has to warn of it.
        assert [name for name, check in first.checks.items() if not check.passed] == ["balance"]
        chosen = pl.read_parquet(home.subset(version, name) / "subset.parquet")
        pool = pl.read_parquet(home.dataset(version) / "pool.parquet")
        held = pool.join(chosen, on="record_id", how="semi")
        assert held.height == 7 and set(pool["task"]) - set(held["task"])
        assert make_subset(home, version, arm, MODEL).reused
        assert not make_subset(home, version, arm, MODEL.model_copy(update={"window": 256})).reused


def test_the_initial_arm_is_the_base_models_row(home: Home, version: str) -> None:
    arm = arms().arm("instruction_tuning.initial")
    subset = subset_outcome(make_subset(home, version, arm, MODEL))
    assert subset.manifest.counts["selected"] == 0
    assert subset.checks["budget"].passed
    adapter = adapter_outcome(make_adapter(home, version, arm, MODEL, None, SilentProgress()))
    assert adapter.manifest.counts["steps"] == adapter.manifest.counts["records"] == 0
    assert adapter.checks["loads"].passed and adapter.checks["loss_fell"].passed
    assert "first_loss" not in adapter.facts
    make_report(home, version, arm, MODEL, None, SilentProgress())
    folder = home.report(version, arm.name)
    text = (folder / "report.json").read_text("utf-8")
    report = json.loads(text, parse_constant=_no_constant)
    own, base = report["evaluation"]["metrics"], report["beside"]["initial"]["metrics"]
    assert own == base
    assert report["training"]["first_loss"] is None
    assert pl.read_parquet(folder / "samples.parquet").height > 0
    assert make_adapter(home, version, arm, MODEL, None, SilentProgress()).reused


def _no_constant(name: str) -> float:
    raise AssertionError(f"{name} is no JSON")
