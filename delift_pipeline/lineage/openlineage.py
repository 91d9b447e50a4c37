"""Lineage as OpenLineage run events (specification 2-0-2), one JSON document a line.

Every artifact is one run of the job that makes its kind: a START and a COMPLETE event with the
artifacts it read as inputs and itself as output. A run's id is derived from the artifact's name
and hash, so that exporting again gives the same ids; the Dagster run stands in the parent facet.
"""

import datetime as dt
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from delift_pipeline import __version__
from delift_pipeline.evaluation.result import read_evaluation
from delift_pipeline.lineage.artifacts import (
    Artifact,
    Cause,
    causes,
    current_hash,
    direct_causes,
)
from delift_pipeline.storage.home import Home
from delift_pipeline.storage.json_text import json_text
from delift_pipeline.storage.manifest import Manifest
from delift_pipeline.storage.output import write_output
from delift_pipeline.training.log import TRAINING_LOG, read_training_log
from delift_pipeline.utility.kernel import block_hashes

SPEC = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"
FACETS = "https://openlineage.io/spec/facets"
PRODUCER = f"urn:delift-pipeline:{__version__}"
NAMESPACE = "delift"
RUNS = uuid.UUID("5c1b0f7e-6f43-5f0e-9a53-2f1b2a7d9c11")
SCHEMA_FILES = {
    "dataset": "pool.parquet",
    "heldout": "heldout.parquet",
    "subset": "subset.parquet",
    "report": "samples.parquet",
    "plan": "records.parquet",
}
STEPS = {
    "dataset": "raw_dataset",
    "plan": "pair_plan",
    "scores": "in_context_logprobs",
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
    """Write the events of some artifacts and of all their causes, oldest first.

    Returns:
        How many events were written.
    """
    events = list(openlineage_events(home, artifacts, step_times))
    write_output(path, "".join(f"{json_text(event)}\n" for event in events).encode("utf-8"))
    return len(events)


def openlineage_events(
    home: Home, artifacts: Iterable[Artifact], step_times: StepTimes = lambda run, step: None
) -> Iterator[Event]:
    """START and COMPLETE of every run that led to some artifacts, oldest first.

    A run starts and ends as its Dagster step did. Where Dagster does not know the step, it ends as
    its manifest was written, and starts as much earlier as the training or evaluation took; of
    other artifacts nothing holds the duration, and both events have the same time.
    """
    runs = _with_causes(home, artifacts)
    for artifact in sorted(runs, key=lambda one: (one.manifest.created, one.name)):
        started, ended = _times(artifact, step_times)
        yield _event(home, artifact, "START", started)
        yield _event(home, artifact, "COMPLETE", ended)


def _times(artifact: Artifact, step_times: StepTimes) -> Times:
    run = artifact.manifest.run_id
    known = step_times(run, STEPS[artifact.kind]) if run else None
    if known is not None:
        return known
    ended = dt.datetime.fromisoformat(artifact.manifest.created)
    ended = ended if ended.tzinfo else ended.replace(tzinfo=dt.UTC)
    return ended - dt.timedelta(seconds=_measured_seconds(artifact)), ended


def _measured_seconds(artifact: Artifact) -> float:
    """How long training or evaluation took, as the artifact's own files say; else 0."""
    if artifact.kind == "adapter" and (artifact.folder / TRAINING_LOG).is_file():
        return read_training_log(artifact.folder).seconds
    if artifact.kind == "report" and (evaluation := read_evaluation(artifact.folder)):
        return evaluation.seconds
    return 0.0


def _with_causes(home: Home, artifacts: Iterable[Artifact]) -> list[Artifact]:
    """The artifacts and what they were made of, one for each folder that a run wrote."""
    known: dict[Path, Artifact] = {}
    for artifact in artifacts:
        known.setdefault(artifact.folder, artifact)
        for cause in causes(home, artifact):
            stored = cause.stored
            # The base model and the held-out set are read, not made, by a run of their own.
            if stored is not None and stored.kind not in ("model", "heldout"):
                known.setdefault(stored.folder, stored)
    return list(known.values())


def run_id(artifact: Artifact) -> str:
    """The id of the run that made an artifact: a UUID of its name and content."""
    return str(uuid.uuid5(RUNS, f"{artifact.name}:{artifact.manifest.content_hash}"))


def _event(home: Home, artifact: Artifact, kind: str, time: dt.datetime) -> Event:
    done = kind == "COMPLETE"
    return {
        "eventType": kind,
        "eventTime": time.isoformat(),
        "producer": PRODUCER,
        "schemaURL": SPEC,
        "run": {"runId": run_id(artifact), "facets": _run_facets(artifact.manifest)},
        "job": {
            "namespace": NAMESPACE,
            "name": artifact.kind,
            "facets": {
                "jobType": _facet(
                    "2-0-3/JobTypeJobFacet.json#/$defs/JobTypeJobFacet",
                    processingType="BATCH",
                    integration="DELIFT",
                    jobType="JOB",
                )
            },
        },
        "inputs": [_input(home, artifact, edge) for edge in direct_causes(home, artifact)],
        "outputs": _outputs(home, artifact) if done else [],
    }


def _outputs(home: Home, artifact: Artifact) -> list[dict[str, Any]]:
    """What a run wrote: the artifact, a kernel block by block as others name it."""
    if artifact.kind != "kernel":
        return [_dataset(home, artifact)]
    version = artifact.version
    return [
        _dataset(home, Artifact(f"kernel:{version}:{block}", artifact.folder, artifact.manifest))
        for block in block_hashes(artifact.manifest)
    ]


def _run_facets(manifest: Manifest) -> dict[str, Any]:
    facets = {
        "processing_engine": _facet(
            "1-1-1/ProcessingEngineRunFacet.json#/$defs/ProcessingEngineRunFacet",
            version=manifest.delift_version,
            name="delift",
        ),
        "delift_code": _facet(
            "",
            codeVersion=manifest.code_version,
            gitCommit=manifest.git_commit,
            packages=manifest.packages,
            request=manifest.request,
        ),
    }
    parent = _uuid(manifest.run_id)
    if parent:
        facets["parent"] = _facet(
            "1-0-1/ParentRunFacet.json#/$defs/ParentRunFacet",
            run={"runId": parent},
            job={"namespace": "dagster", "name": "delift"},
        )
    return facets


def _uuid(text: str | None) -> str | None:
    """A Dagster run id, if it is the UUID that the specification asks for."""
    try:
        return str(uuid.UUID(text)) if text else None
    except ValueError:
        return None


def _input(home: Home, child: Artifact, edge: Cause) -> dict[str, Any]:
    if edge.stored is None:
        return {"namespace": NAMESPACE, "name": edge.parent, "facets": _version(edge.recorded)}
    shown = _dataset(home, edge.stored)
    return {**shown, "name": edge.parent, "facets": shown["facets"] | _version(edge.recorded)}


def _dataset(home: Home, artifact: Artifact) -> dict[str, Any]:
    path = artifact.folder.relative_to(home.root).as_posix()
    facets = {
        "dataSource": _facet(
            "1-0-1/DatasourceDatasetFacet.json#/$defs/DatasourceDatasetFacet",
            name=NAMESPACE,
            uri=f"file:{path}",
        ),
        **_version(current_hash(artifact) or artifact.manifest.content_hash),
        **_schema(artifact),
    }
    return {"namespace": NAMESPACE, "name": artifact.name, "facets": facets}


def _version(digest: str) -> dict[str, Any]:
    where = "1-0-1/DatasetVersionDatasetFacet.json#/$defs/DatasetVersionDatasetFacet"
    return {"version": _facet(where, datasetVersion=digest)}


def _schema(artifact: Artifact) -> dict[str, Any]:
    """Columns and types of the artifact's table, where it has one."""
    path = artifact.folder / SCHEMA_FILES.get(artifact.kind, "")
    if not path.is_file():
        return {}
    fields = [
        {"name": name, "type": str(kind)} for name, kind in pl.read_parquet_schema(path).items()
    ]
    where = "1-1-1/SchemaDatasetFacet.json#/$defs/SchemaDatasetFacet"
    return {"schema": _facet(where, fields=fields)}


def _facet(where: str, **values: Any) -> dict[str, Any]:
    """A facet with what every facet needs; our own ones name this program as their schema."""
    url = f"{FACETS}/{where}" if where else f"{PRODUCER}:DeliftCodeRunFacet"
    return {"_producer": PRODUCER, "_schemaURL": url, **values}
