"""Lineage as OpenLineage run events (specification 2-0-2), one JSON document a line.

Every artifact is one run of the job that makes its kind: a START and a COMPLETE event with the
artifacts it read as inputs and itself as output. A run's id is derived from the artifact's name
and hash, so that exporting again gives the same ids; the Dagster run stands in the parent facet.
"""

import datetime as dt
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from delift_pipeline import __version__
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
Event = dict[str, Any]


def write_openlineage(home: Home, artifacts: Iterable[Artifact], path: Path) -> int:
    """Write the events of some artifacts and of all their causes, oldest first.

    Returns:
        How many events were written.
    """
    events = list(openlineage_events(home, artifacts))
    write_output(path, "".join(f"{json_text(event)}\n" for event in events).encode("utf-8"))
    return len(events)


def openlineage_events(home: Home, artifacts: Iterable[Artifact]) -> Iterator[Event]:
    """START and COMPLETE of every run that led to some artifacts, oldest first."""
    runs = _with_causes(home, artifacts)
    for artifact in sorted(runs, key=lambda one: (one.manifest.created, one.name)):
        for kind in ("START", "COMPLETE"):
            yield _event(home, artifact, kind)


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


def _event(home: Home, artifact: Artifact, kind: str) -> Event:
    done = kind == "COMPLETE"
    return {
        "eventType": kind,
        "eventTime": _time(artifact.manifest.created),
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


def _time(created: str) -> str:
    """RFC 3339, as the specification wants it."""
    moment = dt.datetime.fromisoformat(created)
    return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).isoformat()


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
