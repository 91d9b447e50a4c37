"""A home that `delift ui` serves, driven as its user interface drives it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import psutil

from delift_pipeline.core.home import Home

SECONDS = 600
"""The longest any one thing may take on a busy machine."""


def until(what: str, found: Callable[[], Any], pause: float = 0.25) -> Any:
    """Poll until something is there."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError):
            if value := found():
                return value
        time.sleep(pause)
    raise AssertionError(f"no {what} within {SECONDS} s")


def free_port() -> int:
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@dataclass
class Served:
    """A home and the `delift ui` that serves it."""

    home: Home
    log: Path
    port: int = field(default_factory=free_port)
    mlflow_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "delift_pipeline.cli.main", "ui"]
        ports = ["--port", str(self.port), "--mlflow-port", str(self.mlflow_port)]
        kept = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "DELIFT_MODEL")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *ports, "--home", str(self.home.root)],
                stderr=log,
                start_new_session=True,
                env=kept | {"OMP_NUM_THREADS": "1"},
            )
        until("answer of the webserver", lambda: self.query("{ version }"))

    def end(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(40)
        for one in [*family, self.process]:
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                one.kill()

    def query(self, text: str, **variables: Any) -> dict[str, Any]:
        body = json.dumps({"query": text, "variables": variables}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())["data"]

    def switch_on(self, sensor: str) -> None:
        """What the switch beside a sensor does."""
        self.query(
            "mutation($s: SensorSelector!) { startSensor(sensorSelector: $s) { __typename } }",
            s={
                "sensorName": sensor,
                "repositoryName": "__repository__",
                "repositoryLocationName": self.location,
            },
        )

    @property
    def location(self) -> str:
        """The name of the code location that is served."""
        found = self.query(
            "{ repositoriesOrError { ... on RepositoryConnection "
            "{ nodes { location { name } } } } }"
        )["repositoriesOrError"]
        return found["nodes"][0]["location"]["name"]

    def launch(self, job: str, assets: list[str], tags: dict[str, str]) -> str:
        """Launch some assets of a job, as the launchpad does; the run's id."""
        answer = self.query(
            "mutation($p: ExecutionParams!) { launchRun(executionParams: $p) "
            "{ __typename ... on LaunchRunSuccess { run { runId } } } }",
            p={
                "selector": {
                    "jobName": job,
                    "repositoryName": "__repository__",
                    "repositoryLocationName": self.location,
                    "assetSelection": [{"path": [asset]} for asset in assets],
                },
                "mode": "default",
                "runConfigData": {},
                "executionMetadata": {
                    "tags": [{"key": key, "value": value} for key, value in tags.items()]
                },
            },
        )["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return answer["run"]["runId"]

    def cancel(self, run_id: str) -> None:
        """What *Terminate* does."""
        self.query("mutation($id: String!) { terminateRun(runId: $id) { __typename } }", id=run_id)

    def runs(self, job: str | None = None) -> list[dict[str, Any]]:
        found = self.query(
            "{ runsOrError { ... on Runs { results "
            "{ runId jobName status tags { key value } } } } }"
        )["runsOrError"]["results"]
        return [run for run in found if job in (None, run["jobName"])]

    def kill_server(self, program: str) -> None:
        """SIGKILL one of the three servers, and nothing else."""
        assert self.process is not None
        for child in psutil.Process(self.process.pid).children():
            # The daemon is started by a line of Python that names its program.
            if any(program in part for part in child.cmdline()):
                child.kill()
                return
        raise AssertionError(f"no server {program} is running")

    def kill_worker(self) -> None:
        """SIGKILL the process that executes a run."""
        assert self.process is not None
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if any("multiprocessing.spawn" in part for part in child.cmdline()):
                    child.kill()
                    return
        raise AssertionError("no run is being executed")

    def leaderboard(self, version: str) -> set[str]:
        path = self.home.leaderboard / "leaderboard.parquet"
        if not path.is_file():
            return set()
        rows = pl.read_parquet(path).filter(pl.col("version") == version)
        return set(rows["arm"]) - {"initial"}

    def leases(self) -> list[Path]:
        """Who is scoring what just now."""
        found = self.home.root.glob("scores/*/leases/*")
        return [path for path in found if not path.name.startswith(".")]

    def at_work(self) -> list[dict[str, Any]]:
        ended = ("SUCCESS", "FAILURE", "CANCELED")
        return [run for run in self.runs() if run["status"] not in ended]
