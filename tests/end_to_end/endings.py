"""Ending a run at an exact moment, in each of the ways in which a run can end.

Used by `test_ended_runs.py` for some combinations and by `all_endings.py` for all of them.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import dagster as dg
import psutil

from delift_pipeline.core.home import Home
from delift_pipeline.demo.dataset import DemoSizes, write_demo_files
from delift_pipeline.orchestration.sensors import WILL_RETRY
from delift_pipeline.records.versions import ingest
from tests.end_to_end.serving import Served, until

Program = Literal["run", "ui"]
Way = Literal["SIGINT", "SIGTERM", "SIGKILL", "cancel"]
Stage = Literal["scoring", "training", "evaluation"]

VERSION, ARM = "demo-v1", "instruction_tuning.delift"
SIZES = DemoSizes(pool=100, new_tasks=10, old_tasks=10, heldout_per_task=2, target=4)
ARMS = """
automation: {{retry_seconds: 1, isolate_steps: {isolated}}}
defaults:
  training: {{preset: demo, steps: 150, batch_size: 8}}
  evaluation: {{metrics: [answer_loss, exact_match], max_new_tokens: 24}}
arms:
  {arm}: {{}}
"""
ONE = {"dagster/partition": VERSION}
PAIR = {
    "dagster/partition": f"{ARM}|{VERSION}",
    "dagster/partition/version": VERSION,
    "dagster/partition/arm": ARM,
}
LAUNCHED: dict[Stage, tuple[str, list[str], dict[str, str]]] = {
    "scoring": (
        "score_version",
        ["baseline_logprobs", "in_context_logprobs", "utility_kernel"],
        ONE,
    ),
    "training": ("finetune_arm", ["adapter"], PAIR),
    "evaluation": ("finetune_arm", ["eval_report"], PAIR),
}
MADE: dict[Stage, list[str]] = {
    "scoring": ["scores", "kernels", "subsets", "adapters", "reports"],
    "training": ["adapters", "reports"],
    "evaluation": ["reports"],
}
"""The folders that a stage and those after it write."""
LAUNCH_MADE: dict[Stage, str] = {
    "scoring": "kernels",
    "training": "adapters",
    "evaluation": "reports",
}
STATUS = {"SIGINT": 130, "SIGTERM": 143, "SIGKILL": -9, "cancel": 130}
MOST_SECONDS = 10.0
TIMES = ("seconds", "dagster_run", "git_commit")
"""What a report holds besides what it measures."""


@dataclass(frozen=True)
class Ending:
    """One way to end one stage of one program."""

    program: Program
    isolated: bool
    way: Way
    stage: Stage

    def __str__(self) -> str:
        """A name for tables and tests."""
        steps = "isolated" if self.isolated else "in-process"
        return f"{self.program}-{steps}-{self.way}-{self.stage}"


@dataclass
class Bench:
    """An undisturbed home, and the homes and servers in which runs are ended."""

    folder: Path
    whole: Home = field(init=False)
    servers: dict[bool, Served] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make one version and run all of it without disturbance."""
        self.whole = Home.at(self.folder / "whole")
        files = write_demo_files(self.folder / "files", sizes=SIZES)
        ingest(
            self.whole,
            files.first_pool,
            version=VERSION,
            heldout=files.first_heldout,
            model="demo",
            template="world",
            dataset="demo",
        )
        self.write_arms(self.whole, isolated=True)
        assert self.run(self.whole).wait() == 0, self.log(self.whole).read_text()

    def write_arms(self, home: Home, *, isolated: bool) -> None:
        home.arms_file.write_text(ARMS.format(isolated=str(isolated).lower(), arm=ARM))

    def log(self, home: Home) -> Path:
        return home.root.with_suffix(".log")

    def run(self, home: Home) -> subprocess.Popen[bytes]:
        """Start `delift run`, alone in its process group as a shell does it."""
        command = [sys.executable, "-m", "delift_pipeline.cli.main", "run", "--version", VERSION]
        with self.log(home).open("ab") as log:
            return subprocess.Popen(
                [*command, "--home", str(home.root)],
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
                env=environment(),
            )

    def home(self, ending: Ending) -> Home:
        """A home that lacks what the stage makes; one that is served is used again and again."""
        if ending.program == "run" and ending.way != "cancel":
            home = Home.at(self.folder / str(ending))
            shutil.copytree(self.whole.root, home.root)
            self.write_arms(home, isolated=ending.isolated)
        else:
            home = self.server(ending.isolated).home
            for name in MADE["scoring"]:
                shutil.rmtree(home.root / name, ignore_errors=True)
                shutil.copytree(self.whole.root / name, home.root / name)
        for name in MADE[ending.stage]:
            shutil.rmtree(home.root / name, ignore_errors=True)
        return home

    def server(self, isolated: bool) -> Served:
        """A running `delift ui` on a home whose steps are isolated, or are not."""
        if isolated not in self.servers:
            home = Home.at(self.folder / f"served-{isolated}")
            shutil.copytree(self.whole.root, home.root)
            self.write_arms(home, isolated=isolated)
            self.servers[isolated] = Served(home, self.log(home))
            self.servers[isolated].start()
        return self.servers[isolated]

    def close(self) -> None:
        for served in self.servers.values():
            served.end()


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "DELIFT_MODEL")}
    return kept | {"OMP_NUM_THREADS": "1"}


def play(bench: Bench, ending: Ending) -> float:
    """End a run, run again, and compare what is made; the seconds that the ending took.

    Raises:
        AssertionError: something did not go as it has to.
    """
    home = bench.home(ending)
    if ending.program == "run":
        return _play_run(bench, home, ending)
    return _play_ui(bench, home, ending)


