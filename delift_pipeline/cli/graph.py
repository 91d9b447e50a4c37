"""Run the graph in this process, for `delift run` and `delift demo`, and close lost runs."""

import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from delift_pipeline.cli.options import environment
from delift_pipeline.core.atomic import write_text
from delift_pipeline.core.errors import DeliftError, Fault, InputError
from delift_pipeline.core.home import Home
from delift_pipeline.records.stored import DatasetVersion, load_version
from delift_pipeline.stages.arms import Arm, load_arms
from delift_pipeline.stages.subset import refuse_inapplicable

if TYPE_CHECKING:
    import dagster as dg

    from delift_pipeline.operations.doctor import Finding

PROCESS_GONE = "its process is gone"


def prepare_dagster_home(home: Home) -> None:
    """Write the default `dagster.yaml` into the home, if it has none yet."""
    target = home.dagster / "dagster.yaml"
    if not target.is_file():
        text = resources.files("delift_pipeline.defaults").joinpath("dagster.yaml").read_text()
        write_text(target, text)


@contextmanager
def open_instance(home: Home) -> Iterator["dg.DagsterInstance"]:
    """Open the home's Dagster instance, with the home's versions as partitions.

    `DELIFT_HOME` and `DAGSTER_HOME` name this home while the instance is open. Afterwards they have
    their former values, so that one process can open several homes.
    """
    prepare_dagster_home(home)
    from delift_pipeline.orchestration.dagster_internals import instance_at
    from delift_pipeline.orchestration.partitions import add_versions

    logging.getLogger("dagster").setLevel(logging.ERROR)
    variables = {"DELIFT_HOME": str(home.root), "DAGSTER_HOME": str(home.dagster)}
    with environment(variables), instance_at(str(home.dagster)) as instance:
        add_versions(instance, home)
        yield instance


def applicable_arms(home: Home, dataset: DatasetVersion, names: Sequence[str]) -> list[Arm]:
    """Return the named arms, or all enabled arms that apply to a version; random and full first.

    Raises:
        InputError: a named arm does not exist, or does not apply to the version.
    """
    arms = load_arms(home)
    faults: list[Fault] = []
    for name in names:
        try:
            refuse_inapplicable(dataset, arms.arm(name))
        except InputError as refused:
            faults.extend(refused.faults)
    if faults:
        raise InputError(*faults)
    enabled = arms.of_stages(dataset.stages())
    chosen = [arm for arm in enabled if arm.name in names]
    retired = [arm for arm in map(arms.arm, names) if arm not in chosen]
    return chosen + retired if names else enabled


class GraphRuns:
    """Runs the graph's jobs in this process, and records what they did.

    Attributes:
        runs: The job, partition and run id of each run.
        seconds: Wall time by job and partition.
        pairs_scored: Pairs that the model scored.
        pairs_reused: Pairs whose scores were stored before.
        template: The name of the prompt template of the last version.
    """

    def __init__(self, home: Home, instance: "dg.DagsterInstance") -> None:
        self._home, self._instance = home, instance
        self.runs: list[dict[str, str]] = []
        self.seconds: dict[str, float] = {}
        self.pairs_scored = self.pairs_reused = 0
        self.template: str | None = None

    @classmethod
    @contextmanager
    def open(cls, home: Home) -> "Iterator[GraphRuns]":
        """Open the home's instance, and close runs whose process is gone."""
        with open_instance(home) as instance:
            _close_dead_runs(instance, served=is_served(home))
            yield cls(home, instance)

    def figures(self, started: float) -> dict[str, Any]:
        """Return pairs and seconds for a command's report; `started` is a monotonic time."""
        total = round(time.monotonic() - started, 2)
        pairs = {"pairs_scored": self.pairs_scored, "pairs_reused": self.pairs_reused}
        return {**pairs, "seconds": {**self.seconds, "total": total}}

    def run_version(
        self, version: str, names: Sequence[str], config: Mapping[str, Any]
    ) -> list[Arm]:
        """Materialise a version up to its kernel, then the named arms, or all that apply.

        Raises:
            InputError: the version is unknown, or a named arm does not apply to it.
            DeliftError: a step failed. The message is that of the step.
        """
        from delift_pipeline.orchestration.partitions import dataset_version, partition_of

        if version in self._home.versions():
            applicable_arms(self._home, load_version(self._home, version), names)
        partitions = str(dataset_version.name)
        if version not in self._instance.get_dynamic_partitions(partitions):
            self._instance.add_dynamic_partitions(partitions, [version])
        self._execute("score_version", version, config)
        arms = applicable_arms(self._home, load_version(self._home, version), names)
        for arm in arms:
            self._execute("finetune_arm", partition_of(version, arm.name), config)
        return arms

    def refresh_leaderboard(self) -> None:
        """Materialise the leaderboard."""
        self._execute("refresh_leaderboard", "", {})

    def _execute(self, job: str, partition: str, config: Mapping[str, Any]) -> None:
        from delift_pipeline.graph import build_definitions
        from delift_pipeline.orchestration.dagster_internals import execute_in_process

        started = time.monotonic()
        run_config = {
            "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            "resources": dict(config),
        }
        print(f"{job} {partition}".rstrip(), file=sys.stderr, flush=True)
        definition = build_definitions(self._home).resolve_job_def(job)
        result = execute_in_process(definition, self._instance, partition or None, run_config)
        label = f"{job}:{partition}" if partition else job
        self.seconds[label] = round(time.monotonic() - started, 2)
        self.runs.append({"job": job, "partition": str(partition), "run_id": result.run_id})
        for event in result.get_asset_materialization_events():
            asset = event.step_materialization_data.materialization
            if asset.asset_key.path[-1] == "in_context_logprobs":
                self.pairs_scored += int(str(asset.metadata["pairs_scored"].value))
                self.pairs_reused += int(str(asset.metadata["pairs_reused"].value))
                self.template = str(asset.metadata["template"].value)
        if not result.success:
            raise _failure_of(result, label)


