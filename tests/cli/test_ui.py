"""`delift ui`: both servers on loopback, and nothing left of them when it ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from delift_pipeline.cli import serve
from delift_pipeline.cli.serve import server_commands
from delift_pipeline.core.home import Home

ASSETS = {
    "raw_dataset",
    "pair_plan",
    "baseline_logprobs",
    "in_context_logprobs",
    "utility_kernel",
    "subset",
    "adapter",
    "eval_report",
    "leaderboard",
}
READY_SECONDS = 120
END_SECONDS = 40


@dataclass(frozen=True)
class Served:
    """A running `delift ui`."""

    process: subprocess.Popen[bytes]
    port: int
    mlflow_port: int

    @property
    def family(self) -> list[psutil.Process]:
        """The program and everything it started."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]


def free_ports() -> tuple[int, int]:
    with closing(socket.socket()) as one, closing(socket.socket()) as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def is_open(port: int, address: str = "127.0.0.1") -> bool:
    with closing(socket.socket()) as probe:
        probe.settimeout(1)
        return probe.connect_ex((address, port)) == 0


def get(port: int, path: str, body: dict[str, Any] | None = None) -> str:
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read().decode()


def until_answered(port: int, path: str, body: dict[str, Any] | None = None) -> str:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            return get(port, path, body)
        except (urllib.error.URLError, OSError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def end_by_id(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`delift ui` on an empty home, in a session of its own.

    The current folder holds files of the user's that are named as modules.
    """
    folder = tmp_path_factory.mktemp("ui")
    for name in ("random", "gql", "assets", "resources", "yaml", "mlflow"):
        (folder / f"{name}.py").write_text("raise SystemExit('my own script ran')")
    port, mlflow_port = free_ports()
    # As the installed program, which does not look for modules in the current folder either.
    command = [sys.executable, "-P", "-m", "delift_pipeline.cli.main", "ui"]
    options = ["--port", str(port), "--mlflow-port", str(mlflow_port), "--home", folder / "home"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *options], cwd=folder, env=environment, stderr=log, start_new_session=True
        )
    running = Served(process, port, mlflow_port)
    try:
        until_answered(port, "/server_info")
        until_answered(mlflow_port, "/health")
        yield running
    finally:
        if process.poll() is None:
            family = running.family
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
            end_by_id(family)


@pytest.mark.slow
def test_dagster_lists_the_nine_assets(served: Served) -> None:
    query = {"query": "{ assetNodes { assetKey { path } groupName } }"}
    nodes = json.loads(get(served.port, "/graphql", query))["data"]["assetNodes"]
    assert {node["assetKey"]["path"][-1] for node in nodes} == ASSETS


@pytest.mark.slow
def test_mlflow_answers_beside_it(served: Served) -> None:
    assert get(served.mlflow_port, "/health") == "OK"
    found = json.loads(
        get(served.mlflow_port, "/api/2.0/mlflow/experiments/search", {"max_results": 10})
    )
    assert "delift" in {experiment["name"] for experiment in found["experiments"]}


@pytest.mark.slow
def test_servers_listen_on_loopback_only(served: Served) -> None:
    listening = {
        connection.laddr
        for process in served.family
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {served.port, served.mlflow_port} <= {address.port for address in listening}
    assert {address.ip for address in listening} <= {"127.0.0.1", "::1"}


@pytest.mark.slow
def test_a_taken_port_is_refused(served: Served, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "delift_pipeline.cli.main", "ui", "--home", tmp_path / "home"]
    free, _ = free_ports()
    options = ["--port", str(served.port), "--mlflow-port", str(free)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (fault,) = done.stderr.splitlines()
    assert str(served.port) in fault and "--port" in fault


@pytest.mark.slow
def test_a_signal_ends_everything(served: Served) -> None:
    """The last test of this module: nothing is served after it."""
    family = served.family
    assert len(family) >= 4
    os.kill(served.process.pid, signal.SIGTERM)
    assert served.process.wait(END_SECONDS) == 0
    _, alive = psutil.wait_procs(family, timeout=10)
    left = [" ".join(process.cmdline()) for process in alive]
    end_by_id(alive)
    assert left == []
    assert not is_open(served.port) and not is_open(served.mlflow_port)


def test_both_ports_taken_are_two_faults(delift: Any, tmp_path: Path) -> None:
    with closing(socket.socket()) as one, closing(socket.socket()) as other:
        for taken in (one, other):
            taken.bind(("127.0.0.1", 0))
            taken.listen()
        ports = [str(taken.getsockname()[1]) for taken in (one, other)]
        options = ("--port", ports[0], "--mlflow-port", ports[1], "--home", tmp_path / "home")
        faults = delift("ui", *options).faults
    assert [port in fault for port, fault in zip(ports, faults, strict=True)] == [True, True]
    assert not (tmp_path / "home").exists()


def test_one_port_for_both_servers_is_refused(
    delift: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DELIFT_TRACKING_URI", raising=False)
    for name in ("_prepare_home", "_run_servers"):
        monkeypatch.setattr(serve, name, lambda *_: 0)
    port, _ = free_ports()
    options = ("--port", port, "--mlflow-port", port, "--home", tmp_path / "home")
    (fault,) = delift("ui", *options).faults
    assert fault.startswith("--mlflow-port: ") and str(port) in fault
    monkeypatch.setenv("DELIFT_TRACKING_URI", "https://track.example")
    assert delift("ui", *options).status == 0


@pytest.mark.parametrize("older", [True, False])
def test_runs_print_their_events_only_where_debug_asks_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, older: bool
) -> None:
    home = Home.at(tmp_path)
    file = home.dagster / "dagster.yaml"
    if older:  # made before the level was set
        file.parent.mkdir()
        file.write_text("telemetry:\n  enabled: false\n")

    def level() -> str:
        serve.set_log_level(home)
        return yaml.safe_load(file.read_text("utf-8"))["python_logs"]["python_log_level"]

    monkeypatch.delenv("DELIFT_DEBUG", raising=False)
    assert level() == "INFO"
    monkeypatch.setenv("DELIFT_DEBUG", "1")
    assert level() == "DEBUG"
    file.write_text(file.read_text("utf-8").replace("DEBUG", "ERROR"))
    assert level() == "ERROR"


def test_the_servers_keep_what_the_user_has_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home.at(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(("/mine", "/other")))
    found = serve.server_environment(home)
    assert found["PYTHONPATH"].split(os.pathsep) == [str(home.dagster), "/mine", "/other"]
    monkeypatch.delenv("PYTHONPATH")
    assert serve.server_environment(home)["PYTHONPATH"] == str(home.dagster)


def test_with_a_tracking_server_none_is_started_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home.at(tmp_path)
    monkeypatch.delenv("DELIFT_TRACKING_URI", raising=False)
    assert set(server_commands(home, 3000, 5000)) == {"webserver", "daemon", "mlflow"}
    monkeypatch.setenv("DELIFT_TRACKING_URI", "https://track.example")
    assert set(server_commands(home, 3000, 5000)) == {"webserver", "daemon"}
