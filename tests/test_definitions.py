"""The code location as Dagster's own tools see it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def call(*command: str, home: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / command[0]
    environment = {
        **os.environ,
        "DELIFT_HOME": str(home),
        "DAGSTER_HOME": "",
        # The tools start Python for the code location themselves.
        "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
    }
    return subprocess.run(
        [str(program), *command[1:]],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment,
    )


@pytest.mark.parametrize(
    "command",
    [("dagster", "definitions", "validate", "-w", "workspace.yaml"), ("dg", "check", "defs")],
    ids=["validate", "check"],
)
def test_dagsters_tools_accept_the_definitions(command: tuple[str, ...], tmp_path: Path) -> None:
    done = call(*command, home=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_dagsters_tools_see_a_home_with_faulty_arms(tmp_path: Path) -> None:
    (tmp_path / "arms.yaml").write_text("arms: {instruction_tuning.best: {}}\n", encoding="utf-8")
    done = call("dagster", "definitions", "validate", "-w", "workspace.yaml", home=tmp_path)
    assert done.returncode != 0
    assert "arms.instruction_tuning.best" in done.stdout + done.stderr
