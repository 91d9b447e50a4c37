"""Adapters in MLflow: logged models of the runs that trained them, and their registry.

A registered model stands for what one would deploy: the adapters of one project's data set, stage
and base model. Each adapter is one of its versions; two aliases name the `champion` and the
`challenger`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from delift_pipeline.lineage.card import CARD, card_text
from delift_pipeline.lineage.tracking import Tracker
from delift_pipeline.lineage.tracking_store import store_lock
from delift_pipeline.lineage.tracking_values import PREFIX, flat_params, model_name, tag_names
from delift_pipeline.storage.hashing import digest_files

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

Alias = Literal["champion", "challenger"]

DIGEST = f"{PREFIX}digest"
ADAPTER = f"{PREFIX}adapter"
MODEL_TYPE = "adapter"
_SEPARATORS = re.compile(r"[/:\\]+")
# Notes about an adapter, not the adapter: they may change while it stays the same.
_NOT_THE_MODEL = {CARD, "tracking.json", "loss.png"}


def registered_name(project: str, dataset: str, stage: str, model: str) -> str:
    """The registered model of a project's data set, stage and base model.

    The project (the MLflow experiment) is part of it, since a server has one registry for all.
    MLflow refuses `/` and `:`.
    """
    return _SEPARATORS.sub("_", f"{project}-{dataset}-{stage}-on-{model}")


def log_adapter(
    tracker: Tracker,
    run_id: str,
    folder: Path,
    name: str,
    params: Mapping[str, Any] | None = None,
) -> str:
    """Log an adapter's (or full model's) files as a logged model made by the run.

    The same files under the same name are logged once.

    Args:
        tracker: Where it is logged.
        run_id: The run that trained it.
        folder: Its files, copied as they are.
        name: The model's name; characters that MLflow refuses become `_`.
        params: The model's parameters; else the run's own.

    Returns:
        The logged model's id.

    Raises:
        DeliftError: the store cannot be used.
    """
    from mlflow.entities import LoggedModelOutput

    files = [path for path in folder.rglob("*") if path.is_file()]
    digest = digest_files(folder, [path for path in files if path.name not in _NOT_THE_MODEL])
    with tracker.explained():
        stored = _logged(tracker, run_id, model_name(name), digest)
        if stored is not None:
            return stored.model_id
        run = tracker.client.get_run(run_id)
        own = {key: tag for key, tag in run.data.tags.items() if key.startswith(PREFIX)}
        model = tracker.client.create_logged_model(
            run.info.experiment_id,
            name=model_name(name),
            source_run_id=run_id,
            tags=own | {DIGEST: digest},
            params=flat_params(params) if params is not None else dict(run.data.params),
            model_type=MODEL_TYPE,
        )
        _fill(tracker, model.model_id, folder)
        tracker.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return model.model_id


def _logged(tracker: Tracker, run_id: str, name: str, digest: str) -> "LoggedModel | None":
    wanted = f"name = '{name}' AND source_run_id = '{run_id}' AND tags.`{DIGEST}` = '{digest}'"
    found = tracker.client.search_logged_models([tracker.experiment_id], wanted)
    return next((model for model in found if model.status == "READY"), None)


def _fill(tracker: Tracker, model_id: str, folder: Path) -> None:
    done = False
    try:
        tracker.client.log_model_artifacts(model_id, str(folder))
        done = True
    finally:
        tracker.client.finalize_logged_model(model_id, "READY" if done else "FAILED")


def register(
    tracker: Tracker, name: str, model_id: str, tags: Mapping[str, Any], card: str
) -> "ModelVersion":
    """Make a logged model a version of a registered model; the same adapter is one version.

    Args:
        tracker: Where it is registered.
        name: The registered model (`registered_name`), made where there is none.
        model_id: The logged model.
        tags: `version`, `arm` and `adapter` (the content hash), which tell adapters apart.
        card: The model card, shown as the version's description.

    Raises:
        DeliftError: the store cannot be used.
    """
    named = tag_names(tags)
    with tracker.explained():
        _ensure(tracker, name)
        with store_lock(tracker.home):
            known = _find(tracker, name, named)
            if known is not None:
                return known
            model = tracker.client.get_logged_model(model_id)
            return tracker.client.create_model_version(
                name,
                model.artifact_location,
                run_id=model.source_run_id,
                tags=named,
                description=card,
                model_id=model_id,
            )


def _ensure(tracker: Tracker, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        tracker.client.create_registered_model(name, tags={f"{PREFIX}kind": MODEL_TYPE})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def versions_of(tracker: Tracker, name: str) -> "list[ModelVersion]":
    """All versions of a registered model."""
    return list(tracker.client.search_model_versions(f"name = '{name}'", max_results=10_000))


def _find(tracker: Tracker, name: str, tags: Mapping[str, str]) -> "ModelVersion | None":
    for version in versions_of(tracker, name):
        if all(version.tags.get(key) == text for key, text in tags.items()):
            return version
    return None


def with_alias(tracker: Tracker, name: str, alias: Alias) -> "ModelVersion | None":
    """The version that an alias names, or None.

    Raises:
        DeliftError: the store cannot be used.
    """
    from mlflow.exceptions import MlflowException

    with tracker.explained():
        try:
            return tracker.client.get_model_version_by_alias(name, alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise


def point(tracker: Tracker, name: str, alias: Alias, to: "ModelVersion | None") -> None:
    """Move an alias to a version, or take it away."""
    now = with_alias(tracker, name, alias)
    if (now and now.version) == (to and to.version):
        return
    with tracker.explained():
        if to is None:
            tracker.client.delete_registered_model_alias(name, alias)
        else:
            tracker.client.set_registered_model_alias(name, alias, str(to.version))


def log_card(tracker: Tracker, name: str, version: str, folder: Path) -> None:
    """Put a rewritten model card beside the logged model and onto its registered version."""
    with tracker.explained():
        text = card_text(folder)
        updated = tracker.client.update_model_version(name, version, description=text)
        if updated.model_id:
            tracker.client.log_model_artifact(updated.model_id, str(folder / CARD))


def model_link(tracker: Tracker, name: str, version: "ModelVersion") -> str:
    """The page of a registered model's version."""
    from urllib.parse import quote

    return f"{tracker.site}/#/models/{quote(name)}/versions/{version.version}"
