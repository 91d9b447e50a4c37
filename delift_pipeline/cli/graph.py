"""Materialising the graph in this process, for `delift run` and `delift demo`."""

import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from typing import TYPE_CHECKING, Any

from delift_pipeline.arms import Arm, load_arms
from delift_pipeline.cli.options import environment
from delift_pipeline.errors import DeliftError, Fault, Refused
from delift_pipeline.records.inbox import find
from delift_pipeline.records.stored import DatasetVersion, known_manifest, load_version
from delift_pipeline.steps.subset import refuse_inapplicable
from delift_pipeline.storage.atomic import write_text
from delift_pipeline.storage.home import Home, checked_version

if TYPE_CHECKING:
    import dagster as dg


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
    from delift_pipeline.dagster_internals import instance_at
    from delift_pipeline.partitions import add_versions

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
    arms, stages = load_arms(home), dataset.stages()
    faults: list[Fault] = []
    for name in names:
        try:
            refuse_inapplicable(dataset, arms.arm(name))
        except Refused as refused:
            faults.extend(refused.faults)
    if faults:
        raise Refused(*faults)
    chosen = arms.of_stages(stages)
    if names:
        chosen = [arm for arm in chosen if arm.name in names]
        retired = set(names) - {arm.name for arm in chosen}
        chosen += [arms.arm(name) for name in names if name in retired]
    return chosen


def refuse_unknown(home: Home, version: str) -> None:
    """Refuse a version that is neither stored nor in the inbox, before anything is written.

    Raises:
        Refused: it is not; the sentence names those there are.
    """
    if find(home, checked_version(version)) is None:
        known_manifest(home, version)


class GraphRuns:
    """Runs of the graph's jobs in this process, and what they did.

    Attributes:
        runs: Job, partition and Dagster run of each run, in order.
        seconds: Wall seconds by job and partition.
        pairs_scored: Pairs that went through the model.
        pairs_reused: Pairs that were found in the store.
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
        from delift_pipeline.cli.interrupted import close_interrupted, is_served, report_closed

        with opened_instance(home) as instance:
            report_closed(close_interrupted(instance, served=is_served(home)))
            yield cls(home, instance)

    def run_version(
        self, version: str, names: Sequence[str], config: Mapping[str, Any]
    ) -> list[Arm]:
        """Materialise one version up to its kernel, then its arms (all that apply, or the named).

        Args:
            version: The version.
            names: Names of arms; empty for all that apply.
            config: The run config of resources.

        Raises:
            Refused: the version is unknown, or a named arm does not apply to it.
            DeliftError: a step failed; the message is the step's own.
        """
        from delift_pipeline.partitions import dataset_version, partition_of

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
        self._execute("refresh_leaderboard", None, {})

    def _execute(self, job: str, partition: Any, config: Mapping[str, Any]) -> None:
        from delift_pipeline.dagster_internals import execute_in_process
        from delift_pipeline.graph import build_definitions

        started = time.monotonic()
        run_config = {
            "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            "resources": dict(config),
        }
        print(f"{job} {partition or ''}".rstrip(), file=sys.stderr, flush=True)
        job_definition = build_definitions(self._home).resolve_job_def(job)
        result = execute_in_process(job_definition, self._instance, partition, run_config)
        label = f"{job}:{partition}" if partition else job
        self.seconds[label] = round(time.monotonic() - started, 2)
        self.runs.append({"job": job, "partition": str(partition or ""), "run_id": result.run_id})
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
    failures = [event for event in result.all_events if event.is_step_failure]
    for event in failures:
        data = event.step_failure_data
        if data.user_failure_data is not None:
            text = data.user_failure_data.description or "failed"
            refused = "faults" in (data.user_failure_data.metadata or {})
            error = Refused(text) if refused else DeliftError(text)
            break
        if data.error is not None:
            cause = data.error.cause or data.error
            error = DeliftError(f"{label}, step {event.step_key}: {cause.message.strip()}")
            break
    for event in failures:
        if event.step_failure_data.error is not None:
            error.add_note(event.step_failure_data.error.to_string())
    return error
