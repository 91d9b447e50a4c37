"""`delift ui`: Dagster's webserver and daemon and MLflow's server, on 127.0.0.1, as one."""

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

from delift_pipeline.cli.graph import close_without_process, prepare_dagster_home, serving_lock
from delift_pipeline.cli.options import debugging
from delift_pipeline.core.atomic import write_text
from delift_pipeline.core.errors import DeliftError, Fault, Refused
from delift_pipeline.core.home import Home

ADDRESS = "127.0.0.1"
READY_SECONDS = 120.0
GRACE_SECONDS = 10.0
GONE_SECONDS = 2.0
"""How long the children of a server that ended may take; a parent may not ask for them."""
LOCK_SECONDS = 1.0
"""How long another program may look whether the home is served."""
CLOSE_EVERY_SECONDS = 10.0
MODULE = "delift_pipeline.definitions"
PR_SET_PDEATHSIG = 1
DAEMON, MLFLOW = "daemon", "mlflow"
# The program of this Python's own Dagster, wherever its scripts were installed.
START_DAEMON = (
    "from importlib.metadata import entry_points; "
    "[one] = entry_points(group='console_scripts', name='dagster-daemon'); one.load()()"
)
MOST_ENDS, ENDS_WITHIN_SECONDS = 5, 600.0
"""A server that ends is started again, but not more often than this all in all."""


class Stopped(BaseException):
    """Someone asked the servers to end; no library may take it for an error of its own."""


def serve(home: Home, port: int, mlflow_port: int) -> None:
    """Run the servers until interrupted; one that ends is started again. End them all.

    Runs that were at work when the servers ended last time, however they ended, are launched again
    and go on with what they had not finished.

    Raises:
        Refused: a port is taken or given to both servers, or the home is served already.
        DeliftError: a server did not answer in time, or ended again and again.
    """
    if port == mlflow_port and not _remote_tracking():
        reason = f"{port} is Dagster's port already: give MLflow another one"
        raise Refused(reason, field="--mlflow-port")
    faults = []
    for option, number in {"--port": port, "--mlflow-port": mlflow_port}.items():
        try:
            socket.create_server((ADDRESS, number)).close()
        except OSError:
            reason = f"port {number} is taken: end what uses it or choose another"
            faults.append(Fault(reason, field=option))
    if faults:
        raise Refused(*faults)
    home.dagster.mkdir(parents=True, exist_ok=True)
    try:
        with serving_lock(home, LOCK_SECONDS):
            _prepare(home, port, mlflow_port)
            _serve_prepared(home, port, mlflow_port)
    except Timeout:
        reason = f"{home.root.name} is served by another `delift ui`: end that one first"
        raise Refused(reason, field="--home") from None


def _prepare(home: Home, port: int, mlflow_port: int) -> None:
    """Databases and partitions exist before several processes open them at once."""
    from delift_pipeline.lineage.tracking import Tracker

    remote = _remote_tracking()
    if remote:
        os.environ.setdefault("DELIFT_MLFLOW_URL", remote)
    else:
        os.environ["DELIFT_MLFLOW_URL"] = f"http://{ADDRESS}:{mlflow_port}"
    os.environ["DELIFT_DAGSTER_URL"] = f"http://{ADDRESS}:{port}"
    # The servers read which home is theirs.
    os.environ["DELIFT_HOME"], os.environ["DAGSTER_HOME"] = str(home.root), str(home.dagster)
    # MLflow's own job workers (model evaluation, labelling) are half a dozen processes nobody uses.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    set_log_level(home)
    close_without_process(home)
    if not remote:
        Tracker(home)


def set_log_level(home: Home) -> None:
    """Runs print every event of theirs only where `--debug` asks for it.

    A home made by an older version has no level yet. Any other level was set by hand and stays.
    """
    prepare_dagster_home(home)
    file = home.dagster / "dagster.yaml"
    before = file.read_text("utf-8")
    level = "DEBUG" if debugging() else "INFO"
    text = re.sub(r"(?m)^(  python_log_level:) (INFO|DEBUG)$", rf"\1 {level}", before)
    if "python_logs:" not in text:
        text += f"\npython_logs:\n  python_log_level: {level}\n"
    if text != before:
        write_text(file, text)


def _remote_tracking() -> str | None:
    """The tracking server that runs are logged to; None where the home has its own."""
    return os.environ.get("DELIFT_TRACKING_URI") or None


