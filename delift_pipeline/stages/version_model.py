"""The prompt template of a dataset version: its own, or that of the scores it already has."""

import os
from pathlib import Path

from delift_pipeline.core.errors import InputError
from delift_pipeline.core.home import Home, model_path
from delift_pipeline.core.manifest import Manifest, read_manifest
from delift_pipeline.prompts.template import shipped_templates
from delift_pipeline.scoring.fingerprint import fingerprint_of
from delift_pipeline.scoring.model_files import is_hub_id, model_folder
from delift_pipeline.scoring.options import AUTO, ModelOptions
from delift_pipeline.scoring.template_choice import choose_template


def with_version_template(home: Home, version: str, options: ModelOptions) -> ModelOptions:
    """Return the options with the template of a version, for a user who named no template.

    The first of these decides: the template that the user named for the version; the preset's; the
    one that was stored for this model when the version was ingested; that of the version's scores
    by this model; the same of its first parent. Without any of them the options stay as they are,
    and the model decides.

    Raises:
        InputError: the version has scores, and the model cannot be used.
    """
    manifest = read_manifest(home.dataset(version))
    named = manifest.request.get("template") if manifest is not None else None
    if named not in (None, AUTO):
        return options.model_copy(update={"template": named})
    while options.template == AUTO and manifest is not None:
        if template := _stored_template(home, version, manifest, options):
            return options.model_copy(update={"template": template})
        version = next(iter(manifest.details["parents"]), "")
        manifest = read_manifest(home.dataset(version)) if version else None
    return options


def template_for_ingest(
    home: Home, parents: list[str], options: ModelOptions
) -> tuple[str | None, tuple[str, ...]]:
    """Return the template to store with a new version of a model, and notes about it.

    It is that of the first parent, if the parent has one for this model, else the model's. For a
    model on the hub it is None: the model is not downloaded before it scores.

    Raises:
        InputError: the model cannot be used.
    """
    if parents and parents[0] in home.versions():
        options = with_version_template(home, parents[0], options)
    if options.template != AUTO:
        return options.template, ()
    if is_hub_id(options.model):
        return None, ()
    choice = choose_template(options, model_folder(options))
    return choice.setting, choice.notes


def _stored_template(
    home: Home, version: str, manifest: Manifest, options: ModelOptions
) -> str | None:
    """Return the template that a version has for this model, or None."""
    details = manifest.details
    stored, model = details.get("template"), details.get("model")
    if stored not in (None, AUTO) and (not model or _is_same_model(home, model, options.model)):
        return stored
    return _template_of_scores(home, version, options)


def _is_same_model(home: Home, stored: str, model: str) -> bool:
    """Whether a model is the one with this name in a manifest."""
    try:
        own = model_path(home, stored)
    except InputError:  # Its folder is gone, so it is not the one that is used now.
        return False
    folders = (Path(one).expanduser() for one in (own, model))
    return own == model or len({os.path.realpath(folder) for folder in folders}) == 1


def _template_of_scores(home: Home, version: str, options: ModelOptions) -> str | None:
    """Return the template of the oldest scores of a version by this model.

    Only the weights are compared: the model's tokenizer may have got a chat template since then.
    """
    folders = (home.root / "scores").glob(f"*/versions/{version}")
    manifests = (read_manifest(folder.parents[1]) for folder in folders)
    stores = sorted((one for one in manifests if one is not None), key=lambda one: one.created)
    if not stores:
        return None
    weights, known = fingerprint_of(options).parts["weights"], shipped_templates()
    own = (one.details for one in stores if one.details.get("weights") == weights)
    names = (details["template"]["name"] for details in own)
    return next((name for name in names if name in known), None)
