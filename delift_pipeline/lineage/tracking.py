"""Runs of arms in MLflow: one live run per (version, arm).

A run is found by its tags. It is reused while its content (the tag `delift.content`: the subset
and what training was asked to do) stays the same, and superseded by a new run when that changes.
Everything logged can be logged again without doubling, so a resumed step changes nothing.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import polars as pl

from delift_pipeline.errors import DeliftError
from delift_pipeline.lineage.tracking_store import (
    experiment_id,
    has_active_run,
    open_client,
    quiet,
    store_lock,
)
from delift_pipeline.lineage.tracking_values import (
    PREFIX,
    dataset_input,
    flat_params,
    param_text,
    split_finite,
    tag_names,
    valid_name,
)
from delift_pipeline.storage.hashing import digest_json
from delift_pipeline.storage.home import Home
from delift_pipeline.storage.manifest import git_commit

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run
    from mlflow.tracking import MlflowClient

URL_VARIABLE = "DELIFT_MLFLOW_URL"
URI_VARIABLE = "DELIFT_TRACKING_URI"
DEFAULT_URL = "http://127.0.0.1:5000"
CONTENT = f"{PREFIX}content"
SUPERSEDED = f"{PREFIX}superseded_by"
KIND = f"{PREFIX}kind"
VERSION_RUN = "dataset version"
_BATCH = 100

P = ParamSpec("P")
R = TypeVar("R")


def _explained(
    method: Callable[Concatenate["Tracker", P], R],
) -> Callable[Concatenate["Tracker", P], R]:
    """Turn MLflow's errors into one sentence that says what to do."""

    @wraps(method)
    def call(self: "Tracker", *args: P.args, **kwargs: P.kwargs) -> R:
        with self.explained():
            return method(self, *args, **kwargs)

    return call


