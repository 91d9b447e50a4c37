"""The scripts of `examples/` run and print what they promise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.frozen import snapshot

ROOT = Path(__file__).resolve().parents[1]
PRINTS = {
    "rank_a_kernel": "five points cover",
    "select_records": "5. ",
    "score_pairs": "helps",
    "query_a_home": "instruction_tuning.random",
    "trace_an_adapter": "records: 12",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The frozen home."""
    return snapshot.unpack(tmp_path_factory.mktemp("examples"))


def test_every_example_is_listed_and_tested() -> None:
    names = {path.stem for path in (ROOT / "examples").glob("*.py")}
    page = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert names == set(PRINTS)
    assert [name for name in names if f"`{name}.py" not in page] == []


@pytest.mark.parametrize("name", PRINTS)
def test_example_runs(name: str, home: Path) -> None:
    more = {
        "query_a_home": [str(home)],
        "trace_an_adapter": [str(home), *snapshot.TRAINED.split("/")],
    }
    script = ROOT / "examples" / f"{name}.py"
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 30
    done = subprocess.run(
        [sys.executable, script, *more.get(name, [])],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert PRINTS[name] in done.stdout
