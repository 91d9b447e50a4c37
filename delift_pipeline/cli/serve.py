"""`delift ui`: run Dagster's webserver and daemon and MLflow's server together on 127.0.0.1."""

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from filelock import Timeout
from sqlalchemy.exc import SQLAlchemyError

from delift_pipeline.cli.graph import close_runs_without_process, prepare_dagster_home, server_lock
from delift_pipeline.cli.options import is_debugging
from delift_pipeline.core.atomic import write_text
from delift_pipeline.core.errors import DeliftError, Fault, InputError
from delift_pipeline.core.home import Home

ADDRESS = "127.0.0.1"
READY_SECONDS = 120.0
GRACE_SECONDS = 10.0
KILL_SECONDS = 2.0
"""How long to wait until the killed children of a server that ended are gone."""
LOCK_SECONDS = 1.0
"""How long to wait for another program that only checks whether the home is served."""
CLOSE_EVERY_SECONDS = 10.0
MODULE = "delift_pipeline.definitions"
PR_SET_PDEATHSIG = 1
DAEMON, MLFLOW = "daemon", "mlflow"
# Start the daemon of the Dagster that this Python imports, wherever its scripts are installed.
START_DAEMON = (
    "from importlib.metadata import entry_points; "
    "[one] = entry_points(group='console_scripts', name='dagster-daemon'); one.load()()"
)
MOST_ENDS, ENDS_WITHIN_SECONDS = 5, 600.0
"""A server that ends is started again, unless servers have ended more often than this."""


class StopRequest(BaseException):
    """A signal asks the servers to end. It is a BaseException, so no library handles it."""


def serve(home: Home, port: int, mlflow_port: int) -> None:
    """Run the servers until a signal comes, then end them all. A server that ends is restarted.

    Runs that were active when the servers ended last time are launched again. They continue with
    the work that they had not finished.

    Raises:
        InputError: a port is in use or given to both servers, or the home is served already.
        DeliftError: a server did not answer in time, or ended too often.
    """
    if port == mlflow_port and not _remote_tracking():
        reason = f"Dagster already uses port {port}. Choose another port for MLflow"
        raise InputError(reason, field="--mlflow-port")
    faults = []
    for option, number in {"--port": port, "--mlflow-port": mlflow_port}.items():
        try:
            socket.create_server((ADDRESS, number)).close()
        except OSError:
            reason = f"another program uses port {number}. End it, or choose another port"
            faults.append(Fault(reason, field=option))
    if faults:
        raise InputError(*faults)
    home.dagster.mkdir(parents=True, exist_ok=True)
    try:
        with server_lock(home, LOCK_SECONDS):
            _prepare_home(home, port, mlflow_port)
            _run_servers(home, port, mlflow_port)
    except Timeout:
        reason = f"{home.root.name} is served by another `delift ui`. End that one first"
        raise InputError(reason, field="--home") from None


def _prepare_home(home: Home, port: int, mlflow_port: int) -> None:
    """Create databases and partitions before several processes open them at the same time."""
    from delift_pipeline.lineage.tracking import Tracker

    remote = _remote_tracking()
    if remote:
        os.environ.setdefault("DELIFT_MLFLOW_URL", remote)
    else:
        os.environ["DELIFT_MLFLOW_URL"] = f"http://{ADDRESS}:{mlflow_port}"
    os.environ["DELIFT_DAGSTER_URL"] = f"http://{ADDRESS}:{port}"
    # The servers read these variables to find their home.
    os.environ["DELIFT_HOME"], os.environ["DAGSTER_HOME"] = str(home.root), str(home.dagster)
    # MLflow's job workers (model evaluation, labelling) are several processes that nothing uses.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    set_log_level(home)
    close_runs_without_process(home)
    if not remote:
        Tracker(home)


def set_log_level(home: Home) -> None:
    """Set the log level of Dagster, so that runs print all of their events only with `--debug`.

    A home of an older release has no level yet. A level other than INFO and DEBUG is the user's
    own and stays.
    """
    prepare_dagster_home(home)
    file = home.dagster / "dagster.yaml"
    before = file.read_text("utf-8")
    level = "DEBUG" if is_debugging() else "INFO"
    text = re.sub(r"(?m)^(  python_log_level:) (INFO|DEBUG)$", rf"\1 {level}", before)
    if "python_logs:" not in text:
        text += f"\npython_logs:\n  python_log_level: {level}\n"
    if text != before:
        write_text(file, text)


def _remote_tracking() -> str | None:
    """Return the address of the user's tracking server; None if the home has its own."""
    return os.environ.get("DELIFT_TRACKING_URI") or None


