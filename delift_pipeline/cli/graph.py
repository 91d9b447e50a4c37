"""Materialising the graph in this process, for `delift run` and `delift demo`."""

import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any

from delift_pipeline.arms import Arm, load_arms
from delift_pipeline.errors import DeliftError, Fault, Refused
from delift_pipeline.records.inbox import find
from delift_pipeline.records.stored import DatasetVersion, known_manifest, load_version
from delift_pipeline.steps.subset import refuse_inapplicable
from delift_pipeline.storage.atomic import write_text
from delift_pipeline.storage.home import Home, checked_version

if TYPE_CHECKING:
    import dagster as dg

RESOURCES = "resources"
OUTPUT_NOT_COPIED = {
    "compute_logs": {
        "module": "dagster._core.storage.noop_compute_log_manager",
        "class": "NoOpComputeLogManager",
    }
}


@dataclass
class Tally:
    """What the runs of one command did.

    Attributes:
        runs: Job, partition and Dagster run of each run, in order.
        seconds: Wall seconds by job and partition.
        pairs_scored: Pairs that went through the model.
        pairs_reused: Pairs that were found in the store.
    """

    runs: list[dict[str, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    pairs_scored: int = 0
    pairs_reused: int = 0


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
    named before, so that one process can open several homes. What its runs print goes to this
    program's own output: Dagster would copy it to files by programs that a Ctrl-C ends too, each
    with a traceback.
    """
    prepare_dagster_home(home)
    import dagster as dg
    from dagster._core.instance.ref import InstanceRef

    from delift_pipeline.partitions import add_versions

    logging.getLogger("dagster").setLevel(logging.ERROR)
    variables = {"DELIFT_HOME": str(home.root), "DAGSTER_HOME": str(home.dagster)}
    reference = InstanceRef.from_dir(str(home.dagster), overrides=OUTPUT_NOT_COPIED)
    with _environment(variables), dg.DagsterInstance.from_ref(reference) as instance:
        add_versions(instance, home)
        yield instance


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def working_instance(home: Home) -> Iterator["dg.DagsterInstance"]:
    """The home's instance for runs of this process; runs that lost theirs are closed first."""
    from delift_pipeline.cli.interrupted import close_interrupted, is_served, report_closed

    with opened_instance(home) as instance:
        report_closed(close_interrupted(instance, served=is_served(home)))
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


def materialise_version(
    home: Home,
    instance: "dg.DagsterInstance",
    version: str,
    config: Mapping[str, Any],
    tally: Tally,
) -> None:
    """Materialise the assets of one version up to its kernel.

    Raises:
        DeliftError: a step failed; the message is the step's own.
    """
    _execute(home, instance, "score_version", version, config, tally)


def materialise_arm(
    home: Home,
    instance: "dg.DagsterInstance",
    version: str,
    arm: str,
    config: Mapping[str, Any],
    tally: Tally,
) -> None:
    """Materialise subset, adapter and report of one arm of a version."""
    from delift_pipeline.partitions import partition_of

    _execute(home, instance, "finetune_arm", partition_of(version, arm), config, tally)


def materialise_leaderboard(
    home: Home, instance: "dg.DagsterInstance", config: Mapping[str, Any], tally: Tally
) -> None:
    """Rebuild the leaderboard."""
    _execute(home, instance, "refresh_leaderboard", None, config, tally)


def refuse_unknown(home: Home, version: str) -> None:
    """Refuse a version that is neither stored nor in the inbox, before anything is written.

    Raises:
        Refused: it is not; the sentence names those there are.
    """
    if find(home, checked_version(version)) is None:
        known_manifest(home, version)


def run_version(
    home: Home,
    instance: "dg.DagsterInstance",
    version: str,
    names: Sequence[str],
    config: Mapping[str, Any],
    tally: Tally,
) -> list[Arm]:
    """Materialise one version and its arms (all that apply, or the named ones).

    Raises:
        Refused: the version is unknown, or a named arm does not apply to it.
        DeliftError: a step failed.
    """
    if version in home.versions():
        applicable_arms(home, load_version(home, version), names)
    _add_partition(instance, version)
    materialise_version(home, instance, version, config, tally)
    arms = applicable_arms(home, load_version(home, version), names)
    for arm in arms:
        materialise_arm(home, instance, version, arm.name, config, tally)
    return arms


def _add_partition(instance: "dg.DagsterInstance", version: str) -> None:
    from delift_pipeline.partitions import dataset_version

    name = str(dataset_version.name)
    if version not in instance.get_dynamic_partitions(name):
        instance.add_dynamic_partitions(name, [version])


def _execute(
    home: Home,
    instance: "dg.DagsterInstance",
    job: str,
    partition: Any,
    config: Mapping[str, Any],
    tally: Tally,
) -> None:
    from delift_pipeline.executor import execute_in_process
    from delift_pipeline.graph import build_definitions

    started = time.monotonic()
    run_config = {
        "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
        RESOURCES: dict(config),
    }
    print(f"{job} {partition or ''}".rstrip(), file=sys.stderr, flush=True)
    job_definition = build_definitions(home).resolve_job_def(job)
    result = execute_in_process(job_definition, instance, partition, run_config)
    label = f"{job}:{partition}" if partition else job
    tally.seconds[label] = round(time.monotonic() - started, 2)
    tally.runs.append({"job": job, "partition": str(partition or ""), "run_id": result.run_id})
    _count_pairs(result, tally)
    if not result.success:
        error = _failure(result, label)
        # Printed with the traceback of --debug, which itself ends at this call.
        for event in (event for event in result.all_events if event.is_step_failure):
            if event.step_failure_data.error is not None:
                error.add_note(event.step_failure_data.error.to_string())
        raise error


def _count_pairs(result: "dg.ExecuteInProcessResult", tally: Tally) -> None:
    for event in result.get_asset_materialization_events():
        materialization = event.step_materialization_data.materialization
        if materialization.asset_key.path[-1] == "in_context_logprobs":
            facts = materialization.metadata
            tally.pairs_scored += int(str(facts["pairs_scored"].value))
            tally.pairs_reused += int(str(facts["pairs_reused"].value))


def _failure(result: "dg.ExecuteInProcessResult", label: str) -> DeliftError:
    for event in result.all_events:
        if not event.is_step_failure:
            continue
        data = event.step_failure_data
        if data.user_failure_data is not None:
            text = data.user_failure_data.description or "failed"
            refused = "faults" in (data.user_failure_data.metadata or {})
            return Refused(text) if refused else DeliftError(text)
        if data.error is not None:
            cause = data.error.cause or data.error
            return DeliftError(f"{label}, step {event.step_key}: {cause.message.strip()}")
    return DeliftError(f"{label} failed; `delift ui` shows run {result.run_id}")
