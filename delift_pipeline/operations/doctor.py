"""Check a home and this machine: one finding for each thing that the pipeline needs."""

import importlib.metadata
import json
import platform
import shutil
import socket
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from delift_pipeline.core.errors import DeliftError
from delift_pipeline.core.home import MODELS_FILE, Home, outside_models
from delift_pipeline.core.manifest import rebuild_reason
from delift_pipeline.lineage.artifacts import all_artifacts
from delift_pipeline.operations.gc import collect_garbage
from delift_pipeline.stages.arms import load_arms

State = Literal["ok", "warning", "broken"]
GIGABYTE = 1e9
LITTLE_DISK, NO_DISK = 5 * GIGABYTE, 0.5 * GIGABYTE
PACKAGES = ("torch", "transformers", "peft", "dagster", "dagster-webserver", "mlflow", "duckdb")
PORTS = {"Dagster": 3000, "MLflow": 5000}
SELF_TEST_SECONDS = 10.0
LOCK_SECONDS = 1.0
DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
IN_USE = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
LATER = "run `delift doctor` again when that process is done; leave the file where it is"
ACCESS = "give this user the right to read and write it; leave the file where it is"


@dataclass(frozen=True)
class Finding:
    """The result of one check: a note, and what to do if it is not `ok`.

    With a `warning` the pipeline can work; with something `broken` it cannot.
    """

    name: str
    state: State
    note: str
    todo: str = ""


def _finding(name: str, note: str, todo: str = "", state: State = "broken") -> Finding:
    """Return a finding that is `ok` if there is nothing to do."""
    return Finding(name, state if todo else "ok", note, todo)


Examination = Callable[[Home], Iterator[Finding]]


def examine(
    home: Home, *, self_test: bool = True, more: Sequence[Examination] = ()
) -> list[Finding]:
    """Examine a home, which need not exist yet. An unexpected error is a finding too.

    The self-test scores and selects a few records with the demo model. The examinations in
    `more` run after that of the databases.
    """
    all_of_them = [_packages, _gpu, _disk, _arms, _models, _store, _databases, *more]
    all_of_them += [_ports, _waste, *([_self_test] if self_test else [])]
    findings: list[Finding] = []
    for examination in all_of_them:
        try:
            findings.extend(examination(home))  # keeps the findings before an error
        except Exception as error:
            expected = isinstance(error, DeliftError)
            note = str(error) if expected else f"{type(error).__name__}: {error}"
            todo = "see above" if expected else "report this with the line above"
            name = examination.__name__.strip("_")
            findings.append(Finding(name, "broken", note.splitlines()[0], todo))
    return findings


def _packages(home: Home) -> Iterator[Finding]:
    fits = (3, 11) <= sys.version_info[:2] < (3, 13)
    todo = "" if fits else "make the environment with Python 3.11 or 3.12"
    yield _finding("python", platform.python_version(), todo)
    installed, missing = [], []
    for name in PACKAGES:
        try:
            installed.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    absent = f"{', '.join(missing)} missing; " if missing else ""
    todo = "pip install -c constraints.txt -e ." if missing else ""
    yield _finding("packages", absent + ", ".join(installed), todo)


def _gpu(home: Home) -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        note = "no GPU is visible: models run on the CPU"
        todo = "fine for small models; else check nvidia-smi and the torch build"
        yield Finding("gpu", "warning", note, todo)
        return
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        note = f"cuda:{number} {name}, {free / GIGABYTE:.0f} of {total / GIGABYTE:.0f} GB free"
        yield Finding("gpu", "ok", note)


def _disk(home: Home) -> Iterator[Finding]:
    place = next(path for path in (home.root, *home.root.parents) if path.exists())
    free = shutil.disk_usage(place).free
    todo = "free some space, or see `delift gc`" if free < LITTLE_DISK else ""
    state = "broken" if free < NO_DISK else "warning"
    yield _finding("disk", f"{free / GIGABYTE:,.1f} GB free", todo, state)


def _arms(home: Home) -> Iterator[Finding]:
    own = "arms.yaml of the home" if home.arms_file.is_file() else "the package's arms.yaml"
    try:
        note, todo = f"{sum(arm.enabled for arm in load_arms(home))} arms enabled", ""
    except DeliftError as error:
        faults = str(error).splitlines()
        note, todo = f"{len(faults)} faults, {faults[0]}", "repair the file"
    yield _finding("arms", f"{own}: {note}", todo)


def _models(home: Home) -> Iterator[Finding]:
    """Check the model folders outside the home, if there are any."""
    known = outside_models(home)
    gone = [name for name, place in known.items() if not Path(place).is_dir()]
    for name in gone:
        note = f"the folder {known[name]} of the model {name} is gone"
        todo = f"write its folder into {MODELS_FILE} of the home, or give --model DIR"
        yield Finding("models", "warning", note, todo)
    if known and not gone:
        yield Finding("models", "ok", f"{len(known)} model folders outside the home, all there")


