"""The graph's runs in this process, for `delift run` and `delift demo`, and interrupted ones."""

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
from delift_pipeline.core.errors import DeliftError, Fault, Refused
from delift_pipeline.core.home import Home
from delift_pipeline.records.stored import DatasetVersion, load_version
from delift_pipeline.stages.arms import Arm, load_arms
from delift_pipeline.stages.subset import refuse_inapplicable

if TYPE_CHECKING:
    import dagster as dg

    from delift_pipeline.operations.doctor import Finding

GONE = "its process is gone"


def prepare_dagster_home(home: Home) -> None:
    """Write the default `dagster.yaml` into the home, where it has none yet."""
    target = home.dagster / "dagster.yaml"
    if not target.is_file():
        text = resources.files("delift_pipeline.defaults").joinpath("dagster.yaml").read_text()
        write_text(target, text)


@contextmanager
def opened_instance(home: Home) -> Iterator["dg.DagsterInstance"]:
    """The home's Dagster instance; its versions are partitions in it.

    `DELIFT_HOME` and `DAGSTER_HOME` name this home for what runs inside, and afterwards what they
    named before, so that one process can open several homes.
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
    """The named arms, or all enabled ones, that apply to a version; random and full first.

    Raises:
        Refused: a named arm does not exist or does not apply.
    """
    arms = load_arms(home)
    faults: list[Fault] = []
    for name in names:
        try:
            refuse_inapplicable(dataset, arms.arm(name))
        except Refused as refused:
            faults.extend(refused.faults)
    if faults:
        raise Refused(*faults)
    enabled = arms.of_stages(dataset.stages())
    chosen = [arm for arm in enabled if arm.name in names]
    retired = [arm for arm in map(arms.arm, names) if arm not in chosen]
    return chosen + retired if names else enabled


class GraphRuns:
    """Runs of the graph's jobs in this process, and what they did.

    `seconds` are wall seconds by job and partition; pairs went through the model or were found.
    """

    def __init__(self, home: Home, instance: "dg.DagsterInstance") -> None:
        self._home, self._instance = home, instance
        self.runs: list[dict[str, str]] = []
        self.seconds: dict[str, float] = {}
        self.pairs_scored = self.pairs_reused = 0

    @classmethod
    @contextmanager
    def opened(cls, home: Home) -> "Iterator[GraphRuns]":
        """Open the home's instance; runs that lost their process are closed first."""
        with opened_instance(home) as instance:
            _close_interrupted(instance, served=is_served(home))
            yield cls(home, instance)

    def figures(self, started: float) -> dict[str, Any]:
        """Pairs and seconds as the commands report them; the total is from a monotonic time on."""
        total = round(time.monotonic() - started, 2)
        pairs = {"pairs_scored": self.pairs_scored, "pairs_reused": self.pairs_reused}
        return {**pairs, "seconds": {**self.seconds, "total": total}}

    def run_version(
        self, version: str, names: Sequence[str], config: Mapping[str, Any]
    ) -> list[Arm]:
        """Materialise one version up to its kernel, then its arms (all that apply, or the named).

        Raises:
            Refused: the version is unknown, or a named arm does not apply to it.
            DeliftError: a step failed; the message is the step's own.
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
        """Rebuild the leaderboard."""
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
            made = event.step_materialization_data.materialization
            if made.asset_key.path[-1] == "in_context_logprobs":
                self.pairs_scored += int(str(made.metadata["pairs_scored"].value))
                self.pairs_reused += int(str(made.metadata["pairs_reused"].value))
        if not result.success:
            raise _failure(result, label)


def _failure(result: "dg.ExecuteInProcessResult", label: str) -> DeliftError:
    """The first step's own words; the traceback is kept as a note, which `--debug` prints."""
    error = DeliftError(f"{label} failed; `delift ui` shows run {result.run_id}")
    failures = [(event, event.step_failure_data) for event in result.get_step_failure_events()]
    for event, data in failures:
        if (own := data.user_failure_data) is not None:
            text = own.description or "failed"
            error = Refused(text) if "faults" in (own.metadata or {}) else DeliftError(text)
            break
        if data.error is not None:
            cause = data.error.cause or data.error
            error = DeliftError(f"{label}, step {event.step_key}: {cause.message.strip()}")
            break
    for _, data in failures:
        if data.error is not None:
            error.add_note(data.error.to_string())
    return error


def serving_lock(home: Home, timeout: float = 0) -> FileLock:
    """The lock that `delift ui` holds while it serves a home."""
    return FileLock(home.dagster / ".serving.lock", timeout=timeout)


def is_served(home: Home) -> bool:
    """Whether a `delift ui` serves the home just now."""
    try:
        with serving_lock(home):
            return False
    except Timeout:
        return True


def close_without_process(home: Home, *, served: bool = False) -> None:
    """Close a home's runs whose process is gone, and say so; see `close_interrupted`."""
    with opened_instance(home) as instance:
        _close_interrupted(instance, served=served)


def _close_interrupted(instance: "dg.DagsterInstance", *, served: bool) -> None:
    from delift_pipeline.orchestration.dagster_internals import close_interrupted

    for run_id in close_interrupted(instance, served=served):
        note = f"run {run_id[:8]} was interrupted: {GONE}; what it finished is kept"
        print(note, file=sys.stderr, flush=True)


def runs(home: Home) -> Iterator["Finding"]:
    """Runs whose process is gone, and runs that wait for a place in a pool; changes nothing."""
    if not ((home.dagster / "dagster.yaml").is_file() and os.access(home.dagster, os.W_OK)):
        return  # Dagster cannot open its databases where it cannot write.
    import dagster as dg

    from delift_pipeline.operations.doctor import Finding
    from delift_pipeline.orchestration import dagster_internals as internals

    logging.getLogger("dagster").setLevel(logging.ERROR)
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        gone, queues = internals.runs_without_process(instance), internals.pool_queues(instance)
        if any(map(internals.is_launched, gone)) and is_served(home):
            gone = [run for run in gone if not internals.is_launched(run)]
        todo = "the next `delift run` or `delift ui` closes it and goes on with its work"
        warnings = [
            (f"run {run.run_id[:8]} ({run.job_name}) was interrupted: {GONE}", todo) for run in gone
        ]
        for pool, waiting, holders in queues:
            places = {one: f"process {p.pid}" if p else GONE for one, p in holders.items()}
            held = [f"run {run_id[:8]} ({place})" for run_id, place in places.items()]
            names, by = ", ".join(one[:8] for one in waiting), " and ".join(held) or "no run"
            todo = "the next `delift run` or `delift ui` frees it"
            todo = "let it finish, or end its process" if any(holders.values()) else todo
            warnings.append(
                (f"run {names} waits for a place in the pool {pool}, held by {by}", todo)
            )
    for note, todo in warnings:
        yield Finding("runs", "warning", note, todo)
    if not warnings:
        yield Finding("runs", "ok", "no run was interrupted, and none waits for the GPU")