def _failure_of(result: "dg.ExecuteInProcessResult", label: str) -> DeliftError:
    """Return the error of the first failed step, with its traceback as a note for `--debug`."""
    error = DeliftError(f"{label} failed. `delift ui` shows run {result.run_id}")
    failures = [(event, event.step_failure_data) for event in result.get_step_failure_events()]
    for event, data in failures:
        if (failure := data.user_failure_data) is not None:
            text = failure.description or "failed"
            error = InputError(text) if "faults" in (failure.metadata or {}) else DeliftError(text)
            break
        if data.error is not None:
            cause = data.error.cause or data.error
            error = DeliftError(f"{label}, step {event.step_key}: {cause.message.strip()}")
            break
    for _, data in failures:
        if data.error is not None:
            error.add_note(data.error.to_string())
    return error


def server_lock(home: Home, timeout: float = 0) -> FileLock:
    """Return the lock that `delift ui` holds while it serves a home."""
    return FileLock(home.dagster / ".serving.lock", timeout=timeout)


def is_served(home: Home) -> bool:
    """Whether a `delift ui` serves the home now."""
    try:
        with server_lock(home):
            return False
    except Timeout:
        return True


def close_runs_without_process(home: Home, *, served: bool = False) -> None:
    """Close a home's runs whose process is gone, and tell the user; see `close_dead_runs`."""
    with open_instance(home) as instance:
        _close_dead_runs(instance, served=served)


def _close_dead_runs(instance: "dg.DagsterInstance", *, served: bool) -> None:
    from delift_pipeline.orchestration.dagster_internals import close_dead_runs

    for run_id in close_dead_runs(instance, served=served):
        note = f"run {run_id[:8]} was interrupted: {PROCESS_GONE}. Its finished work is stored"
        print(note, file=sys.stderr, flush=True)


def runs(home: Home) -> Iterator["Finding"]:
    """Report runs whose process is gone, and runs that wait for a place in a pool."""
    if not ((home.dagster / "dagster.yaml").is_file() and os.access(home.dagster, os.W_OK)):
        return  # Dagster opens its databases only if it can write to them.
    import dagster as dg

    from delift_pipeline.operations.doctor import Finding
    from delift_pipeline.orchestration import dagster_internals as internals

    logging.getLogger("dagster").setLevel(logging.ERROR)
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        gone, queues = internals.runs_without_process(instance), internals.pool_queues(instance)
        if any(map(internals.is_launched, gone)) and is_served(home):
            gone = [run for run in gone if not internals.is_launched(run)]
        todo = "the next `delift run` or `delift ui` closes it and continues its work"
        warnings = [
            (f"run {run.run_id[:8]} ({run.job_name}) was interrupted: {PROCESS_GONE}", todo)
            for run in gone
        ]
        for pool, waiting, holders in queues:
            places = {one: f"process {p.pid}" if p else PROCESS_GONE for one, p in holders.items()}
            runs_there = [f"run {run_id[:8]} ({place})" for run_id, place in places.items()]
            names, by = ", ".join(one[:8] for one in waiting), " and ".join(runs_there) or "no run"
            todo = "the next `delift run` or `delift ui` frees it"
            todo = (
                "wait until it is finished, or end its process" if any(holders.values()) else todo
            )
            warnings.append(
                (f"run {names} waits for a slot of the pool {pool}, which {by} holds", todo)
            )
    for note, todo in warnings:
        yield Finding("runs", "warning", note, todo)
    if not warnings:
        yield Finding("runs", "ok", "no run was interrupted, and none waits for the GPU")
