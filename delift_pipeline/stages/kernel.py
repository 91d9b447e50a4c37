"""The stage behind `utility_kernel`: scores become utilities, block by block."""

from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import up_to_date
from delift_pipeline.kernel.kernel import build_kernel
from delift_pipeline.scoring.fingerprint import fingerprint_of
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.scoring.plan import (
    PairBlock,
    PairPlan,
    neighbour_block,
    read_neighbours,
    read_plan,
)
from delift_pipeline.scoring.store import ScoreStore
from delift_pipeline.stages.plan import planned_manifest
from delift_pipeline.stages.result import Result
from delift_pipeline.stages.score import scored_manifest

CODE_VERSION = "1"


def make_kernel(home: Home, version: str, model: ModelOptions, run_id: str | None = None) -> Result:
    """Build the version's kernel from the stored scores, unless it is there already.

    Raises:
        DeliftError: the plan or scores are missing.
    """
    fingerprint = fingerprint_of(model).digest
    planned = planned_manifest(home, version)
    scored = scored_manifest(home, version, fingerprint)
    request = {"fingerprint": fingerprint}
    parents = {
        f"plan:{version}": planned.content_hash,
        f"scores:{version}": scored.content_hash,
    }
    folder = home.kernel(version, fingerprint)
    stored = up_to_date(folder, request, parents, CODE_VERSION)
    manifest = stored or build_kernel(
        home,
        version,
        fingerprint,
        ScoreStore(home.scores(fingerprint)),
        plan := read_plan(home.plan(version)),
        unscorable=scored.details["unscorable"],
        neighbours=_near(home, version, plan),
        parents=parents,
        request=request,
        code_version=CODE_VERSION,
        run_id=run_id,
    )
    return Result(home=home, folder=folder, manifest=manifest, reused=stored is not None)


def _near(home: Home, version: str, plan: PairPlan) -> PairBlock | None:
    """Near pairs as a block of their own, where the plan holds every pair."""
    own, neighbours = plan.block("self"), read_neighbours(home.plan(version))
    if own is None or not own.dense or neighbours is None:
        return None
    return neighbour_block(own.targets, neighbours)
