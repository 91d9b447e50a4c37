"""The program, in this process and as a program of its own, and a small data set to feed it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from delift_pipeline.cli import main
from delift_pipeline.demo.dataset import DemoFiles, DemoSizes, write_demo_files

SIZES = DemoSizes(pool=24, new_tasks=10, old_tasks=10, heldout_per_task=2, target=4)
OURS = ("DELIFT_HOME", "DELIFT_MODEL", "DAGSTER_HOME")


@dataclass(frozen=True)
class Answer:
    """What a command said and how it ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as the one JSON document it has to be."""
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


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Matrices this small are not worth sharing."""
    torch.set_num_threads(1)


@pytest.fixture
def delift(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Delift:
    """Run a command in this process."""
    for name in OURS:
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: object) -> Answer:
        capsys.readouterr()
        status = main.run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Answer(status, said.out, said.err)

    return call


@pytest.fixture(scope="session")
def program() -> Delift:
    """Run a command as a process of its own."""

    def call(*arguments: object, cwd: Path | None = None) -> Answer:
        kept = {key: value for key, value in os.environ.items() if key not in OURS}
        done = subprocess.run(
            [sys.executable, "-m", "delift_pipeline.cli.main", *map(str, arguments)],
            env=kept | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            cwd=cwd,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> DemoFiles:
    """A small demonstration data set as files."""
    return write_demo_files(tmp_path_factory.mktemp("files"), sizes=SIZES)


@pytest.fixture(scope="session")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose score store all read-only commands share."""
    return tmp_path_factory.mktemp("scores") / "home"