def _run_servers(home: Home, port: int, mlflow_port: int) -> None:
    servers = _Servers(home, server_commands(home, port, mlflow_port))
    previous = {
        sign: signal.signal(sign, _raise_stop_request) for sign in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        for name in servers.commands:
            servers.start(name)
        servers.await_answer("dagster", port)
        if MLFLOW in servers.commands:
            servers.await_answer(MLFLOW, mlflow_port)
        else:
            _print_line(f"{MLFLOW}: {_remote_tracking()}")
        servers.watch()
    except StopRequest:
        pass
    finally:
        for sign in previous:
            signal.signal(sign, signal.SIG_IGN)
        servers.end()
        for sign, handler in previous.items():
            signal.signal(sign, handler)


def _raise_stop_request(_signal: int, _frame: FrameType | None) -> None:
    raise StopRequest


def _print_line(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def server_commands(home: Home, port: int, mlflow_port: int) -> dict[str, list[str]]:
    """Return the command of each server; MLflow only without a tracking server of the user's."""
    python = [sys.executable, "-m"]
    # Dagster imports from its working directory first. Its default is the user's current folder.
    location = ["-m", MODULE, "--working-directory", str(home.dagster)]
    programs = {
        "webserver": [
            *python, "dagster_webserver", *location, "-h", ADDRESS, "-p", str(port),
            "--dagster-log-level", "warning", "--code-server-log-level", "warning",
        ],
        DAEMON: [sys.executable, "-c", START_DAEMON, "run", *location, "--log-level", "warning"],
        MLFLOW: [
            *python, "mlflow", "server", "--host", ADDRESS, "--port", str(mlflow_port),
            "--backend-store-uri", f"sqlite:///{home.mlflow / 'mlflow.db'}",
            "--artifacts-destination", str(home.mlflow / "artifacts"), "--workers", "1",
        ],
    }  # fmt: skip
    if _remote_tracking():
        del programs[MLFLOW]
    return programs


def server_environment(home: Home) -> dict[str, str]:
    """Return the servers' environment, in which they import nothing from the current folder.

    Dagster drops the first entry of the import path, because it expects the folder of the script
    there. So a folder without modules comes first, and all entries of PYTHONPATH remain.
    """
    path = [str(home.dagster), os.environ.get("PYTHONPATH", "")]
    safe = {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(part for part in path if part)}
    return {**os.environ, **safe}


class _Servers:
    """The processes of the servers, each in a session of its own, to end it with its children."""

    def __init__(self, home: Home, programs: dict[str, list[str]]) -> None:
        self.home, self.commands = home, programs
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        """Start a server. On Linux it gets SIGTERM if this process is killed."""
        libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
        self._running[name] = subprocess.Popen(
            self.commands[name],
            env=server_environment(self.home),
            # MLflow's web server always imports from the folder that it is started in.
            cwd=self.home.mlflow if name == MLFLOW else None,
            start_new_session=True,
            stdout=sys.stderr,
            preexec_fn=libc and (lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)),
        )

    def await_answer(self, name: str, port: int) -> None:
        """Wait until a port answers, and print its address."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            self._check_running()
            try:
                socket.create_connection((ADDRESS, port), timeout=1).close()
            except OSError:
                time.sleep(0.2)
            else:
                _print_line(f"{name}: http://{ADDRESS}:{port}")
                return
        raise DeliftError(
            f"the {name} server did not answer on port {port} within {READY_SECONDS:.0f} s"
        )

    def watch(self) -> NoReturn:
        """Restart each server that ends, unless servers ended too often."""
        ends: list[float] = []
        last_close = time.monotonic()
        while True:
            if time.monotonic() - last_close > CLOSE_EVERY_SECONDS:
                # If a `delift run` on this home was killed, other runs would wait for its place.
                with suppress(SQLAlchemyError):  # The database may be locked: try again later.
                    close_runs_without_process(self.home, served=True)
                last_close = time.monotonic()
            for name in [name for name, one in self._running.items() if one.poll() is not None]:
                # Kill its children, which would work at the same time as those of the new server.
                deadline = time.monotonic() + KILL_SECONDS
                self._signal(name, signal.SIGKILL)
                while not self._signal(name, 0) and time.monotonic() < deadline:
                    time.sleep(0.05)
                try:
                    if name == DAEMON:
                        close_runs_without_process(self.home)
                except SQLAlchemyError:  # The database may be locked: try again.
                    continue
                now = time.monotonic()
                ends = [end for end in ends if now - end < ENDS_WITHIN_SECONDS] + [now]
                if len(ends) > MOST_ENDS:
                    self._check_running()
                _print_line(f"the {name} server ended and is started again")
                self.start(name)
            time.sleep(0.5)

    def end(self) -> None:
        """End each server with its children: first by SIGTERM, then by SIGKILL.

        The daemon and its children, the runs, are killed at once. A run that gets SIGTERM counts as
        failed; a killed run is launched again when the home is served the next time.
        """
        for name in self._running:
            self._signal(name, signal.SIGKILL if name == DAEMON else signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        for server in self._running.values():
            with suppress(subprocess.TimeoutExpired):
                server.wait(max(0.1, deadline - time.monotonic()))
        for name, server in self._running.items():
            self._signal(name, signal.SIGKILL)
            server.wait()

    def _check_running(self) -> None:
        """Raise an error if a server has ended."""
        for name, server in self._running.items():
            if server.poll() is not None:
                raise DeliftError(f"the {name} server ended with status {server.returncode}")

    def _signal(self, name: str, sign: int) -> bool:
        """Signal the process group of a server. Return whether the group has no process left."""
        try:
            os.killpg(self._running[name].pid, sign)
        except ProcessLookupError:
            return True
        return False
