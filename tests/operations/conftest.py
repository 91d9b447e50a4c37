"""A home that went through the whole graph once, with both databases."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from delift_pipeline.core.home import Home
from delift_pipeline.demo.dataset import DemoSizes, write_demo_files
from delift_pipeline.records.versions import ingest

SIZES = DemoSizes(pool=20, new_tasks=10, old_tasks=10, heldout_per_task=1, target=3)
ARMS = """
plan: {neighbours: 4}
defaults:
  training: {preset: demo, steps: 2, batch_size: 8}
  evaluation: {metrics: [answer_loss, exact_match], max_new_tokens: 3}
arms:
  instruction_tuning.random: {}
  instruction_tuning.delift_trusted: {}
  continual.random: {}
  continual.delift_trusted: {}
"""


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, program: Callable[..., Any]) -> Home:
    """v1 and its child v2 with two arms each, run through Dagster and MLflow. For reading only."""
    torch.set_num_threads(1)
    home = Home.at(tmp_path_factory.mktemp("made") / "home")
    files = write_demo_files(tmp_path_factory.mktemp("files"), sizes=SIZES)
    about: dict[str, Any] = {"model": "demo", "template": "world", "dataset": "demo"}
    ingest(home, files.first_pool, version="v1", heldout=files.first_heldout, **about)
    second = {"parents": ["v1"], "heldout": files.second_heldout, **about}
    ingest(home, files.second_pool, version="v2", **second)
    home.arms_file.write_text(ARMS, encoding="utf-8")
    for version in ("v1", "v2"):
        arms = (
            ["--arm", "continual.random", "--arm", "continual.delift_trusted"]
            if version == "v2"
            else []
        )
        said = program("run", "--version", version, *arms, "--home", home.root)
        assert said.status == 0, said.err
    return home


@pytest.fixture
def copied(made: Home, tmp_path: Path) -> Home:
    """A copy of `made` that may be changed, in another place."""
    place = Home.at(tmp_path / "copied")
    shutil.copytree(made.root, place.root)
    return place
