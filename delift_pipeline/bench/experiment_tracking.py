"""An experiment's table in MLflow: a parent run, and under it one run a contender and place.

The runs hold the very numbers of the table. A table that was logged whole is found again by its
content; one whose logging was cut short is completed.
"""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delift_pipeline.bench.quality_table import Row
from delift_pipeline.lineage.tracking import Tracker
from delift_pipeline.storage.hashing import digest_json
from delift_pipeline.storage.home import Home

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

MLFLOW_EXPERIMENT = "delift-bench"
CONTENT, PLACE = "delift.content", "delift.place"
PARENT, RUN_NAME = "mlflow.parentRunId", "mlflow.runName"
PARAMETERS = ("stage", "selector", "mode", "budget", "wrong_share", "n")
FINISHED = "FINISHED"
MOST_RUNS = 10_000


def track_table(
    folder: Path, table: Mapping[str, Any], files: list[Path], uri: str | None = None
) -> str:
    """Log a table, its page and its JSON; returns the parent run's id.

    Args:
        folder: The experiment's; the MLflow store lies in its home, unless `uri` is given.
        table: As `quality.run_quality` returns it.
        files: Kept as the parent's artifacts.
        uri: A tracking server.

    Raises:
        DeliftError: the store or server cannot be used.
    """
    tracker = Tracker(Home.at(folder / "home"), uri, MLFLOW_EXPERIMENT)
    with tracker.explained():
        client, where = tracker.client, tracker.experiment_id
        content = digest_json([table["experiment"], table["rows"]])
        parent = _parent(client, where, table, content)
        if client.get_run(parent).info.status == FINISHED:
            return parent
        done = _children(client, where, parent)
        for name, metrics, parameters in _runs_of(table["rows"]):
            if name not in done:
                _log(
                    client,
                    where,
                    {RUN_NAME: name, PARENT: parent, PLACE: name},
                    metrics,
                    parameters,
                )
        for file in files:
            client.log_artifact(parent, str(file))
        client.set_terminated(parent, FINISHED)
    return parent


def _parent(client: "MlflowClient", where: str, table: Mapping[str, Any], content: str) -> str:
    found = client.search_runs([where], f"tags.`{CONTENT}` = '{content}'", max_results=1)
    if found:
        return found[0].info.run_id
    tags = {RUN_NAME: table["experiment"], CONTENT: content, "delift.commit": str(table["commit"])}
    run = client.create_run(where, tags=tags)
    client.log_param(run.info.run_id, "experiment", table["experiment"])
    client.log_param(run.info.run_id, "seeds", str(table["seeds"]))
    return run.info.run_id


def _children(client: "MlflowClient", where: str, parent: str) -> set[str]:
    """Places that were logged whole; what a kill left half is removed."""
    found = client.search_runs([where], f"tags.`{PARENT}` = '{parent}'", max_results=MOST_RUNS)
    for run in found:
        if run.info.status != FINISHED:
            client.delete_run(run.info.run_id)
    return {run.data.tags[PLACE] for run in found if run.info.status == FINISHED}


def _runs_of(rows: list[Row]) -> Iterator[tuple[str, dict[str, float], dict[str, Any]]]:
    """Name, metrics and parameters of each child run."""
    places: dict[str, list[Row]] = {}
    for row in rows:
        share, wrong = f"{row['budget']:g}", f"{row['wrong_share']:g} wrong"
        name = " ".join([row["selector"], row["stage"], row["mode"], share, wrong])
        places.setdefault(name, []).append(row)
    for name, group in places.items():
        metrics: dict[str, float] = {}
        for row in group:
            values = {"": "mean", "_se": "se", "_minus_random": "diff_random"}
            values["_minus_random_se"] = "diff_se"
            metrics |= {row["metric"] + end: row[column] for end, column in values.items()}
        parameters = {key: group[0][key] for key in PARAMETERS}
        yield name, {k: v for k, v in metrics.items() if v is not None}, parameters


def _log(
    client: "MlflowClient",
    where: str,
    tags: dict[str, str],
    metrics: Mapping[str, float],
    parameters: Mapping[str, Any],
) -> None:
    from mlflow.entities import Metric, Param

    run = client.create_run(where, tags=tags).info.run_id
    now = int(time.time() * 1000)
    client.log_batch(
        run,
        [Metric(name, value, now, 0) for name, value in metrics.items()],
        [Param(name, str(value)) for name, value in parameters.items()],
    )
    client.set_terminated(run, FINISHED)
