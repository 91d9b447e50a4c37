"""Where an asset's code lies: its door, and the stage of the library behind it."""

import inspect
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import dagster as dg

import delift_pipeline
from delift_pipeline import __version__
from delift_pipeline.core.manifest import git_commit
from delift_pipeline.stages.adapter import make_adapter
from delift_pipeline.stages.dataset import open_dataset
from delift_pipeline.stages.kernel import make_kernel
from delift_pipeline.stages.leaderboard import make_leaderboard
from delift_pipeline.stages.plan import plan_pairs
from delift_pipeline.stages.report import make_report
from delift_pipeline.stages.score import score_version
from delift_pipeline.stages.subset import make_subset

SOURCE_VARIABLE = "DELIFT_SOURCE_URL"
STEPS: Mapping[str, Callable[..., Any]] = {
    "raw_dataset": open_dataset,
    "pair_plan": plan_pairs,
    "baseline_logprobs": score_version,
    "in_context_logprobs": score_version,
    "utility_kernel": make_kernel,
    "subset": make_subset,
    "adapter": make_adapter,
    "eval_report": make_report,
    "leaderboard": make_leaderboard,
}


def with_code_references(assets: Sequence[dg.AssetsDefinition]) -> list[dg.AssetsDefinition]:
    """The assets with links to their code, as the UI shows them.

    Links lead to the files of this installation; where `$DELIFT_SOURCE_URL` names the project's
    home on GitHub or GitLab, to the same lines there, at the commit this code was checked out at
    (else at the tag of its version).
    """
    with warnings.catch_warnings():
        # Code references are in beta: Dagster says so once for every asset.
        warnings.simplefilter("ignore", dg.BetaWarning)
        return _referenced([asset.map_asset_specs(_with_step) for asset in assets])


def _referenced(stepped: Sequence[dg.AssetsDefinition]) -> list[dg.AssetsDefinition]:
    referenced: Sequence[Any] = dg.with_source_code_references(stepped)
    url = os.environ.get(SOURCE_VARIABLE)
    if url:
        anchor = Path(delift_pipeline.__file__)
        referenced = dg.link_code_references_to_git(
            assets_defs=referenced,
            git_url=url.rstrip("/"),
            git_branch=git_commit() or f"v{__version__}",
            file_path_mapping=dg.AnchorBasedFilePathMapping(
                local_file_anchor=anchor,
                file_anchor_path_in_repository="delift_pipeline/__init__.py",
            ),
        )
    return [cast(dg.AssetsDefinition, asset) for asset in referenced]


def _with_step(spec: dg.AssetSpec) -> dg.AssetSpec:
    step = STEPS[spec.key.path[-1]]
    reference = dg.LocalFileCodeReference(
        file_path=str(Path(inspect.getfile(step)).resolve()),
        line_number=inspect.getsourcelines(step)[1],
        label=f"the step ({step.__name__})",
    )
    shown = {"dagster/code_references": dg.CodeReferencesMetadataValue(code_references=[reference])}
    return spec.merge_attributes(metadata=shown)
