"""The stage behind `utility_kernel`: compute utilities from scores, block by block."""

from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import up_to_date
from delift_pipeline.kernel.kernel import build_kernel
from delift_pipeline.scoring.fingerprint import fingerprint_of
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.scoring.plan import neighbour_block, read_neighbours, read_plan
from delift_pipeline.scoring.store import ScoreStore
from delift_pipeline.stages.plan import plan_manifest
from delift_pipeline.stages.result import Result, required_manifest

CODE_VERSION = "1"


def make_kernel(home: Home, version: str, model: ModelOptions, run_id: str | None = None) -> Result:
    """Build the version's kernel from stored scores, unless the stored kernel has the same inputs.

    Raises:
        DeliftError: the version has no pair plan or no scores.
    """
    fingerprint = fingerprint_of(model).digest
    pair_plan = plan_manifest(home, version)
    scores = required_manifest(
        home.version_scores(version, fingerprint, "in_context"),
        f"{version} is not scored with this model. Materialise in_context_logprobs first",
    )
    request = {"fingerprint": fingerprint}
    parents = {
        f"plan:{version}": pair_plan.content_hash,
        f"scores:{version}": scores.content_hash,
    }
    folder = home.kernel(version, fingerprint)
    stored = up_to_date(folder, request, parents, CODE_VERSION)
    if stored is not None:
        return Result(home, folder, stored, reused=True)
    plan, near = read_plan(home.plan(version)), read_neighbours(home.plan(version))
    own = plan.block("self")
    manifest = build_kernel(
        home,
        version,
        fingerprint,
        ScoreStore(home.scores(fingerprint)),
        plan,
        unscorable=scores.details["unscorable"],
        # A plan of every pair has no block of near pairs, which trust needs. Add it here.
        neighbours=neighbour_block(own.targets, near) if own and own.dense and near else None,
        parents=parents,
        request=request,
        code_version=CODE_VERSION,
        run_id=run_id,
    )
    return Result(home, folder, manifest, reused=False)
