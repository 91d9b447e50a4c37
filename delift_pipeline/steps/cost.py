"""What more it would take: cost before work, in the sentence that refuses an arm."""

from delift_pipeline.arms import Arm
from delift_pipeline.records.stored import DatasetVersion
from delift_pipeline.scoring.rate import duration_text, stored_rate
from delift_pipeline.scoring.store import ScoreStore
from delift_pipeline.storage.home import Home
from delift_pipeline.storage.manifest import read_manifest

REDO = "pair_plan, in_context_logprobs and utility_kernel"


def cost_sentence(
    home: Home, dataset: DatasetVersion, arm: Arm, fingerprint: str, absent: list[str]
) -> str:
    """Why an arm cannot be chosen from the blocks there are, and what the rest would cost.

    Args:
        home: The home.
        dataset: The version.
        arm: The arm.
        fingerprint: The scoring fingerprint.
        absent: Kernel blocks the arm reads that are not there.
    """
    if "self" not in absent:
        named = " and ".join(absent)
        return (
            f"arm {arm.name} needs the {named} pairs of {dataset.version}, which were not planned: "
            f"materialise {REDO} again (delift run --version {dataset.version} --arm {arm.name})"
        )
    plan = read_manifest(home.plan(dataset.version))
    planned = plan.details["blocks"].get("self", {}).get("pairs", 0) if plan else 0
    more = dataset.pool.height**2 - planned
    rate = stored_rate(ScoreStore(home.scores(fingerprint)))
    cost = f", about {duration_text(more / rate)} here" if rate else ""
    return (
        f"arm {arm.name} needs {more:,} more pairs{cost}; set coverage: all "
        f"(plan.coverage in arms.yaml) and materialise {REDO} again"
    )
