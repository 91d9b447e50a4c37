"""Steps in processes of their own: one that is killed is tried again, none outlives its run."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("killed_step.py")
SECONDS = 300


def start(how: str, folder: Path) -> subprocess.Popen[bytes]:
    (folder / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    told = {"DELIFT_TEST_HOW": how, "DELIFT_TEST_FOLDER": str(folder)}
    return subprocess.Popen(
        [sys.executable, PROGRAM], env=os.environ | told, stderr=subprocess.DEVNULL
    )


def test_a_killed_step_is_tried_again_and_the_run_succeeds(tmp_path: Path) -> None:
    assert start("kill", tmp_path).wait(SECONDS) == 0
    pids = {path.read_text() for path in tmp_path.glob("try-*")}
    assert len(pids) == 2


def test_a_step_ends_when_the_process_of_its_run_is_killed(tmp_path: Path) -> None:
    run, noted = start("sleep", tmp_path), tmp_path / "try-0"
    deadline = time.monotonic() + SECONDS
    while not (noted.is_file() and noted.read_text()):
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.1)
    step = psutil.Process(int(noted.read_text()))
    run.kill()
    run.wait()
    try:
        step.wait(60)
    finally:
        if step.is_running():
            step.kill()