class Tracker:
    """Logs arms to the home's own MLflow store or to a tracking server.

    Args:
        home: Its `mlflow/` holds the store (unless `uri` is given) and the lock.
        uri: A tracking server, as `http://host:port`; None for the home's own store.
        experiment: The MLflow experiment, one a project.
        lazy: Open the store at the first use instead of at once.

    Raises:
        DeliftError: the store or server cannot be used.
    """

    def __init__(
        self, home: Home, uri: str | None = None, experiment: str = "delift", *, lazy: bool = False
    ) -> None:
        self.home, self.uri, self.experiment = home, uri or None, experiment
        if not lazy:
            with self.explained():
                _ = self.experiment_id

    @cached_property
    def client(self) -> "MlflowClient":
        """MLflow's own client, for whatever is not offered here."""
        return open_client(self.home, self.uri)

    @cached_property
    def experiment_id(self) -> str:
        """The experiment's id in the store."""
        client = self.client
        with store_lock(self.home):
            return experiment_id(client, self.home, self.uri, self.experiment)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """A context whose MLflow errors become a `DeliftError`."""
        quiet()
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            where = self.uri or "the home's MLflow store"
            first = str(error).splitlines()[0]
            raise DeliftError(
                f"tracking in {where} failed: {first}; run without it by tracking.enabled: false"
            ) from error

    @_explained
    def start_run(
        self,
        version: str,
        arm: str,
        tags: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        parent: str | None = None,
    ) -> str:
        """The live run of an arm on a version: the present one if its content is equal, else new.

        Args:
            version: The dataset version.
            arm: `stage.selector[-variant]`; stage and selector become tags of their own.
            tags: What leads back (`dagster_run_id`, `manifest`, ...) and `content`, the hash of
                the subset and the training request; without it the hash of `params`. All but
                MLflow's own (`mlflow.`) get the prefix `delift.`.
            params: Everything that was asked for; nested mappings are spread out. A parameter
                that the run has already stays as it is.
            parent: The run that this one is shown under (`version_run`).

        Returns:
            The run's id.
        """
        above = {"mlflow.parentRunId": parent}
        named = self._tags(version, arm, {**(tags or {}), **above}, params or {})
        experiment = self.experiment_id
        with store_lock(self.home):
            live = self._live(version, arm)
            former = [run for run in live if run.data.tags.get(CONTENT) != named[CONTENT]]
            same = [run for run in live if run not in former]
            run = same[0] if same else self._create(experiment, f"{version} {arm}", named)
            for other in [*former, *same[1:]]:
                self.client.set_tag(other.info.run_id, SUPERSEDED, run.info.run_id)
        if same:
            self.client.update_run(run.info.run_id, status="RUNNING")
        self._log_new(run, named, flat_params(params or {}))
        return run.info.run_id

    @_explained
    def version_run(self, version: str, tags: Mapping[str, Any] | None = None) -> str:
        """The run that all arms of a dataset version are shown under, made where there is none.

        Args:
            version: The dataset version.
            tags: What it is made of; all but MLflow's own get the prefix `delift.`.

        Returns:
            The run's id.
        """
        wanted = f"tags.`{PREFIX}version` = '{version}' AND tags.`{KIND}` = '{VERSION_RUN}'"
        named = tag_names({**(tags or {}), "version": version}) | {KIND: VERSION_RUN}
        experiment = self.experiment_id
        with store_lock(self.home):
            found = self.client.search_runs([experiment], wanted, max_results=1)
            run = found[0] if found else self._create(experiment, version, named)
            if not found:
                self.client.set_terminated(run.info.run_id)
        self._log_new(run, named, {})
        return run.info.run_id

    def exists(self, run_id: str) -> bool:
        """Whether the store still has the run, and it is not deleted."""
        return self._served(run_id) if self.uri else has_active_run(self.home, run_id)

    @_explained
    def _served(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(run_id).info.lifecycle_stage == "active"
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def log_metrics(self, run_id: str, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics at one step; a value that is not finite becomes a tag.

        Raises:
            DeliftError: the run is gone.
        """
        finite, tags = split_finite(values)
        self._log_points(run_id, {name: [(step, value)] for name, value in finite.items()}, tags)

    def log_series(
        self,
        run_id: str,
        name: str,
        values: Sequence[float] | Iterable[tuple[int, float]],
    ) -> None:
        """Log a curve: one value a step from 0, or (step, value) pairs.

        Raises:
            DeliftError: the run is gone.
        """
        points = [
            value if isinstance(value, tuple) else (at, value) for at, value in enumerate(values)
        ]
        tags: dict[str, str] = {}
        finite: list[tuple[int, float]] = []
        for step, value in points:
            good, odd = split_finite({name: value})
            finite += [(step, number) for number in good.values()]
            tags |= {tag: f"{text} at step {step}" for tag, text in odd.items() if tag not in tags}
        self._log_points(run_id, {valid_name(name): finite}, tags)

    @_explained
    def set_tags(self, run_id: str, tags: Mapping[str, Any]) -> None:
        """Set tags; all but MLflow's own get the prefix `delift.`."""
        from mlflow.entities import RunTag

        named = [RunTag(name, value) for name, value in tag_names(tags).items()]
        for at in range(0, len(named), _BATCH):
            self.client.log_batch(run_id, tags=named[at : at + _BATCH])

    @_explained
    def log_artifacts(self, run_id: str, folder: Path, path: str | None = None) -> None:
        """Copy a folder's files (or one file) to the run's artifacts, under `path`."""
        if Path(folder).is_dir():
            self.client.log_artifacts(run_id, str(folder), path)
        else:
            self.client.log_artifact(run_id, str(folder), path)

    @_explained
    def log_dataset(
        self,
        run_id: str,
        frame: pl.DataFrame,
        name: str,
        digest: str,
        context: str,
        source: str | None = None,
    ) -> None:
        """Log a frame as a data set input; only its schema, size and digest are stored.

        Args:
            run_id: The run that read it.
            frame: n rows.
            name: As shown, such as `alpaca-v1/pool`.
            digest: Our content hash.
            context: `pool`, `training` or `evaluation`.
            source: Where the rows lie, relative to the home; else the name.
        """
        given = dataset_input(frame, name, digest, context, source or name)
        self.client.log_inputs(run_id, [given])

    def link(self, run_id: str) -> str:
        """The run's page, on `$DELIFT_MLFLOW_URL`, else the tracking server, else loopback."""
        return f"{self.site}/#/experiments/{self.experiment_id}/runs/{run_id}"

    @property
    def site(self) -> str:
        """Where MLflow's pages are."""
        server = self.uri if self.uri and self.uri.startswith("http") else DEFAULT_URL
        return (os.environ.get(URL_VARIABLE) or server).rstrip("/")

    @_explained
    def end_run(self, run_id: str, ok: bool = True) -> None:
        """Close the run as finished or failed."""
        self.client.set_terminated(run_id, "FINISHED" if ok else "FAILED")

    def _tags(
        self, version: str, arm: str, tags: Mapping[str, Any], params: Mapping[str, Any]
    ) -> dict[str, str]:
        stage, _, selector = arm.partition(".")
        own = {"version": version, "arm": arm, "stage": stage, "selector": selector.split("-")[0]}
        commit = git_commit()
        kept = {"git_commit": commit, "mlflow.source.git.commit": commit}
        named = tag_names({**kept, **tags, **own})
        named.setdefault(CONTENT, digest_json({key: param_text(params[key]) for key in params}))
        return named

    def _live(self, version: str, arm: str) -> "list[Run]":
        """The runs of an arm that nothing superseded, newest first."""
        wanted = f"tags.`{PREFIX}version` = '{version}' AND tags.`{PREFIX}arm` = '{arm}'"
        order = ["attributes.start_time DESC"]
        found = self.client.search_runs([self.experiment_id], wanted, order_by=order)
        return [run for run in found if SUPERSEDED not in run.data.tags]

    def _create(self, experiment: str, name: str, tags: Mapping[str, str]) -> "Run":
        return self.client.create_run(experiment, tags=dict(tags), run_name=name)

    def _log_new(self, run: "Run", tags: Mapping[str, str], params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        known = run.data.params
        new = [Param(name, value) for name, value in params.items() if name not in known]
        for at in range(0, len(new), _BATCH):
            self.client.log_batch(run.info.run_id, params=new[at : at + _BATCH])
        changed = {name: text for name, text in tags.items() if run.data.tags.get(name) != text}
        self.set_tags(run.info.run_id, changed)

    @_explained
    def _log_points(
        self, run_id: str, series: Mapping[str, list[tuple[int, float]]], tags: Mapping[str, str]
    ) -> None:
        now = int(time.time() * 1000)
        metrics = [
            metric
            for name, points in series.items()
            for metric in self._new(run_id, name, points, now)
        ]
        for at in range(0, len(metrics), _BATCH * 10):
            self.client.log_batch(run_id, metrics=metrics[at : at + _BATCH * 10])
        if tags:
            self.set_tags(run_id, tags)

    def _new(
        self, run_id: str, name: str, points: list[tuple[int, float]], now: int
    ) -> "list[Metric]":
        """The points that the run does not hold yet."""
        from mlflow.entities import Metric

        stored = {
            metric.step: metric.value for metric in self.client.get_metric_history(run_id, name)
        }
        return [
            Metric(name, value, now, step) for step, value in points if stored.get(step) != value
        ]
