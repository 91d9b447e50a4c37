"""Links from an asset to its code: its body, and the stage of the library that it calls."""

import inspect
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import dagster as dg

import delift_pipeline
from delift_pipeline import __version__
from delift_pipeline.core.manifest import git_commit

SOURCE_VARIABLE = "DELIFT_SOURCE_URL"


def code_references(
    step: Callable[..., Any], body: Callable[..., Any]
) -> dict[str, dg.CodeReferencesMetadataValue]:
    """Return the metadata that links an asset to its step and its body in this installation."""
    with warnings.catch_warnings():
        # Code references are in beta, and Dagster warns about that for every asset.
        warnings.simplefilter("ignore", dg.BetaWarning)
        links: list[Any] = [
            dg.LocalFileCodeReference(
                file_path=str(Path(inspect.getfile(function)).resolve()),
                line_number=inspect.getsourcelines(function)[1],
                label=label,
            )
            for function, label in ((step, f"the step ({step.__name__})"), (body, None))
        ]
        return {"dagster/code_references": dg.CodeReferencesMetadataValue(code_references=links)}


def with_code_references(assets: Sequence[dg.AssetsDefinition]) -> list[dg.AssetsDefinition]:
    """Return the assets with links to their code for the web interface.

    Links lead to the files of this installation. If `$DELIFT_SOURCE_URL` names a GitHub or GitLab
    repository, they lead to the same lines there, at the commit of this code (else at the tag of
    its version).
    """
    url = os.environ.get(SOURCE_VARIABLE)
    if not url:
        return list(assets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        linked = dg.link_code_references_to_git(
            assets_defs=assets,
            git_url=url.rstrip("/"),
            git_branch=git_commit() or f"v{__version__}",
            file_path_mapping=dg.AnchorBasedFilePathMapping(
                local_file_anchor=Path(delift_pipeline.__file__),
                file_anchor_path_in_repository="delift_pipeline/__init__.py",
            ),
        )
    return [cast(dg.AssetsDefinition, asset) for asset in linked]