def _play_run(bench: Bench, home: Home, ending: Ending) -> float:
    process = bench.run(home)
    try:
        run_id = until_at_work(home, ending.stage)
        started = time.monotonic()
        if ending.way == "cancel":
            bench.server(ending.isolated).cancel(run_id)
        else:
            os.killpg(process.pid, getattr(signal, ending.way))
        assert process.wait(60) == STATUS[ending.way]
        seconds = time.monotonic() - started
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if ending.way != "SIGKILL":
        assert seconds < MOST_SECONDS
        assert "run the same command again" in bench.log(home).read_text()
        assert state(home, run_id) == ("CANCELED", False)
    assert retries(home, run_id) == 0
    assert bench.run(home).wait() == 0, bench.log(home).read_text()
    assert state(home, run_id)[0] in ("CANCELED", "FAILURE")
    same_bytes(home, bench.whole, MADE["scoring"])
    return seconds


def _play_ui(bench: Bench, home: Home, ending: Ending) -> float:
    served = bench.server(ending.isolated)
    assert served.process is not None
    launched = LAUNCHED[ending.stage]
    run_id = served.launch(*launched)
    assert until_at_work(home, ending.stage) == run_id
    started = time.monotonic()
    if ending.way == "cancel":
        workers = processes_of(home, run_id)
        assert workers
        served.cancel(run_id)
        until("end of the run", lambda: state(home, run_id)[0] == "CANCELED", pause=0.1)
        seconds = time.monotonic() - started
        assert seconds < MOST_SECONDS
        psutil.wait_procs(workers, timeout=MOST_SECONDS)
        assert not [one for one in workers if one.is_running()]
        until("free pool", lambda: state(home, run_id) == ("CANCELED", False))
        assert retries(home, run_id) == 0
        served.launch(*launched)
    else:
        family = [served.process.pid]
        if ending.way == "SIGKILL":
            family = [one.pid for one in psutil.Process(family[0]).children(recursive=True)]
            family = [served.process.pid, *family]
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, getattr(signal, ending.way))
        served.process.wait(60)
        seconds = time.monotonic() - started
        served.start()
    until("end of all runs", lambda: not served.at_work() and _newest_succeeded(home), pause=1)
    assert state(home, run_id)[0] in ("CANCELED", "FAILURE")
    same_bytes(home, bench.whole, [LAUNCH_MADE[ending.stage]], later=("token_changes.parquet",))
    return seconds


@contextmanager
def opened(home: Home) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        yield instance


def until_at_work(home: Home, stage: Stage) -> str:
    """Wait until a run is in the middle of a stage; its id."""
    steps = {
        "scoring": "in_context_logprobs",
        "training": "adapter",
        "evaluation": "eval_report",
    }
    step = steps[stage]
    marks = {
        "scoring": "scores/*/leases/*.lease",
        "training": "adapters/*/.tmp-*",
        "evaluation": "reports",
    }
    with opened(home) as instance:

        def started() -> str | None:
            for run in instance.get_runs(
                dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]), limit=1
            ):
                of_type = dg.DagsterEventType.STEP_START
                entries = instance.all_logs(run.run_id, of_type=of_type)
                if any(entry.step_key == step for entry in entries):
                    return run.run_id
            return None

        run_id = until(f"start of {step}", started, pause=0.1)
        until(f"mark of {stage}", lambda: list(home.root.glob(marks[stage])), pause=0.02)
    return run_id


def state(home: Home, run_id: str) -> tuple[str, bool]:
    """The status of a run, and whether it holds a place in a pool."""
    with opened(home) as instance:
        run = instance.get_run_by_id(run_id)
        assert run is not None
        return run.status.value, run_id in instance.event_log_storage.get_concurrency_run_ids()


def retries(home: Home, run_id: str) -> int:
    """How often a run tried one of its steps again."""
    with opened(home) as instance:
        return len(instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_RESTARTED))


def processes_of(home: Home, run_id: str) -> list[psutil.Process]:
    """The processes that said that they work on a run or on its steps."""
    with opened(home) as instance:
        pids = {
            int(str(entry.dagster_event.engine_event_data.metadata["pid"].value))
            for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
            if entry.dagster_event and "pid" in entry.dagster_event.engine_event_data.metadata
        }
    return [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]


def _newest_succeeded(home: Home) -> bool:
    with opened(home) as instance:
        run = instance.get_runs(limit=1)[0]
    final = run.status == dg.DagsterRunStatus.FAILURE and run.tags[WILL_RETRY] != "true"
    assert not final, f"run {run.run_id} failed"
    return run.status == dg.DagsterRunStatus.SUCCESS


def same_bytes(home: Home, other: Home, folders: list[str], later: tuple[str, ...] = ()) -> None:
    """What was made is the same, apart from times, run ids and how scores are cut into shards.

    Args:
        home: Where a run was ended.
        other: Where none was.
        folders: The folders to compare.
        later: Files in them that a later step writes.
    """
    for name in folders:
        made, expected = contents(home.root / name), contents(other.root / name)
        expected = {
            path: one for path, one in expected.items() if path in made or not path.endswith(later)
        }
        assert expected or name == "scores"
        assert made == expected, sorted(set(made.items()) ^ set(expected.items()))


def contents(folder: Path) -> dict[str, str]:
    """A digest of each file that holds results, by its path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.name == "leaderboard.parquet" or not path.is_file():
            continue
        if path.suffix in (".parquet", ".npy") or path.name == "adapter_model.safetensors":
            data = path.read_bytes()
        elif path.name == "report.json":
            data = json.dumps(_without_times(json.loads(path.read_text()))).encode()
        else:
            continue
        found[path.relative_to(folder).as_posix()] = hashlib.sha256(data).hexdigest()
    return found


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_times(one) for name, one in value.items() if name not in TIMES}
    return value