def _store(home: Home) -> Iterator[Finding]:
    if not home.root.is_dir():
        note, todo = f"{home.root} does not exist yet", "delift ingest FILE --version V makes it"
        yield Finding("store", "warning", note, todo)
        return
    try:
        artifacts = list(all_artifacts(home))
    except DeliftError as error:
        todo = "delete that artifact's folder and run its version again"
        yield Finding("store", "broken", str(error).splitlines()[0], todo)
        return
    versions = sum(one.kind == "dataset" for one in artifacts)
    yield Finding("store", "ok", f"{versions} versions, {len(artifacts):,} artifacts, all readable")
    if marked := sum(rebuild_reason(one.folder) is not None for one in artifacts):
        note = f"{marked:,} artifacts are marked for rebuilding"
        yield Finding("rebuild", "warning", note, "delift run --version V for their versions")
    try:
        tempfile.NamedTemporaryFile(dir=home.root, prefix=".tmp-doctor-").close()
    except OSError as error:
        todo = "give this user the right to write there"
        yield Finding("writable", "broken", f"the home cannot be written to ({error})", todo)


def _databases(home: Home) -> Iterator[Finding]:
    """Check the SQLite files of Dagster and MLflow, and the catalog.

    Only a failed integrity check counts as damage, because moving an intact file would lose runs.
    """
    files = [home.mlflow / "mlflow.db", *sorted(home.dagster.rglob("*.db"))]
    present = [path for path in files if path.is_file()]
    wrong = [finding for path in present if (finding := _database_finding(home, path))]
    yield from wrong or [Finding("databases", "ok", f"{len(present)} SQLite files, intact")]
    if home.catalog.is_file():
        yield _catalog_finding(home)


def _database_finding(home: Home, path: Path) -> Finding | None:
    """Return what is wrong with a SQLite file, or None if it is intact.

    The file is opened read-only, so a running server is not disturbed.
    """
    where = path.relative_to(home.root).as_posix()
    try:
        uri = f"{path.as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=LOCK_SECONDS)) as connection:
            answer = str(connection.execute("PRAGMA integrity_check(1)").fetchone()[0])
    except sqlite3.DatabaseError as error:
        # The low byte is the kind of error; the other bytes are details.
        kind = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if kind in IN_USE:
            return Finding("databases", "warning", _in_use(path, where), LATER)
        if kind not in DAMAGED:
            return Finding("databases", "broken", f"{where} cannot be opened ({error})", ACCESS)
        answer = str(error)
    if answer == "ok":
        return None
    todo = f"move {where} away; a new one is made, and lineage is safe in the manifests"
    return Finding("databases", "broken", f"{where} is damaged ({answer})", todo)


def _catalog_finding(home: Home) -> Finding:
    """Check whether `catalog.duckdb` can be read."""
    import duckdb

    from delift_pipeline.operations.catalog import known_stamps

    name = home.catalog.name
    with suppress(duckdb.Error):
        try:
            duckdb.connect(str(home.catalog), read_only=True).close()
        except duckdb.IOException as error:
            if "lock" in str(error):
                return Finding("catalog", "warning", _in_use(home.catalog, name), LATER)
            if "ermission" in str(error):
                return Finding("catalog", "broken", f"{name} cannot be opened", ACCESS)
    if known_stamps(home.catalog):
        return Finding("catalog", "ok", f"{name} is readable")
    return Finding("catalog", "warning", f"{name} cannot be read", "delift catalog makes it anew")


def _in_use(path: Path, where: str) -> str:
    """Return the note on a file in use, with the process if this user may see it."""
    by = "another process"
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if any(Path(one.path) == path for one in process.open_files()):
                by = f"process {process.pid}"
                break
    return f"{where} is in use by {by}, and could not be checked"


def _ports(home: Home) -> Iterator[Finding]:
    used_ports = []
    for name, port in PORTS.items():
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                used_ports.append(f"{port} ({name})")
    free = ", ".join(f"{port} free for {name}" for name, port in PORTS.items())
    note = f"in use on 127.0.0.1: {', '.join(used_ports)}" if used_ports else free
    todo = "`delift ui` runs already, or give it --port and --mlflow-port" if used_ports else ""
    yield _finding("ports", note, todo, "warning")


def _waste(home: Home) -> Iterator[Finding]:
    if home.root.is_dir() and (leftovers := collect_garbage(home)).waste:
        note = f"{len(leftovers.waste):,} leftovers, {leftovers.bytes / 1e6:,.1f} MB"
        yield Finding("leftovers", "warning", note, "delift gc lists them, --apply removes them")


def _self_test(home: Home) -> Iterator[Finding]:
    """Score and select a few records with the demo model, in a temporary home."""
    from delift_pipeline.core.progress import SilentProgress
    from delift_pipeline.scoring.options import ModelOptions
    from delift_pipeline.stages.file_selection import Request
    from delift_pipeline.stages.select_file import select_file

    started, words = time.monotonic(), ("red", "blue", "pink", "gold", "grey", "teal")
    rows = [{"instruction": "say the code of", "input": w, "output": f"( {w} )"} for w in words]
    with tempfile.TemporaryDirectory(prefix="delift-doctor-") as name:
        folder, file, out = (Path(name, one) for one in ("home", "records.jsonl", "chosen.jsonl"))
        file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        request = Request(file, selector="delift", budget="3", out=out)
        model = ModelOptions(model="demo", template="world", device="cpu", threads=1)
        select_file(Home.at(folder), request, model, SilentProgress())
        chosen = len(out.read_text(encoding="utf-8").splitlines())
    if chosen != 3:
        raise DeliftError(f"the self-test selected {chosen} records instead of 3")
    seconds = time.monotonic() - started
    note = f"3 of 6 records scored and selected with the demo model, {seconds:.1f} s"
    slow = "this machine is busy or slow; set OMP_NUM_THREADS=1 if it has few cores"
    yield _finding("self-test", note, slow if seconds > SELF_TEST_SECONDS else "", "warning")
