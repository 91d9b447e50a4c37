"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

from delift_pipeline.storage.home import Home

DATA_VARIABLE = "DELIFT_TEST_DATA"


def test_data_root() -> Path:
    """Where the public data and the tiny pretrained model lie."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    return Path(os.environ.get(DATA_VARIABLE) or beside)


test_data_root.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]


def pytest_configure(config: pytest.Config) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests that need the public data where it is absent, and say so."""
    if test_data_root().is_dir():
        return
    reason = f"no public data at {test_data_root()}: set {DATA_VARIABLE}"
    for item in items:
        if item.get_closest_marker("data"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The public data sets' folder."""
    return test_data_root() / "data"


@pytest.fixture(scope="session")
def stories() -> Path:
    """The real tiny pretrained model's folder."""
    return test_data_root() / "models" / "stories260k"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """An empty home."""
    return Home.at(tmp_path / "home")