def _serve_prepared(home: Home, port: int, mlflow_port: int) -> None:
    servers = _Servers(home, commands(home, port, mlflow_port))
    previous = {sign: signal.signal(sign, _stop) for sign in (signal.SIGINT, signal.SIGTERM)}
    try:
        for name in servers.commands:
            servers.start(name)
        servers.await_answer("dagster", port)
        if MLFLOW in servers.commands:
            servers.await_answer(MLFLOW, mlflow_port)
        else:
            _say(f"{MLFLOW}: {_remote_tracking()}")
        servers.watch()
    except Stopped:
        pass
    finally:
        for sign in previous:
            signal.signal(sign, signal.SIG_IGN)
        servers.end()
        for sign, handler in previous.items():
            signal.signal(sign, handler)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise Stopped


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def commands(home: Home, port: int, mlflow_port: int) -> dict[str, list[str]]:
    """The programs to start, by name; MLflow only where no tracking server is named."""
    python = [sys.executable, "-m"]
    # Dagster imports from the working directory first, which is the current folder by default.
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


def environment(home: Home) -> dict[str, str]:
    """The servers' environment: they import nothing from the user's current folder.

    Dagster takes the first place that Python imports from for the folder of the script, and leaves
    it out. A folder without modules stands there, so that nothing of PYTHONPATH is left out.
    """
    path = [str(home.dagster), os.environ.get("PYTHONPATH", "")]
    safe = {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(part for part in path if part)}
    return {**os.environ, **safe}


class _Servers:
    """The servers' processes, each in a session of its own to be ended with its children."""

    def __init__(self, home: Home, programs: dict[str, list[str]]) -> None:
        self.home, self.commands = home, programs
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        """Start a server; on Linux it gets SIGTERM when this process is killed outright."""
        libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
        self._running[name] = subprocess.Popen(
            self.commands[name],
            env=environment(self.home),
            # MLflow's web server imports from the folder it is started in, whatever its options.
            cwd=self.home.mlflow if name == MLFLOW else None,
            start_new_session=True,
            stdout=sys.stderr,
            preexec_fn=libc and (lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)),
        )

    def await_answer(self, name: str, port: int) -> None:
        """Wait until a port answers, and say where it is."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            self._raise_if_ended()
            try:
                socket.create_connection((ADDRESS, port), timeout=1).close()
            except OSError:
                time.sleep(0.2)
            else:
                _say(f"{name}: http://{ADDRESS}:{port}")
                return
        raise DeliftError(f"no answer on port {port} within {READY_SECONDS:.0f} s")

    def watch(self) -> NoReturn:
        """Start again whatever ends, unless it has ended too often."""
        ends: list[float] = []
        closed = time.monotonic()
        while True:
            if time.monotonic() - closed > CLOSE_EVERY_SECONDS:
                # A `delift run` on this home may have been killed: runs would wait for its slot.
                with suppress(SQLAlchemyError):  # a database that is locked just now
                    close_without_process(self.home, served=True)
                closed = time.monotonic()
            for name in [name for name, one in self._running.items() if one.poll() is not None]:
                # Its children would go on working at the same time as those of the new one.
                deadline = time.monotonic() + GONE_SECONDS
                self._signal(name, signal.SIGKILL)
                while not self._signal(name, 0) and time.monotonic() < deadline:
                    time.sleep(0.05)
                try:
                    if name == DAEMON:
                        close_without_process(self.home)
                except SQLAlchemyError:  # a database that is locked just now: try again
                    continue
                now = time.monotonic()
                ends = [end for end in ends if now - end < ENDS_WITHIN_SECONDS] + [now]
                if len(ends) > MOST_ENDS:
                    self._raise_if_ended()
                _say(f"the {name} server ended and is started again")
                self.start(name)
            time.sleep(0.5)

    def end(self) -> None:
        """End each server with its children: first asked, then killed.

        The daemon's children are the runs. They are killed at once: a run that is asked to end
        counts as failed, one that is killed is launched again when the home is next served.
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

    def _raise_if_ended(self) -> None:
        for name, server in self._running.items():
            if server.poll() is not None:
                raise DeliftError(f"the {name} server ended with status {server.returncode}")

    def _signal(self, name: str, sign: int) -> bool:
        """Signal the group of a server; whether nothing is left of it."""
        try:
            os.killpg(self._running[name].pid, sign)
        except ProcessLookupError:
            return True
        return False
