"""`delift ui`: Dagster's webserver and daemon and MLflow's server, on 127.0.0.1, as one."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from types import FrameType

from delift_pipeline.errors import DeliftError, Fault, Refused
from delift_pipeline.storage.home import Home

ADDRESS = "127.0.0.1"
READY_SECONDS = 120.0
GRACE_SECONDS = 10.0
MODULE = "delift_pipeline.definitions"
PR_SET_PDEATHSIG = 1


class Stopped(Exception):
    """Someone asked the servers to end."""


def serve(home: Home, port: int, mlflow_port: int) -> int:
    """Run the servers until interrupted, or until one of them ends; end them all.

    Returns:
        0 when asked to end; the failure is raised otherwise.

    Raises:
        Refused: a port is taken.
        DeliftError: a server ended or did not answer in time.
    """
    _refuse_taken(port=port, mlflow_port=mlflow_port)
    _prepare(home, port, mlflow_port)
    previous = {sign: signal.signal(sign, _stop) for sign in (signal.SIGINT, signal.SIGTERM)}
    servers: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, command in _commands(home, port, mlflow_port).items():
            servers[name] = _start(command)
        for name, where in (("dagster", port), ("mlflow", mlflow_port)):
            _await(where, servers)
            print(f"{name}: http://{ADDRESS}:{where}", file=sys.stderr, flush=True)
        _watch(servers)
    except Stopped:
        return 0
    finally:
        for sign in previous:
            signal.signal(sign, signal.SIG_IGN)
        _end(servers)
        for sign, handler in previous.items():
            signal.signal(sign, handler)
    return 0


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise Stopped


def _refuse_taken(**ports: int) -> None:
    faults = []
    for option, port in ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((ADDRESS, port))
            except OSError:
                reason = f"port {port} is taken: end what uses it or choose another"
                faults.append(Fault(reason, field=f"--{option.replace('_', '-')}"))
    if faults:
        raise Refused(*faults)


def _prepare(home: Home, port: int, mlflow_port: int) -> None:
    """Databases and partitions exist before several processes open them at once."""
    from delift_pipeline.cli.graph import opened_instance
    from delift_pipeline.lineage.tracking import Tracker

    os.environ["DELIFT_MLFLOW_URL"] = f"http://{ADDRESS}:{mlflow_port}"
    os.environ["DELIFT_DAGSTER_URL"] = f"http://{ADDRESS}:{port}"
    # MLflow's own job workers (model evaluation, labelling) are half a dozen processes nobody uses.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    with opened_instance(home):
        pass
    Tracker(home)


def _commands(home: Home, port: int, mlflow_port: int) -> dict[str, list[str]]:
    python = [sys.executable, "-m"]
    location = ["-m", MODULE]
    return {
        "webserver": [
            *python, "dagster_webserver", *location, "-h", ADDRESS, "-p", str(port),
            "--dagster-log-level", "warning",
        ],
        "daemon": [*python, "dagster._daemon", "run", *location, "--log-level", "warning"],
        "mlflow": [
            *python, "mlflow", "server", "--host", ADDRESS, "--port", str(mlflow_port),
            "--backend-store-uri", f"sqlite:///{home.mlflow / 'mlflow.db'}",
            "--artifacts-destination", str(home.mlflow / "artifacts"), "--workers", "1",
        ],
    }  # fmt: skip


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    # Each in a session of its own, so that it and its children can be ended as one group.
    return subprocess.Popen(
        command, start_new_session=True, stdout=sys.stderr, preexec_fn=_die_with_parent()
    )


def _die_with_parent() -> Callable[[], None] | None:
    """On Linux, the child gets SIGTERM when this process is killed outright."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _await(port: int, servers: dict[str, subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        _raise_if_ended(servers)
        try:
            with socket.create_connection((ADDRESS, port), timeout=1):
                return
        except OSError:
            time.sleep(0.2)
    raise DeliftError(f"no answer on port {port} within {READY_SECONDS:.0f} s")


def _watch(servers: dict[str, subprocess.Popen[bytes]]) -> None:
    while True:
        _raise_if_ended(servers)
        time.sleep(0.5)


def _raise_if_ended(servers: dict[str, subprocess.Popen[bytes]]) -> None:
    for name, server in servers.items():
        if server.poll() is not None:
            raise DeliftError(f"the {name} server ended with status {server.returncode}")


def _end(servers: dict[str, subprocess.Popen[bytes]]) -> None:
    """End each server with its children: first asked, then killed."""
    for server in servers.values():
        _signal_group(server, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    for server in servers.values():
        try:
            server.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            continue
    for server in servers.values():
        _signal_group(server, signal.SIGKILL)
        server.wait()


def _signal_group(server: subprocess.Popen[bytes], sign: signal.Signals) -> None:
    try:
        os.killpg(server.pid, sign)
    except ProcessLookupError:
        return
