"""A home that went through the whole graph once, with both databases, and the program."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from delift_pipeline.cli import main
from delift_pipeline.demo.dataset import DemoSizes, write_demo_files
from delift_pipeline.records.versions import ingest
from delift_pipeline.storage.home import Home

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


@dataclass(frozen=True)
class Answer:
    """What a command said and how it ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as the one JSON document it has to be."""
        import json

        assert self.status == 0, self.err
        return json.loads(self.out)

    @property
    def faults(self) -> list[str]:
        """The lines of a refusal: status 2, nothing on standard output, no traceback."""
        assert self.status == 2, self.err
        assert self.out == ""
        assert "Traceback" not in self.err
        return self.err.splitlines()


Delift = Callable[..., Answer]


@pytest.fixture
def delift(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Delift:
    """Run a command in this process."""
    for name in ("DELIFT_HOME", "DELIFT_MODEL", "DAGSTER_HOME"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: object) -> Answer:
        capsys.readouterr()
        status = main.run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Answer(status, said.out, said.err)

    return call


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Home:
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
        assert main.run(["run", "--version", version, *arms, "--home", str(home.root)]) == 0
    return home


@pytest.fixture
def copied(made: Home, tmp_path: Path) -> Home:
    """A copy of `made` that may be changed, in another place."""
    place = Home.at(tmp_path / "copied")
    shutil.copytree(made.root, place.root)
    return place
