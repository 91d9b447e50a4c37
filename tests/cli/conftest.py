"""A small dataset to feed the program."""

from pathlib import Path

import pytest
import torch

from delift_pipeline.demo.dataset import DemoFiles, DemoSizes, write_demo_files

SIZES = DemoSizes(pool=24, new_tasks=10, old_tasks=10, heldout_per_task=2, target=4)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Matrices this small are not worth sharing."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> DemoFiles:
    """A small demonstration dataset as files."""
    return write_demo_files(tmp_path_factory.mktemp("files"), sizes=SIZES)


@pytest.fixture(scope="session")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose score store all read-only commands share."""
    return tmp_path_factory.mktemp("scores") / "home"
