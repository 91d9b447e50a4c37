"""A person's browser before a running `delift ui`."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from delift_pipeline.core.home import Home
from delift_pipeline.demo.dataset import DemoSizes, write_demo_files
from delift_pipeline.records.versions import ingest

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM_VARIABLE = "DELIFT_CHROMIUM"
SCREENSHOTS_VARIABLE = "DELIFT_SCREENSHOTS"
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
READY_SECONDS = 180
END_SECONDS = 30
PATIENCE_MS = 120_000
MOST_COLOURS = 128
VERSION, FIRST, SECOND = "v1", "instruction_tuning.random", "instruction_tuning.delift"
SIZES = DemoSizes(pool=24, new_tasks=10, old_tasks=10, heldout_per_task=2, target=4)
ARMS = f"""
automation: {{isolate_steps: false}}
defaults:
  training: {{preset: demo, steps: 20, batch_size: 8}}
  evaluation: {{metrics: [answer_loss, exact_match], max_new_tokens: 3}}
arms:
  {FIRST}: {{}}
  {SECOND}: {{}}
"""


@dataclass(frozen=True)
class Desk:
    """A browser page, and where the two servers are.

    Attributes:
        page: The page.
        dagster: Dagster's address.
        mlflow: MLflow's address.
    """

    page: "Page"
    dagster: str
    mlflow: str

    def picture(self, name: str) -> None:
        """Keep what is seen for the documentation, where that was asked for."""
        folder = os.environ.get(SCREENSHOTS_VARIABLE)
        if folder:
            from PIL import Image

            self.page.mouse.move(0, 0)
            seen = Image.open(BytesIO(self.page.screenshot()))
            few = seen.convert("RGB").quantize(MOST_COLOURS)
            Path(folder).mkdir(parents=True, exist_ok=True)
            few.save(Path(folder) / f"{name}.png", optimize=True)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's program."""
    named = os.environ.get(CHROMIUM_VARIABLE)
    found = named or next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if not found:
        pytest.skip(
            "no Chromium: `apt-get install chromium`, or name one in $DELIFT_CHROMIUM; "
            "the user interface is not tested here"
        )
    return found


@pytest.fixture(scope="session")
def kept(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home with one version whose random arm is made; by the command line, as a person would."""
    folder = tmp_path_factory.mktemp("browser")
    home = Home.at(folder / "home")
    files = write_demo_files(folder / "files", sizes=SIZES)
    ingest(
        home,
        files.first_pool,
        version=VERSION,
        heldout=files.first_heldout,
        model="demo",
        template="world",
        dataset="demo",
    )
    home.arms_file.write_text(ARMS, encoding="utf-8")
    command = ["run", "--version", VERSION, "--arm", FIRST, "--home", str(home.root)]
    done = subprocess.run(
        [sys.executable, "-m", "delift_pipeline.cli.main", *command],
        capture_output=True,
        text=True,
        check=False,
        env=quiet(),
    )
    assert done.returncode == 0, done.stderr
    return home


def quiet() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def free_ports() -> tuple[int, int]:
    with closing(socket.socket()) as one, closing(socket.socket()) as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def await_answer(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        assert process.poll() is None, log.read_text(encoding="utf-8")
        try:
            with urllib.request.urlopen(url, timeout=10):
                return
        except (urllib.error.URLError, OSError):
            assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
            time.sleep(0.5)


def end(process: subprocess.Popen[bytes]) -> None:
    """End the program, and by their ids whatever of its children does not end with it."""
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        for child in [*family, psutil.Process(process.pid)]:
            with suppress(psutil.NoSuchProcess):
                child.kill()
    process.wait()


@pytest.fixture(scope="session")
def served(kept: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The addresses of Dagster and MLflow of a running `delift ui`."""
    port, mlflow_port = free_ports()
    log = tmp_path_factory.mktemp("ui") / "log"
    options = ["--port", str(port), "--mlflow-port", str(mlflow_port), "--home", str(kept.root)]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "delift_pipeline.cli.main", "ui", *options],
            stdout=file,
            stderr=file,
            start_new_session=True,
            env=quiet(),
        )
    dagster, mlflow = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{mlflow_port}"
    try:
        await_answer(f"{dagster}/server_info", process, log)
        await_answer(f"{mlflow}/health", process, log)
        yield dagster, mlflow
    finally:
        end(process)


@pytest.fixture(scope="session")
def desk(chromium: str, served: tuple[str, str]) -> Iterator[Desk]:
    """A page of a headless browser that waits as long as a busy machine needs."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE_MS)
    with ExitStack() as stack:
        playwright = stack.enter_context(sync_playwright())
        # Without its sandbox: it needs rights that containers and root do not have, and the only
        # pages opened are our own servers' on loopback.
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=chromium, args=options)
        stack.callback(browser.close)
        page = browser.new_page(viewport={"width": 1400, "height": 860})
        page.set_default_timeout(PATIENCE_MS)
        yield Desk(page, *served)
