"""Lineage as OpenLineage run events (specification 2-0-2), one JSON document a line.

Every artifact is one run of the job that makes its kind: a START and a COMPLETE event with the
artifacts it read as inputs and itself as output. A run's id is derived from the artifact's name
and hash, so another export gives the same ids. The parent facet names the Dagster run.
"""

import datetime as dt
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
from openlineage.client.event_v2 import (
    InputDataset,
    Job,
    OutputDataset,
    Run,
    RunEvent,
    RunState,
    set_producer,
)
from openlineage.client.facet_v2 import (
    DatasetFacet,
    RunFacet,
    dataset_version_dataset,
    datasource_dataset,
    job_type_job,
    parent_run,
    processing_engine_run,
    schema_dataset,
)
from openlineage.client.serde import Serde

from delift_pipeline import __version__
from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import Manifest
from delift_pipeline.core.output import json_text, write_output
from delift_pipeline.evaluation.result import read_evaluation
from delift_pipeline.kernel.kernel import block_hashes
from delift_pipeline.lineage.artifacts import Artifact, causes, current_hash, direct_causes
from delift_pipeline.selection.run import SUBSET
from delift_pipeline.training.log import TRAINING_LOG, read_training_log

PRODUCER = f"urn:delift-pipeline:{__version__}"
NAMESPACE = "delift"
RUNS = uuid.UUID("5c1b0f7e-6f43-5f0e-9a53-2f1b2a7d9c11")
SCHEMA_FILES = {
    "dataset": "pool.parquet",
    "heldout": "heldout.parquet",
    "subset": SUBSET,
    "report": "samples.parquet",
    "plan": "records.parquet",
}
STEPS = {
    "dataset": "raw_dataset",
    "plan": "pair_plan",
    "scores": "in_context_logprobs",
    "baseline": "baseline_logprobs",
    "kernel": "utility_kernel",
    "subset": "subset",
    "adapter": "adapter",
    "report": "eval_report",
}
"""The step of a Dagster run that makes each kind of artifact."""

Event = dict[str, Any]
Times = tuple[dt.datetime, dt.datetime]
StepTimes = Callable[[str, str], Times | None]
"""When a step of a Dagster run started and ended, by run id and step; None if it is not known."""


def write_openlineage(
    home: Home, artifacts: Iterable[Artifact], path: Path, step_times: StepTimes
) -> int:
    """Write the events of some artifacts and all their causes, oldest first; return how many."""
    events = list(openlineage_events(home, artifacts, step_times))
    write_output(path, "".join(f"{json_text(event)}\n" for event in events).encode("utf-8"))
    return len(events)


def openlineage_events(
    home: Home, artifacts: Iterable[Artifact], step_times: StepTimes = lambda run, step: None
) -> Iterator[Event]:
    """Yield START and COMPLETE of every run that led to some artifacts, oldest first.

    A run has the start and end of its Dagster step. If Dagster does not know the step, the run ends
    when its manifest was written, and starts earlier by the duration of the training or evaluation.
    The duration of other artifacts is not stored, so both events have the same time.
    """
    set_producer(PRODUCER)
    runs: dict[Path, Artifact] = {}
    for artifact in artifacts:
        for one in (artifact, *(edge.stored for edge in causes(home, artifact))):
            # The base model and the held-out set are read, not made, by a run of their own.
            if one is not None and one.kind in STEPS:
                runs.setdefault(one.folder, one)
    for artifact in sorted(runs.values(), key=lambda one: (one.manifest.created, one.name)):
        run = artifact.manifest.run_id
        known = step_times(run, STEPS[artifact.kind]) if run else None
        started, ended = known or _written_times(artifact)
        yield _event(home, artifact, RunState.START, started)
        yield _event(home, artifact, RunState.COMPLETE, ended)


def _written_times(artifact: Artifact) -> Times:
    """Return when a run started and ended, from the artifact's own files."""
    ended = dt.datetime.fromisoformat(artifact.manifest.created)
    ended = ended if ended.tzinfo else ended.replace(tzinfo=dt.UTC)
    seconds = 0.0
    if artifact.kind == "adapter" and (artifact.folder / TRAINING_LOG).is_file():
        seconds = read_training_log(artifact.folder).seconds
    elif artifact.kind == "report" and (evaluation := read_evaluation(artifact.folder)):
        seconds = evaluation.seconds
    return ended - dt.timedelta(seconds=seconds), ended


def _event(home: Home, artifact: Artifact, state: RunState, time: dt.datetime) -> Event:
    manifest = artifact.manifest
    run_id = str(uuid.uuid5(RUNS, f"{artifact.name}:{manifest.content_hash}"))
    job_type = job_type_job.JobTypeJobFacet("BATCH", "DELIFT", "JOB")
    outputs = [artifact] if state is RunState.COMPLETE else []
    if outputs and artifact.kind == "kernel":  # Children name its blocks as their parents.
        blocks = block_hashes(manifest)
        outputs = [replace(artifact, name=f"kernel:{artifact.version}:{one}") for one in blocks]
    event = RunEvent(
        eventType=state,
        eventTime=time.isoformat(),
        run=Run(run_id, facets=_run_facets(manifest)),
        job=Job(NAMESPACE, artifact.kind, facets={"jobType": job_type}),
        inputs=[
            InputDataset(
                NAMESPACE, one.parent, None, facets=_facets(home, one.stored, one.recorded)
            )
            for one in direct_causes(home, artifact)
        ],
        outputs=[
            OutputDataset(NAMESPACE, one.name, None, facets=_facets(home, one)) for one in outputs
        ],
    )
    document = Serde.to_dict(event)
    # Added to the finished document, because the client drops every null from facets.
    document["run"]["facets"]["delift_code"] = {
        "_producer": PRODUCER,
        "_schemaURL": f"{PRODUCER}:DeliftCodeRunFacet",
        "codeVersion": manifest.code_version,
        "gitCommit": manifest.git_commit,
        "packages": manifest.packages,
        "request": manifest.request,
    }
    return document


def _run_facets(manifest: Manifest) -> dict[str, RunFacet]:
    engine = processing_engine_run.ProcessingEngineRunFacet(manifest.delift_version, "delift")
    facets: dict[str, RunFacet] = {"processing_engine": engine}
    try:
        run = str(uuid.UUID(manifest.run_id or ""))
    except ValueError:  # The specification asks for a UUID.
        return facets
    job = parent_run.Job("dagster", "delift", facets=None)
    return facets | {"parent": parent_run.ParentRunFacet(parent_run.Run(run, facets=None), job)}


def _facets(home: Home, artifact: Artifact | None, recorded: str = "") -> dict[str, DatasetFacet]:
    """Return an artifact's hash and, if it is stored, its path and its table's columns."""
    digest = recorded or (artifact and (current_hash(artifact) or artifact.manifest.content_hash))
    version = dataset_version_dataset.DatasetVersionDatasetFacet(digest or "")
    facets: dict[str, DatasetFacet] = {"version": version}
    if artifact is None:
        return facets
    place = f"file:{artifact.folder.relative_to(home.root).as_posix()}"
    facets["dataSource"] = datasource_dataset.DatasourceDatasetFacet(NAMESPACE, place)
    table = artifact.folder / SCHEMA_FILES.get(artifact.kind, "")
    if table.is_file():
        columns = [
            schema_dataset.SchemaDatasetFacetFields(name, str(kind), fields=None)
            for name, kind in pl.read_parquet_schema(table).items()
        ]
        facets["schema"] = schema_dataset.SchemaDatasetFacet(columns)
    return facets
