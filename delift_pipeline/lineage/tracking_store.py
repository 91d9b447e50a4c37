"""Opening an MLflow store: the home's own, or a tracking server.

MLflow migrates a fresh SQLite file without a lock and corrupts it when two processes do so at
once, so the home's store is opened under a file lock. MLflow also writes absolute artifact paths
into its database; they are rewritten when the home has been moved.
"""

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from delift_pipeline.storage.atomic import replacing
from delift_pipeline.storage.home import Home

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

DATABASE = "mlflow.db"
# Opens the experiment on its runs instead of on traces of language-model calls.
MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}
ARTIFACTS = "artifacts"
LOCK = "store.lock"

_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # MLflow's own seven retries wait for minutes on a server that is not there.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
}
_MOVED_PATHS = (
    "UPDATE experiments SET artifact_location = :new || substr(artifact_location, :skip) "
    "WHERE substr(artifact_location, 1, :size) = :old",
    "UPDATE runs SET artifact_uri = :new || substr(artifact_uri, :skip) "
    "WHERE substr(artifact_uri, 1, :size) = :old",
    "UPDATE logged_models SET artifact_location = :new || substr(artifact_location, :skip) "
    "WHERE substr(artifact_location, 1, :size) = :old",
    "UPDATE model_versions SET source = :new || substr(source, :skip) "
    "WHERE substr(source, 1, :size) = :old",
    "UPDATE model_versions SET storage_location = :new || substr(storage_location, :skip) "
    "WHERE substr(storage_location, 1, :size) = :old",
)


def local_uri(home: Home) -> str:
    """The tracking URI of the home's own store."""
    return f"sqlite:///{home.mlflow / DATABASE}"


def store_lock(home: Home) -> FileLock:
    """Held while the store is opened and while a run is looked up or made."""
    home.mlflow.mkdir(parents=True, exist_ok=True)
    return FileLock(home.mlflow / LOCK)


def quiet() -> None:
    """No telemetry, no banners, no progress bars; a user's own settings stay.

    Must run before MLflow is imported, which reads these once. Child processes inherit them.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def open_client(home: Home, uri: str | None) -> "MlflowClient":
    """A client of the server at `uri`, else of the home's own store, made where there is none."""
    quiet()
    from mlflow.tracking import MlflowClient

    if uri is not None:
        return MlflowClient(uri, registry_uri=uri)
    own = local_uri(home)
    with store_lock(home):
        _initialise(home)
        client = MlflowClient(own, registry_uri=own)
        client.search_experiments(max_results=1)  # Opens the database while the lock is held.
    return client


def has_active_run(home: Home, run_id: str) -> bool:
    """Whether the home's own store has a run that is not deleted, found without importing MLflow.

    Finding that nothing is left to log must not take longer than logging it.
    """
    path = home.mlflow / DATABASE
    if not path.is_file():
        return False
    with closing(sqlite3.connect(path, timeout=60)) as database:
        query = "SELECT lifecycle_stage FROM runs WHERE run_uuid = ?"
        found = database.execute(query, (run_id,)).fetchone()
    return found is not None and found[0] == "active"


def _initialise(home: Home) -> None:
    database = home.mlflow / DATABASE
    if database.exists():
        _follow_move(home)
        return
    # Under another name until every migration is done: a kill in between leaves no half store.
    with replacing(database) as temporary:
        _migrate(temporary, home.mlflow / ARTIFACTS)


def _migrate(database: Path, artifacts: Path) -> None:
    """Make an MLflow database whose default experiment keeps its artifacts in the home.

    A client would put them into the working directory.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(f"sqlite:///{database}", str(artifacts)).engine.dispose()


def _follow_move(home: Home) -> None:
    """Point stored artifact paths at where the home is now."""
    new = str(home.mlflow / ARTIFACTS)
    with closing(sqlite3.connect(home.mlflow / DATABASE, timeout=60)) as database, database:
        query = "SELECT artifact_location FROM experiments WHERE experiment_id = 0"
        found = database.execute(query).fetchone()
        old = str(found[0]).removesuffix("/0") if found else new
        if old == new:
            return
        values = {"old": old, "new": new, "size": len(old), "skip": len(old) + 1}
        for statement in _MOVED_PATHS:
            database.execute(statement, values)


def experiment_id(client: "MlflowClient", home: Home, uri: str | None, name: str) -> str:
    """The id of the experiment `name`, made or restored where it is missing."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        folder = None if uri else str(home.mlflow / ARTIFACTS / name)
        try:
            return client.create_experiment(name, artifact_location=folder, tags=MODEL_TRAINING)
        except MlflowException:
            # Another process made it in between.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id
