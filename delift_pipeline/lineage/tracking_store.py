"""Opening an MLflow store: the home's own, or a tracking server.

MLflow 3.17 has no public interface for three things that the home's own store needs. All code that
uses MLflow's internals is here:

- MLflow migrates a new SQLite file without a lock, and two processes at once corrupt it. So the
  store is created under a lock and a temporary name. The internal class does this, because the
  client would put the artifacts of the default experiment into the working directory.
- MLflow writes absolute artifact paths. They are rewritten in its tables when a home was moved.
- Importing MLflow takes seconds. Whether a run exists is read from the table without the import.
"""

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from delift_pipeline.core.atomic import replace_file
from delift_pipeline.core.home import Home

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

DATABASE = "mlflow.db"
ARTIFACTS = "artifacts"

_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # MLflow's own seven retries wait for minutes on a server that is not there.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
}
_PATH_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def local_uri(home: Home) -> str:
    """The tracking URI of the home's own store."""
    return f"sqlite:///{home.mlflow / DATABASE}"


def store_lock(home: Home) -> FileLock:
    """Return the lock for opening the store and for finding or creating a run; it is reentrant."""
    home.mlflow.mkdir(parents=True, exist_ok=True)
    return FileLock(home.mlflow / "store.lock", is_singleton=True)


def silence_mlflow() -> None:
    """Switch off MLflow's telemetry, banners and progress bars, unless the user has set them.

    This must run before MLflow is imported, because MLflow reads these variables once. Child
    processes inherit them.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def open_client(home: Home, uri: str | None) -> "MlflowClient":
    """Return a client of the server at `uri`, else of the home's store, created if necessary."""
    silence_mlflow()
    from mlflow.tracking import MlflowClient

    if uri is not None:
        return MlflowClient(uri, registry_uri=uri)
    database = home.mlflow / DATABASE
    with store_lock(home):
        if database.exists():
            _follow_move(home)
        else:
            # The rename at the end prevents that a kill leaves half a store.
            with replace_file(database) as temporary:
                _migrate(temporary, home.mlflow / ARTIFACTS)
        client = MlflowClient(local_uri(home), registry_uri=local_uri(home))
        client.search_experiments(max_results=1)  # Opens the database while the lock is held.
    return client


def has_active_run(home: Home, run_id: str) -> bool:
    """Whether the home's own store has a run that is not deleted."""
    path = home.mlflow / DATABASE
    if not path.is_file():
        return False
    with closing(sqlite3.connect(path, timeout=60)) as database:
        query = "SELECT 1 FROM runs WHERE run_uuid = ? AND lifecycle_stage = 'active'"
        return database.execute(query, (run_id,)).fetchone() is not None


def _migrate(database: Path, artifacts: Path) -> None:
    """Create an MLflow database whose default experiment has its artifacts in the home."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(f"sqlite:///{database}", str(artifacts)).engine.dispose()


def _follow_move(home: Home) -> None:
    """Rewrite stored artifact paths if the home was moved."""
    new = str(home.mlflow / ARTIFACTS)
    with closing(sqlite3.connect(home.mlflow / DATABASE, timeout=60)) as database, database:
        query = "SELECT artifact_location FROM experiments WHERE experiment_id = 0"
        row = database.execute(query).fetchone()
        old = str(row[0]).removesuffix("/0") if row else new
        if old == new:
            return
        for table, column in _PATH_COLUMNS:
            database.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608 (constants)
                f"WHERE substr({column}, 1, ?) = ?",
                (new, len(old) + 1, len(old), old),
            )
