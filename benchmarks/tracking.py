"""Log an experiment's table to MLflow: a parent run, and one child run per contender and setting.

The runs have exactly the numbers of the table. A completely logged table is recognised by its
content and not logged again. If logging was interrupted, it is repeated under the same parent.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delift_pipeline.bench.table import Row
from delift_pipeline.core.hashing import digest_json
from delift_pipeline.core.home import Home
from delift_pipeline.lineage.tracking import Tracker

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

MLFLOW_EXPERIMENT = "delift-bench"
CONTENT, PARENT = "delift.content", "mlflow.parentRunId"
PARAMETERS = ("stage", "selector", "mode", "budget", "wrong_share", "n")
COLUMNS = {"": "mean", "_se": "se", "_minus_random": "diff_random", "_minus_random_se": "diff_se"}
"""The ending of a metric's name in MLflow -> the column of the table."""
FINISHED = "FINISHED"
MOST_RUNS = 10_000


def track_table(folder: Path, table: Mapping[str, Any], files: list[Path]) -> str:
    """Log a table, its page and its JSON, and return the parent run's id.

    Args:
        folder: The experiment's folder; its home has the MLflow store.
        table: A table from `quality.run_quality`.
        files: Files that become the parent's artifacts.

    Raises:
        DeliftError: the store cannot be used.
    """
    tracker = Tracker(Home.at(folder / "home"), None, MLFLOW_EXPERIMENT)
    content = digest_json([table["experiment"], table["rows"]])
    with tracker.translate_errors():
        client, experiment_id = tracker.client, tracker.experiment_id
        runs = client.search_runs([experiment_id], f"tags.`{CONTENT}` = '{content}'", max_results=1)
        if runs and runs[0].info.status == FINISHED:
            return runs[0].info.run_id
        if runs:
            parent = runs[0].info.run_id
            for child in client.search_runs(
                [experiment_id], f"tags.`{PARENT}` = '{parent}'", 1, MOST_RUNS
            ):
                client.delete_run(child.info.run_id)
        else:
            tags = {CONTENT: content, "delift.commit": str(table["commit"])}
            parent = client.create_run(
                experiment_id, tags=tags, run_name=table["experiment"]
            ).info.run_id
            client.log_param(parent, "experiment", table["experiment"])
            client.log_param(parent, "seeds", str(table["seeds"]))
        places: dict[str, list[Row]] = {}
        for row in table["rows"]:
            share, wrong = f"{row['budget']:g}", f"{row['wrong_share']:g} wrong"
            name = " ".join([row["selector"], row["stage"], row["mode"], share, wrong])
            places.setdefault(name, []).append(row)
        for name, rows in places.items():
            _log(client, experiment_id, parent, name, rows)
        for file in files:
            client.log_artifact(parent, str(file))
        client.set_terminated(parent, FINISHED)
    return parent


def _log(
    client: "MlflowClient", experiment_id: str, parent: str, name: str, rows: list[Row]
) -> None:
    from mlflow.entities import Metric, Param

    tags, now = {PARENT: parent, "delift.place": name}, int(time.time() * 1000)
    run = client.create_run(experiment_id, tags=tags, run_name=name).info.run_id
    metrics = [
        Metric(row["metric"] + ending, row[column], now, 0)
        for row in rows
        for ending, column in COLUMNS.items()
        if row[column] is not None
    ]
    client.log_batch(run, metrics, [Param(key, str(rows[0][key])) for key in PARAMETERS])
    client.set_terminated(run, FINISHED)
