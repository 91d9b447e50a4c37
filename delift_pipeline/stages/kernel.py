"""The stage behind `utility_kernel`: scores become utilities, block by block."""

from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import up_to_date
from delift_pipeline.kernel.kernel import build_kernel
from delift_pipeline.scoring.fingerprint import fingerprint_of
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.scoring.plan import neighbour_block, read_neighbours, read_plan
from delift_pipeline.scoring.store import ScoreStore
from delift_pipeline.stages.plan import planned_manifest
from delift_pipeline.stages.result import Result, required_manifest

CODE_VERSION = "1"


def make_kernel(home: Home, version: str, model: ModelOptions, run_id: str | None = None) -> Result:
    """Build the version's kernel from the stored scores, unless it is there already.

    Raises:
        DeliftError: the plan or scores are missing.
    """
    fingerprint = fingerprint_of(model).digest
    planned = planned_manifest(home, version)
    scored = required_manifest(
        home.scored(version, fingerprint, "in_context"),
        f"{version} is not scored with this model: materialise in_context_logprobs",
    )
    request = {"fingerprint": fingerprint}
    parents = {
        f"plan:{version}": planned.content_hash,
        f"scores:{version}": scored.content_hash,
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
        unscorable=scored.details["unscorable"],
        # Where the plan holds every pair, the near ones become a block of their own.
        neighbours=neighbour_block(own.targets, near) if own and own.dense and near else None,
        parents=parents,
        request=request,
        code_version=CODE_VERSION,
        run_id=run_id,
    )
    return Result(home, folder, manifest, reused=False)
