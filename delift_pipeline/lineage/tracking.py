"""Runs of arms in MLflow: one live run per (version, arm).

A run is identified by its tags. It is reused while its content stays the same (the tag
`delift.content`: a hash of the subset and the training options), and a new run replaces it when the
content changes. Logging the same thing twice has no effect, so a resumed step changes nothing.
"""

import json
import math
import os
import re
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import polars.selectors as cs

from delift_pipeline.core.errors import DeliftError
from delift_pipeline.core.hashing import digest_json, digest_text
from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import git_commit
from delift_pipeline.lineage.tracking_store import (
    ARTIFACTS,
    has_active_run,
    open_client,
    silence_mlflow,
    store_lock,
)

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

URL_VARIABLE = "DELIFT_MLFLOW_URL"
DEFAULT_URL = "http://127.0.0.1:5000"
PREFIX = "delift."
CONTENT = f"{PREFIX}content"
SUPERSEDED = f"{PREFIX}superseded_by"
VERSION_RUN = "dataset version"
# Opens the experiment on its runs instead of on traces of language-model calls.
MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}
LONGEST_PARAM = 500
_LONGEST_NAME = 250
_NO_NAME = re.compile(r"[^\w\-. :/]", re.ASCII)


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
        silence_mlflow()
        self.home, self.uri, self.experiment = home, uri or None, experiment
        if not lazy:
            with self.translate_errors():
                _ = self.experiment_id

    @cached_property
    def client(self) -> "MlflowClient":
        """MLflow's own client."""
        return open_client(self.home, self.uri)

    @cached_property
    def experiment_id(self) -> str:
        """The id of the experiment, which is created or restored if it is missing."""
        from mlflow.exceptions import MlflowException

        client, name = self.client, self.experiment
        folder = None if self.uri else str(self.home.mlflow / ARTIFACTS / name)
        with store_lock(self.home):
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                try:
                    return client.create_experiment(name, folder, MODEL_TRAINING)
                except MlflowException:
                    # Another client of the server may have created it in between.
                    experiment = client.get_experiment_by_name(name)
                    if experiment is None:
                        raise
            if experiment.lifecycle_stage == "deleted":
                client.restore_experiment(experiment.experiment_id)
        return experiment.experiment_id

    @contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Turn MLflow errors in the body into one sentence that says what to do."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            where = self.uri or "the home's MLflow store"
            first = str(error).splitlines()[0]
            raise DeliftError(
                f"tracking in {where} failed: {first}. To run without tracking, set "
                "tracking.enabled: false."
            ) from error

    def start_run(
        self,
        version: str,
        arm: str,
        tags: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        parent: str | None = None,
    ) -> str:
        """Start the run of an arm: the live run if its content is equal, else a new one.

        The stage and the selector of `arm` become tags. `tags` lead to the home; their `content` is
        the hash of the subset and the training options (by default, of `params`). Nested mappings
        of `params` are flattened, and a parameter that the run already has stays as it is. MLflow
        shows the run under the run `parent` (`run_of_version`).
        """
        from mlflow.entities import Param

        flat, commit = flat_params(params or {}), git_commit()
        facts = {"content": digest_json(flat), "git_commit": commit, **(tags or {})}
        facts |= {"mlflow.source.git.commit": commit, "mlflow.parentRunId": parent}
        facts |= {"version": version, "arm": arm}
        facts["stage"], facts["selector"] = split_arm(arm)
        named = tag_names(facts)
        with self.translate_errors(), store_lock(self.home):
            runs = self._runs(version=version, arm=arm)
            live = [run for run in runs if SUPERSEDED not in run.data.tags]
            run = next((r for r in live if r.data.tags.get(CONTENT) == named[CONTENT]), None)
            if run is None:
                run = self.client.create_run(
                    self.experiment_id, tags=named, run_name=f"{version} {arm}"
                )
            else:
                self.client.update_run(run.info.run_id, status="RUNNING")
                self.set_tags(run.info.run_id, named)
            for other in live:
                if other is not run:
                    self.client.set_tag(other.info.run_id, SUPERSEDED, run.info.run_id)
            new = [Param(*one) for one in flat.items() if one[0] not in run.data.params]
            self.client.log_batch(run.info.run_id, params=new)
        return run.info.run_id

    def run_of_version(self, version: str, tags: Mapping[str, Any]) -> str:
        """Return the run under which all arms of a version are shown; create it if necessary."""
        named = tag_names({**tags, "version": version, "kind": VERSION_RUN})
        with self.translate_errors(), store_lock(self.home):
            for run in self._runs(version=version, kind=VERSION_RUN):
                self.set_tags(run.info.run_id, named)
                return run.info.run_id
            run = self.client.create_run(self.experiment_id, tags=named, run_name=version)
            self.client.set_terminated(run.info.run_id)
        return run.info.run_id

    def _runs(self, **tags: str) -> "list[Run]":
        """Return the runs with these tags, newest first."""
        query = " AND ".join(f"tags.`{PREFIX}{name}` = '{text}'" for name, text in tags.items())
        order = ["attributes.start_time DESC"]
        return self.client.search_runs([self.experiment_id], query, order_by=order)

    def exists(self, run_id: str) -> bool:
        """Whether the store has the run, and it is not deleted."""
        if not self.uri:
            return has_active_run(self.home, run_id)
        from mlflow.exceptions import MlflowException

        with self.translate_errors():
            try:
                return self.client.get_run(run_id).info.lifecycle_stage == "active"
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return False

    def log_metrics(self, run_id: str, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics at one step. A value that is not finite becomes a tag."""
        self.log_points(run_id, [(name, step, value) for name, value in values.items()], "{}")

    def log_points(
        self, run_id: str, points: Iterable[tuple[str, int, float]], odd: str = "{} at step {}"
    ) -> None:
        """Log points of curves: metric, step and value. Points that the run has are left out.

        A NaN or an infinity would break MLflow's charts and comparisons for the whole metric, so
        the first of each metric becomes a tag, with a text that `odd` formats.

        Raises:
            DeliftError: the run is gone.
        """
        from mlflow.entities import Metric

        now, metrics, tags = int(time.time() * 1000), [], {}
        points = [(valid_name(name), step, float(value)) for name, step, value in points]
        with self.translate_errors():
            stored = {
                (metric.key, metric.step): metric.value
                for name in {name for name, _, _ in points}
                for metric in self.client.get_metric_history(run_id, name)
            }
            for name, step, value in points:
                if not math.isfinite(value):
                    tags.setdefault(f"not_finite.{name}", odd.format(value, step))
                elif stored.get((name, step)) != value:
                    metrics.append(Metric(name, value, now, step))
            self.client.log_batch(run_id, metrics=metrics)
            self.set_tags(run_id, tags)

    def set_tags(self, run_id: str, tags: Mapping[str, Any]) -> None:
        """Set tags; all but MLflow's own get the prefix `delift.`."""
        from mlflow.entities import RunTag

        named = tag_names(tags)
        with self.translate_errors():
            self.client.log_batch(run_id, tags=[RunTag(name, named[name]) for name in named])

    def log_artifacts(self, run_id: str, source: Path, path: str) -> None:
        """Copy a folder's files (or one file) to the run's artifacts, under `path`."""
        with self.translate_errors():
            if source.is_dir():
                self.client.log_artifacts(run_id, str(source), path)
            else:
                self.client.log_artifact(run_id, str(source), path)

    def log_dataset(
        self, run_id: str, frame: pl.DataFrame, name: str, digest: str, context: str, source: str
    ) -> None:
        """Log a frame as a dataset input: its schema, size, digest and source.

        `name` is the name that MLflow shows (`alpaca-v1/pool`), `context` is `pool`, `training` or
        `evaluation`, and `source` is the path of the rows relative to the home.
        """
        from mlflow.data.polars_dataset import from_polars
        from mlflow.entities import Dataset, DatasetInput, InputTag

        signed = frame.with_columns(cs.unsigned_integer().cast(pl.Int64))
        with warnings.catch_warnings():
            # MLflow registers its local source twice and warns of the choice between them.
            warnings.simplefilter("ignore", UserWarning)
            config = from_polars(signed, source=source, name=name, digest=digest).to_dict()
        tag = InputTag("mlflow.data.context", context)
        with self.translate_errors():
            self.client.log_inputs(run_id, [DatasetInput(Dataset(**config), [tag])])

    def end_run(self, run_id: str, ok: bool = True) -> None:
        """Close the run as finished or failed."""
        with self.translate_errors():
            self.client.set_terminated(run_id, "FINISHED" if ok else "FAILED")

    def link(self, run_id: str) -> str:
        """Return the address of the run's page (see `site`)."""
        return f"{self.site}/#/experiments/{self.experiment_id}/runs/{run_id}"

    @property
    def site(self) -> str:
        """MLflow's address: `$DELIFT_MLFLOW_URL`, else the tracking server, else loopback."""
        return (os.environ.get(URL_VARIABLE) or self.uri or DEFAULT_URL).rstrip("/")


def split_arm(arm: str) -> tuple[str, str]:
    """Return stage and selector of `stage.selector[-variant]`."""
    stage, _, selector = arm.partition(".")
    return stage, selector.split("-")[0]


def valid_name(name: str) -> str:
    """Replace the characters of a metric or parameter name that MLflow refuses."""
    return _NO_NAME.sub("_", name)[:_LONGEST_NAME]


def tag_names(tags: Mapping[str, Any]) -> dict[str, str]:
    """Convert tags to text. All but MLflow's own get our prefix; those without a value go."""
    return {
        name if name.startswith((PREFIX, "mlflow.")) else PREFIX + name: str(value)
        for name, value in tags.items()
        if value is not None
    }


def param_text(value: Any) -> str:
    """Convert a parameter to text, which is cut if it has more than `LONGEST_PARAM` characters.

    A cut text ends in the digest of the whole, so texts that differ after the cut stay different.
    """
    plain = isinstance(value, str | int | float | bool | None)
    text = str(value) if plain else json.dumps(value, sort_keys=True, default=str)
    if len(text) <= LONGEST_PARAM:
        return text
    ending = f"... {digest_text(text)}"
    return text[: LONGEST_PARAM - len(ending)] + ending


def flat_params(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested parameters to dotted names, with each value as `param_text`."""
    flat: dict[str, str] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat |= flat_params(value, f"{prefix}{name}.")
        else:
            flat[valid_name(f"{prefix}{name}")] = param_text(value)
    return flat
